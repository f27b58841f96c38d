"""The container without a container: its commands on stand-ins for trtexec and nvidia-smi, its server flags on a real
tritonserver. `make check` lints the Dockerfile and the compose file.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tritonclient.grpc as triton
import tritonclient.http
import yaml
from tritonclient.utils import InferenceServerException

from export.__main__ import main as export
from export.graphs import UNET_LABELS, VAE_DECODER, VAE_DECODER_TINY, unet_steps
from server import resources
from server.process import TritonServer
from support.common import ROOT
from support.container_machine import SCRIPT, Machine, import_container
from support.light_repository import NETWORKS, add_steps, add_tiny, write_manifest
from support.toy_models import write_front_model


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """deploy/container.py, with a private folder for files that last as long as a server."""
    module = import_container()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DRAIN", tmp_path_factory.mktemp("drain"))
        yield module


def test_plans_are_built_once_and_pass_the_preflight(machine: Machine) -> None:
    assert machine.prepare() == ["unet", "vae_decoder"]
    assert machine.prepare() == []
    for network in NETWORKS:
        plan = machine.models / network / "1" / "model.plan"
        assert plan.read_text() == f"plan of model.fp16.onnx of {network}"
    assert (
        export(["check", str(machine.models), "--tensorrt", "10.13.3", "--capability", "9.0", "--profile", "default"])
        == 0
    )
    assert not any(path.name.endswith(".tmp") for path in machine.models.rglob("*"))


def test_another_tensorrt_another_gpu_and_other_weights_need_other_plans(machine: Machine) -> None:
    machine.prepare()
    machine.version("11.1.0.106")
    assert machine.prepare() == ["unet", "vae_decoder"]
    machine.gpu("NVIDIA L4", "8.9")
    assert machine.prepare() == ["unet", "vae_decoder"]
    (machine.source / "unet" / "1" / "model.fp16.onnx").write_text("other weights")
    write_manifest(machine.source, {"name": "light"})
    assert machine.prepare() == ["unet"]
    (machine.models / "vae_decoder" / "1" / "model.plan").write_text("half of")
    assert machine.prepare() == ["vae_decoder"]


def test_a_build_that_fails_leaves_what_was_there(machine: Machine) -> None:
    machine.prepare()
    before = (machine.models / "manifest.json").read_text()
    machine.version("101400")
    (machine.folder / "fails").touch()
    result = machine.run("prepare", f"--source={machine.source}", f"--into={machine.models}")
    assert result.returncode == 1
    assert "error: Command" in result.stderr
    assert (machine.models / "unet" / "1" / "model.plan").read_text() == "plan of model.fp16.onnx of unet"
    assert json.loads((machine.models / "manifest.json").read_text())["plans"] == json.loads(before)["plans"]


def test_the_copy_has_no_links_and_forgets_what_the_source_forgot(machine: Machine) -> None:
    shutil.rmtree(machine.source / "mri_ldm_stream" / "1")
    (machine.source / "mri_ldm_stream" / "1").symlink_to("../mri_ldm/1")  # as in the source repository
    extra = machine.source / "mri_ldm" / "1" / "extra.py"
    extra.touch()
    machine.prepare()
    copies = [machine.models / model / "1" / "extra.py" for model in ("mri_ldm", "mri_ldm_stream")]
    assert all(copy.is_file() for copy in copies)
    assert not any(path.is_symlink() for path in machine.models.rglob("*"))
    extra.unlink()
    machine.prepare()
    assert not any(copy.exists() for copy in copies)


def test_serve_becomes_triton_or_refuses(machine: Machine) -> None:
    nothing = machine.serve()
    assert nothing.returncode == 1
    assert nothing.stderr.startswith("error: ")
    machine.prepare()
    served = machine.serve()
    assert served.returncode == 0
    assert f"tritonserver --model-repository={machine.models} --model-control-mode=none" in served.stdout
    assert served.stdout.rstrip().endswith("--log-verbose=1")
    machine.version("101400")
    refused = machine.serve()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "unet: the plan is not for this container: version was '10.13.3' and is '10.14.0'" in refused.stderr


def test_serve_another_profile_needs_no_gpu_and_no_plans(machine: Machine) -> None:
    for program in ("nvidia-smi", "trtexec"):
        (machine.folder / program).unlink()
    served = machine.run("serve", str(machine.source), "--profile=cpu", "--grace=5", "--", "--log-verbose=1", "--id=a")
    assert served.returncode == 0, served.stderr
    assert " --model-config-name=cpu " in served.stdout
    assert served.stdout.rstrip().endswith(" --log-verbose=1 --id=a")
    refused = machine.run("serve", str(machine.source), "--profile=cqu")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "error: --profile 'cqu': unet has no such profile, only cpu, mixed_gpus, onnxruntime_gpu" in refused.stderr


def test_flags_for_triton_are_for_serve_alone(machine: Machine) -> None:
    refused = machine.run("health", "--", "--log-verbose=1")
    assert (refused.returncode, "flags for tritonserver are for `serve`" in refused.stderr) == (2, True)


def test_regions_of_the_server_before_are_removed_and_no_others(container: ModuleType, tmp_path: Path) -> None:
    before = container.new_region_prefix(tmp_path)
    for name in (f"{before}region", "brats_ldm_of_another", "other"):
        (tmp_path / name).touch()
    now = container.new_region_prefix(tmp_path)
    assert now != before
    assert {path.name for path in tmp_path.iterdir()} == {"brats_ldm_of_another", "other"}
    (container.DRAIN / "regions").write_text("")  # cut off while it was written
    container.new_region_prefix(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"brats_ldm_of_another", "other"}


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        ("nvidia-smi", "use `serve --profile cpu`"),
        ("trtexec", "no trtexec, so this is no Triton image"),
    ],
)
def test_what_is_missing_is_named(machine: Machine, absent: str, message: str) -> None:
    (machine.folder / absent).unlink()
    result = machine.run("prepare", f"--source={machine.source}", f"--into={machine.models}")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert message in result.stderr


def test_a_precision_without_its_graph_says_how_to_get_it(machine: Machine) -> None:
    result = machine.run("prepare", f"--source={machine.source}", f"--into={machine.models}", "--precision=bf16")
    assert result.returncode == 1
    assert "model.bf16.onnx does not exist: export with --onnx bf16" in result.stderr


def test_trtexec_gets_the_profiles_of_the_records(container: ModuleType, tmp_path: Path) -> None:
    plans = sys.modules[container.prepare.__module__]
    for graph in (UNET_LABELS, VAE_DECODER):
        command = plans.build_command(ROOT / "model_repository", tmp_path / "a" / "1" / "p", graph.name, "fp16", "10.1")
        rows = {"min": 1, "opt": graph.opt_batch_size, "max": graph.max_batch_size}
        for limit, count in rows.items():
            shapes = [f"{spec.name}:{'x'.join(map(str, (count, *spec.shape)))}" for spec in graph.inputs]
            assert f"--{limit}Shapes={','.join(shapes)}" in command
        assert "--stronglyTyped" in command
    later = plans.build_command(ROOT / "model_repository", tmp_path / "a" / "1" / "p", "unet", "fp32", "11.1.0")
    assert "--stronglyTyped" not in later
    assert "--noTF32" in later
    tf32 = plans.build_command(ROOT / "model_repository", tmp_path / "a" / "1" / "p", "unet", "tf32", "11.1.0")
    assert set(later) - set(tf32) == {"--noTF32"}


def test_several_steps_in_a_call_get_a_plan_too(machine: Machine, container: ModuleType, tmp_path: Path) -> None:
    add_steps(machine.source, 3)
    plans, graph = sys.modules[container.prepare.__module__], unet_steps(3, labels=True)
    command = plans.build_command(machine.source, tmp_path / "a" / "1" / "p", graph.name, "fp16", "10.1")
    for limit, rows in (("min", 1), ("opt", graph.opt_batch_size), ("max", graph.max_batch_size)):
        shapes = [f"{spec.name}:{'x'.join(map(str, (rows, *spec.shape)))}" for spec in graph.inputs]
        assert f"--{limit}Shapes={','.join(shapes)}" in command
    assert machine.prepare() == ["unet", "vae_decoder", "unet_steps"]
    assert machine.prepare() == []
    preflight = ["--tensorrt", "10.13.3", "--capability", "9.0", "--profile", "default"]
    assert export(["check", str(machine.models), *preflight]) == 0
    assert machine.serve().returncode == 0
    (machine.models / "unet_steps" / "1" / "model.plan").write_text("half of")
    assert "unet_steps: the plan is not for this container: the file has been changed" in machine.serve().stderr


def test_a_tiny_decoder_gets_a_plan_too(machine: Machine, container: ModuleType, tmp_path: Path) -> None:
    add_tiny(machine.source)
    plans = sys.modules[container.prepare.__module__]
    command = plans.build_command(machine.source, tmp_path / "a" / "1" / "p", "vae_decoder_tiny", "fp16", "10.1")
    for limit, rows in (("min", 1), ("opt", VAE_DECODER_TINY.opt_batch_size), ("max", VAE_DECODER_TINY.max_batch_size)):
        assert f"--{limit}Shapes=latent:{rows}x1x64x64" in command
    assert machine.prepare() == ["unet", "vae_decoder", "vae_decoder_tiny"]
    assert machine.prepare() == []
    preflight = ["--tensorrt", "10.13.3", "--capability", "9.0", "--profile", "default"]
    assert export(["check", str(machine.models), *preflight]) == 0


def test_dry_run_prints_the_commands_of_the_docs(machine: Machine) -> None:
    result = machine.run("prepare", "--source=/source", "--into=/models", "--dry-run")
    assert result.returncode == 1  # the limits are read from the repository
    result = machine.run("prepare", f"--source={machine.source}", "--into=/models", "--dry-run")
    unet, decoder = result.stdout.splitlines()
    # As in docs/tensorrt.md, with the shapes that it has for weights that take labels.
    shapes = [f"latent:{rows}x1x64x64,condition:{rows}x4x64x64,timesteps:{rows}x1" for rows in (1, 8)]
    assert f"--minShapes={shapes[0]} --optShapes={shapes[1]}" in unet
    assert "--saveEngine=/models/vae_decoder/1/model.plan" in decoder


def test_too_little_shared_memory_is_told_at_the_start(container: ModuleType, tmp_path: Path) -> None:
    assert container.SHARED_MEMORY_BYTES == resources.SHARED_MEMORY_BYTES
    container.check_shared_memory(tmp_path, 1)
    with pytest.raises(container.Refusal, match=r"has \d+ MB left, .*: docker run --shm-size=1g$"):
        container.check_shared_memory(tmp_path, 2**60)


@pytest.fixture(scope="module")
def cautious(container: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A tritonserver with the flags of the container, on a toy with the tensors of `mri_ldm`."""
    repository = write_front_model(tmp_path_factory.mktemp("repository"))
    with TritonServer(repository, profile="cpu", extra_args=container.server_command(repository)[2:]) as server:
        yield server


@pytest.mark.slow
def test_the_flags_serve_and_the_health_check_tells(cautious: TritonServer, container: ModuleType) -> None:
    container.health(f"http://{cautious.http_url}")
    assert container.main(["health", "--url", f"http://{cautious.http_url}"]) == 0
    assert container.main(["health", "--url", "http://127.0.0.1:9"]) == 1


@pytest.mark.slow
def test_shared_memory_and_model_control_are_refused(cautious: TritonServer) -> None:
    with triton.InferenceServerClient(cautious.grpc_url) as client:
        for call in (
            client.get_system_shared_memory_status,
            client.get_model_repository_index,
            client.get_log_settings,
        ):
            with pytest.raises(InferenceServerException, match="This protocol is restricted"):
                call()
    with (
        tritonclient.http.InferenceServerClient(cautious.http_url) as client,
        pytest.raises(InferenceServerException, match="403"),
    ):
        client.unload_model("mri_ldm")


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())


def test_compose_publishes_on_the_loopback_and_mounts_read_only() -> None:
    services = compose()["services"]
    assert services["server"]["ports"] == [f"127.0.0.1:{port}:{port}" for port in (8000, 8001, 8002)]
    assert services["server"]["volumes"] == ["models:/models:ro"]
    assert services["plans"]["volumes"][0].endswith(":/source:ro")
    for service in services.values():
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
        assert not {"privileged", "ipc", "pid", "user"} & set(service)
    assert "ports" not in services["plans"]


@pytest.mark.slow
def test_commands_of_the_container_are_those_of_the_script(container: ModuleType) -> None:
    """What compose and the Dockerfile say is parsed by the script itself."""
    services = compose()["services"]
    plans = [word.replace("${PRECISION:-fp16}", "fp16") for word in services["plans"]["command"]]
    health = services["server"]["healthcheck"]["test"]
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    serve = json.loads(next(line for line in lines if line.startswith("CMD ")).removeprefix("CMD "))
    assert health[0] == "CMD"
    for command in (plans, health[1:], serve):
        assert command[:2] == ["python3", "/opt/brats-ldm/container.py"]
        assert (
            "usage"
            in subprocess.run(
                [sys.executable, str(SCRIPT), *command[2:], "--help"], capture_output=True, text=True, check=True
            ).stdout
        )
    assert "USER 1000:1000" in lines
    assert "COPY container.py plans.py /opt/brats-ldm/" in lines
    timeout = next(flag for flag in container.SAFE_FLAGS if "exit-timeout" in flag).split("=")[1]
    assert int(timeout) < container.KILL_AFTER_S
    grace, most = 30, int(services["server"]["stop_grace_period"].removesuffix("s"))
    assert most > grace + container.REFUSE_S + container.KILL_AFTER_S, "docker must not kill what ends in order"
