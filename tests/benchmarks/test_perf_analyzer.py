"""perf_analyzer as the docs tell it: the fetched program against real servers, by our command and by the plain one."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving.analyzer.fetch import BINARY, environment
from benchmarks.serving.analyzer.run import REPORT, input_data
from server.ports import free_port
from server.proc import children
from server.process import TritonServer
from server.security import Security
from support.common import ROOT, run_python
from support.throwaway_ca import Authority
from training.files import write_text

pytestmark = pytest.mark.slow

DOC = ROOT / "docs" / "perf_analyzer.md"
EXAMPLE = ROOT / "examples" / "perf_analyzer.json"
SECRET = "a-secret-of-one-test"


def measure(perf_analyzer: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it."""
    folders = ("--tool", str(perf_analyzer), "--out", str(out))
    return run_python("-m", "benchmarks.serving.analyzer", *folders, *arguments)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def sent(out: Path, load: str) -> list[dict[str, Any]]:
    """What each request of a load has sent, as perf_analyzer has recorded it."""
    (experiment,) = read(out / f"{load}.requests.json")["experiments"]
    assert all(request["response_timestamps"] for request in experiment["requests"])
    return [request["request_inputs"] for request in experiment["requests"]]


def test_it_is_fetched_into_a_relative_folder(perf_analyzer: Path, tmp_path: Path) -> None:
    """The default folder is relative, and downloads have a working folder of their own: they ended elsewhere."""
    done = subprocess.run(
        [perf_analyzer / BINARY, "--version"],
        cwd=tmp_path,
        env=environment(perf_analyzer),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2.51.0" in done.stdout + done.stderr


def test_a_server_of_its_own_is_measured(perf_analyzer: Path, small_repository: Path, tmp_path: Path) -> None:
    options = ["--concurrency", "1", "2", "--requests", "5", "--steps", "3", "--sampler", "dpmpp_2m"]
    done = measure(perf_analyzer, tmp_path, "--repository", str(small_repository), *options)
    assert done.returncode == 0, done.stderr
    report = (tmp_path / REPORT).read_text()
    assert report.strip() in re.sub(r"^5 requests to .*\n", "", done.stdout, flags=re.MULTILINE)
    assert "Avg gRPC time" in report
    assert report.count("Request count: 5\n") == report.count("all 5 requests answered") == 2
    assert report.count("-m mri_ldm -i grpc") == report.count("  unet, version: 1\n") == 2
    seeds = []
    for level in (1, 2):
        entries = read(tmp_path / f"concurrency-{level}.input.json")["data"]
        assert all(entry["steps"] == [3] and entry["sampler"] == ["dpmpp_2m"] for entry in entries)
        seeds += [seed for entry in entries for seed in entry["seed"]]
        requests = sorted(sent(tmp_path, f"concurrency-{level}"), key=lambda request: request["seed"])
        assert requests == [{name: values[0] for name, values in entry.items()} for entry in entries[:5]]
        (row,) = csv.DictReader((tmp_path / f"concurrency-{level}.csv").open())
        shown = re.search(rf"concurrency {level}: .*\n.*p50 ([\d.]+), p90 ([\d.]+), p99 ([\d.]+)", report)
        assert shown
        for ours, name in zip(shown.groups(), ("p50", "p90", "p99"), strict=True):
            assert float(ours) == pytest.approx(float(row[f"{name} latency"]) / 1e6, abs=0.00051)
    assert len(set(seeds)) == len(seeds) > 10
    assert "1.00 rows in a call of unet" in report  # of the first load, alone in the server
    assert (tmp_path / "tritonserver.log").stat().st_size > 100


def test_a_running_server_is_sent_streams_at_a_rate(
    perf_analyzer: Path, small_server: TritonServer, tmp_path: Path
) -> None:
    """Previews come before the image; perf_analyzer says that its latency is the first response's, and it is not."""
    options = ["--model", "mri_ldm_stream", "--request-rate", "5", "--requests", "8", "--steps", "20", "--seed", "7"]
    done = measure(perf_analyzer, tmp_path, "--url", small_server.grpc_url, "--preview-every", "5", *options)
    assert done.returncode == 0, done.stderr
    assert "Starting" not in done.stdout
    seeds = [request["seed"] for request in sent(tmp_path, "request-rate-5")]
    assert len(set(seeds)) == len(seeds) >= 8
    assert min(seeds) == 7
    image, first = (
        float(number) for number in re.findall(r"seconds until the (?:image|first preview): p50 ([\d.]+)", done.stdout)
    )
    (row,) = csv.DictReader((tmp_path / "request-rate-5.csv").open())
    assert first < image == pytest.approx(float(row["p50 latency"]) / 1e6, abs=0.00051)
    assert float(row["Response Throughput"]) == pytest.approx(5 * float(row["Inferences/Second"]), rel=0.01)


def test_an_output_that_is_left_out_is_recorded_as_zero(
    perf_analyzer: Path, small_server: TritonServer, tmp_path: Path
) -> None:
    """It was a value of memory that nobody had set; now and then that was no number, and the record ended there."""
    write_text(tmp_path / "input.json", json.dumps(input_data(range(12), steps=20)))
    files = ["--input-data", "input.json", "--profile-export-file", "requests.json"]
    command = [perf_analyzer / BINARY, "-m", "mri_ldm", "-i", "grpc", "-u", small_server.grpc_url, *files]
    subprocess.run(
        [*command, "--request-count", "12"], cwd=tmp_path, env=environment(perf_analyzer), timeout=60, check=True
    )
    (experiment,) = read(tmp_path / "requests.json")["experiments"]
    outputs = [output for request in experiment["requests"] for output in request["response_outputs"]]
    assert [output["start_latent"] for output in outputs] == [0] * 12
    assert all(len(output["image"]) == 240 * 240 for output in outputs)


def test_tls_and_a_secret(
    perf_analyzer: Path, small_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whom the server lets in; perf_analyzer says of -H that gRPC ignores it, and it does not."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("client", "client")
    security = Security(authority.server(client_ca=authority.ca), inference_secret=SECRET)
    with TritonServer(small_repository, security=security) as server:
        monkeypatch.setenv("BRATS_LDM_SECRET", SECRET)
        options = ["--url", server.grpc_url, "--concurrency", "2", "--requests", "4", "--steps", "2"]
        options += ["--decoder", "tiny"]
        files = ["--tls-ca", str(authority.ca), "--tls-cert", str(certificate), "--tls-key", str(key)]
        done = measure(perf_analyzer, tmp_path / "out", *options, *files)
        assert done.returncode == 0, done.stderr
        assert "all 4 requests answered" in done.stdout
        assert "rows in a call of vae_decoder_tiny" in done.stdout
        assert "$BRATS_LDM_SECRET" in done.stdout
        for path in [*(tmp_path / "out").iterdir()]:
            assert SECRET not in path.read_text(), path
        assert SECRET not in done.stdout
        monkeypatch.setenv("BRATS_LDM_SECRET", SECRET + "x")
        done = measure(perf_analyzer, tmp_path / "out", *options, *files)
        assert done.returncode == 1
        assert "restricted" in done.stderr


def test_what_is_wrong_is_said_in_one_line(perf_analyzer: Path, small_server: TritonServer, tmp_path: Path) -> None:
    closed, url = f"127.0.0.1:{free_port('127.0.0.1')}", small_server.grpc_url
    for arguments, words in {
        ("--url", closed): rf"no server answers at {closed} \(.*Connection refused",
        ("--url", url, "--sampler", "euler", "--concurrency", "1"): "sampler is 'euler'; it must be one of ddim, ",
        ("--url", url, "--concurrency", "1", "--", "--no-such-flag"): "unrecognized option '--no-such-flag'",
        ("--url", url, "--tls-ca", str(tmp_path / "none.pem")): "No such file or directory: '.*none.pem'",
        ("--repository", str(tmp_path / "none")): f"no model repository at {tmp_path / 'none'}",
    }.items():
        done = measure(perf_analyzer, tmp_path / "out", *arguments)
        assert done.returncode == 1, done
        assert re.fullmatch(rf"error: .*{words}.*\n", done.stderr), done.stderr


def test_a_server_of_its_own_ends_with_it(perf_analyzer: Path, small_repository: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.serving.analyzer",
        "--tool",
        str(perf_analyzer),
        "--out",
        str(tmp_path),
    ]
    options = ["--repository", str(small_repository), "--steps", "1000"]
    with subprocess.Popen(
        [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as ours:
        assert ours.stdout is not None
        assert any("requests to mri_ldm, concurrency 1" in line for line in ours.stdout)
        deadline = time.monotonic() + 20
        while len(started := children(ours.pid)) < 2:  # tritonserver and perf_analyzer
            assert time.monotonic() < deadline, started
            time.sleep(0.02)
        ours.terminate()
        _, words = ours.communicate(timeout=60)
    assert (ours.returncode, words) == (130, "error: interrupted\n")
    assert not any(Path("/proc", str(process)).exists() for process in started)


def test_a_server_without_the_model(perf_analyzer: Path, small_repository: Path, tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("mri_ldm_stream")
    shutil.copytree(small_repository, tmp_path / "repository", ignore=ignore)
    done = measure(perf_analyzer, tmp_path, "--repository", str(tmp_path / "repository"), "--model", "mri_ldm_stream")
    assert done.returncode == 1
    assert re.fullmatch(r"error: the server at \S+ has no model mri_ldm_stream, or it is not ready\n", done.stderr)


def test_wrong_options_are_refused_at_once() -> None:
    for arguments, words in {
        ("--model", "unet"): "invalid choice: 'unet'",
        ("--concurrency", "0"): "'0' is not a whole number from 1 on",
        ("--request-rate", "0"): "'0' is not a number above 0",
        ("--request-rate", "1", "--concurrency", "1"): "not allowed with",
        ("--concurrency", "4", "--requests", "3"): "--requests 3 is less than --concurrency 4",
        ("--request-rate", "1", "20.5", "--requests", "20"): "--requests 20 is less than --request-rate 20.5",
        ("--preview-every", "5"): "--preview-every is for --model mri_ldm_stream",
        ("--tls-ca", "ca.pem"): "give its --url",
        ("--url", "a:1", "--tls-cert", "me.crt", "--tls-key", "me.key"): "--tls-cert needs --tls-ca",
        ("--url", "a:1", "--tls-ca", "ca.pem", "--tls-cert", "me.crt"): "both --tls-cert and --tls-key",
    }.items():
        done = run_python("-m", "benchmarks.serving.analyzer", *arguments)
        assert done.returncode == 2
        assert words in done.stderr, (arguments, done.stderr)


def test_help_is_quick() -> None:
    done = run_python("-X", "importtime", "-m", "benchmarks.serving.analyzer", "--help")
    assert "--request-rate" in done.stdout
    assert not {"numpy", "tritonclient", "torch"} & set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))


# --- the plain command


def test_the_example_is_what_the_command_would_send() -> None:
    assert read(EXAMPLE) == input_data(range(64), steps=50, sampler="ddim")


def test_the_plain_commands_of_the_docs_run(perf_analyzer: Path, small_server: TritonServer) -> None:
    """Those of the first section, against another server; what is for its owner's files or a container is left out."""
    commands = re.findall(r"^\$ (perf_analyzer .*(?:\n    .*)*)", DOC.read_text(), re.MULTILINE)
    plain = [command.replace("\\\n", " ") for command in commands if "--ssl" not in command]
    assert all("--request-count 16" in command for command in plain)
    assert {"mri_ldm", "mri_ldm_stream"} <= {word for command in plain for word in shlex.split(command)}
    for command in plain:
        words = shlex.split(command.replace("gpu-box:8001", small_server.grpc_url).replace("-count 16", "-count 4"))
        words[0] = str(perf_analyzer / BINARY)
        done = subprocess.run(
            words, cwd=ROOT, env=environment(perf_analyzer), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert "Request count: 4\n" in done.stdout, done.stdout
        assert "  unet, version: 1\n" in done.stdout
    assert os.fspath(EXAMPLE.relative_to(ROOT)) in DOC.read_text()
