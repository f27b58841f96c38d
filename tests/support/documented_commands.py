"""Every command that README, docs and the Makefile show, by its program: what runs it, or why nothing does.

A program is what stands before the arguments: a module, a subcommand, a target. `test_documented_commands.py` holds
that none is missing here and none left over, runs what stands in IN_SMALL from a copy of the checkout, as a user would,
and holds that every option shown exists.
"""

from __future__ import annotations

IN_SMALL: dict[str, str] = {
    "make": "",
    "make help": "",
    # A user's own weights, from data to a repository: two volumes, tiny networks.
    "python -m training.phantom": "--out data/phantom --volumes 2",
    "python -m training.reconstruct": (
        "--snapshot runs/autoencoder/snapshot --data data/phantom --section training --volumes 1 --slices-per-volume 2 "
        "--out out/reconstruction"
    ),
    "python -m training.sample": "--snapshot runs/diffusion/snapshot -n 20 --steps 1 --out out/samples",
    "python -m training.slices": "--data data/phantom --section training --count 20 --out out/real",
    "python -m training.evaluate": "--real out/real --synthetic out/real --features runs/diffusion/snapshot --pairs 8",
    "python -m export check": "build/model_repository --profile cpu",
    "python -m export to-monai": "runs/diffusion/snapshot --out out/monai",
    "python -m export from-monai": "out/monai --config tiny.toml --scale-factor 0.8 --out runs/monai",
    "python deploy/container.py prepare": "--source=build/model_repository --into=/models --dry-run",
    "python -m benchmarks.training_speed": "--case demo diffusion --slices 1 --iterations 1",
    "python -c": '\'import openvino; print(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))\'',
    # A server with the demo weights, asked, and at the end drained.
    "brats-ldm ready": "--url URL --deep --timeout 60",
    "brats-ldm info": "--url URL",
    "brats-ldm generate": "--url URL -n 2 --steps 2 --sampler dpmpp_2m --out out/slices --format png,nifti",
    "brats-ldm calibrate": "--url URL --steps 10 -n 1000 --rows 1 2",
    "python model_repository/mri_ldm/1/drain.py": "DRAIN --grace 30",
    "make clean": "VENV=out/no-venv",
}
"""Program to arguments. URL and DRAIN are those of the server, `python -m server`."""

BY_TESTS: dict[str, str] = {
    "make bench": "test_serving_benchmark.py",
    "make demo": "test_demo.py",
    "make gpu": "test_gpu_benchmark.py",
    "make gpu-kit": "test_gpu_benchmark.py",
    "make perf-analyzer": "test_perf_analyzer.py",
    "make serve": "test_server_launcher.py",
    "make test-reliability": "test_reliability.py",
    "perf_analyzer": "test_perf_analyzer.py",
    "prometheus": "test_observability_monitoring.py",
    "python -m benchmarks.commands": "test_figures.py",
    "python -m benchmarks.cost": "test_cost_benchmark.py",
    "python -m benchmarks.cpu_path": "test_cpu_path.py",
    "python -m benchmarks.figures": "test_figures.py",
    "python -m benchmarks.gpu": "test_gpu_benchmark.py",
    "python -m benchmarks.loop": "test_loop_benchmark.py",
    "python -m benchmarks.mixed_load": "test_mixed_load.py",
    "python -m benchmarks.quality": "test_quality.py",
    "python -m benchmarks.rewrite": "test_rewrite_benchmark.py",
    "python -m benchmarks.serving": "test_serving_benchmark.py",
    "python -m benchmarks.serving.analyzer": "test_perf_analyzer.py",
    "python -m benchmarks.serving.analyzer.fetch": "conftest.py",
    "python -m export gate": "test_openvino_gate.py",
    "python -m export parity": "test_parity.py",
    "python -m export repository": "conftest.py",
    "python -m server": "test_server_launcher.py",
    "python -m training.plot": "test_training_verbs.py",
    "python -m training.train_autoencoder": "test_training_processes.py",
    "python -m training.train_diffusion": "test_training_processes.py",
    "torchrun training.train_autoencoder": "test_training_processes.py",
    "torchrun training.train_diffusion": "test_training_processes.py",
    "tritonserver": "test_deploy.py",
}
"""Program to the test file that runs it, with arguments of its own."""

NO_CONTAINERS = "needs a container engine, which no test has"

NOT_RUN: dict[str, str] = {
    "docker build": NO_CONTAINERS,
    "docker compose": NO_CONTAINERS,
    "docker run": NO_CONTAINERS,
    "docker stop": NO_CONTAINERS,
    "docker volume": NO_CONTAINERS,
    "make check": "continuous integration runs it before the tests",
    "make demo-weights": "takes hours; each of its commands is run in small",
    "make test": "is this run",
    "make test-fast": "is a part of this run",
    "openssl rand": "makes a secret; any other way will do",
    "pip install": "installs packages; the tests run in what `make test` installed",
    "pytest": "of what needs a GPU; everything else is this run",
    "python -m training.<verb>": "stands for the others",
    "python /models/mri_ldm/1/drain.py": "is drain.py inside a container",
    "tensorboard": "shows a page; tests read the same files",
    "torchrun monai.bundle": "is MONAI's, beside which ours stands",
}
"""Program to the reason why no test runs it."""
