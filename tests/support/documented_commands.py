"""Every command that README, docs and the Makefile show: which test runs it, or why none does.

A program is the part of a command before its arguments: a module, a subcommand, a target. `test_documented_commands.py`
holds that no program is missing here and none is left over, and that every option shown exists. It runs IN_SMALL from a
copy of the checkout, as a user would.
"""

from __future__ import annotations

IN_SMALL: dict[str, str] = {
    "make": "",
    "make help": "",
    # Own weights, from data to a repository: two volumes, tiny networks.
    "python -m training.phantom": "--out data/phantom --volumes 2",
    "python -m training.reconstruct": (
        "--snapshot runs/autoencoder/snapshot --data data/phantom --section training --volumes 1 --slices-per-volume 2 "
        "--out out/reconstruction"
    ),
    "python -m training.sample": "--snapshot runs/diffusion/snapshot -n 20 --steps 1 --out out/samples",
    "python -m training.align_steps": (
        "--snapshot runs/diffusion/snapshot --data data/phantom --paths 2 --candidates 24 --batch 2 "
        "--picture out/grids.png"
    ),
    "python -m training.evaluation.slices": "--data data/phantom --section training --count 20 --out out/real",
    "python -m training.evaluation": (
        "--real out/real --synthetic out/real --features runs/diffusion/snapshot --pairs 8"
    ),
    "python -m export check": "build/model_repository --profile cpu",
    "python -m export to-monai": "runs/diffusion/snapshot --out out/monai",
    "python -m export from-monai": "out/monai --config tiny.toml --scale-factor 0.8 --out runs/monai",
    "python deploy/container.py prepare": "--source=build/model_repository --into=/models --dry-run",
    "python -m benchmarks.micro.training_speed": "--case demo diffusion --slices 1 --iterations 1",
    "python -c": '\'import openvino; print(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))\'',
    # A server with the demo weights, which the last of these drains.
    "brats-ldm ready": "--url URL --deep --timeout 60",
    "brats-ldm info": "--url URL",
    "brats-ldm generate": "--url URL -n 2 --steps 2 --sampler dpmpp_2m --out out/slices --format png,nifti",
    "brats-ldm labels": "--data data/phantom --out out/library.npz --count 20",
    "brats-ldm report": "out/slices --out out/report.html --title Slices",
    "brats-ldm animate": "--url URL --seed 42 --steps 4 --every 2 --out out/denoising.webp",
    "brats-ldm bulk": "--url URL --count 3 --seed-base 0 --preset fast --format webdataset --out out/bulk",
    "brats-ldm verify": "out/bulk --url URL --sample 1",
    "brats-ldm calibrate": "--url URL --steps 10 -n 1000 --rows 1 2",
    "python model_repository/mri_ldm/1/drain.py": "DRAIN --grace 30",
    "make clean": "VENV=out/no-venv",
}
"""Program to arguments. URL and DRAIN belong to the server of the test."""

BY_TESTS: dict[str, str] = {
    "brats-ldm studio": "test_studio_command.py",
    "haproxy -W": "balancer.py",
    "kubectl kustomize": "manifests.py",
    "make bench": "test_serving_benchmark.py",
    "make demo": "test_demo.py",
    "make lesions": "test_demo.py",
    "make studio": "test_page_pictures.py",
    "make gpu": "test_gpu_benchmark.py",
    "make gpu-kit": "test_gpu_benchmark.py",
    "make perf-analyzer": "test_perf_analyzer.py",
    "make serve": "test_server_launcher.py",
    "make test-reliability": "test_reliability.py",
    "perf_analyzer": "test_perf_analyzer.py",
    "prometheus": "test_observability_monitoring.py",
    "python -m benchmarks.bulk": "test_bulk_benchmark.py",
    "python -m benchmarks.commands": "test_report.py",
    "python -m benchmarks.cost": "test_cost_benchmark.py",
    "python -m benchmarks.micro.cpu_path": "test_cpu_path.py",
    "python -m benchmarks.micro.loop": "test_loop_benchmark.py",
    "python -m benchmarks.micro.rewrite": "test_rewrite_benchmark.py",
    "python -m benchmarks.quality": "test_quality.py",
    "python -m benchmarks.report": "test_report.py",
    "python -m benchmarks.scale": "test_scale_benchmark.py",
    "python -m benchmarks.serving": "test_serving_benchmark.py",
    "python -m benchmarks.serving.analyzer": "test_perf_analyzer.py",
    "python -m benchmarks.serving.analyzer.fetch": "conftest.py",
    "python -m export gate": "test_openvino_gate.py",
    "python -m export parity": "test_parity.py",
    "python -m export repository": "conftest.py",
    "python -m server": "test_server_launcher.py",
    "socat -": "balancer.py",
    "python -m training.distil_decoder": "test_distil_decoder.py",
    "python -m training.evaluation.labels": "test_evaluation_labels.py",
    "python -m training.plot": "test_training_verbs.py",
    "python -m training.train_autoencoder": "test_training_processes.py",
    "python -m training.train_diffusion": "test_training_processes.py",
    "sbatch": "test_slurm.py",
    "torchrun training.train_autoencoder": "test_training_processes.py",
    "torchrun training.train_diffusion": "test_training_processes.py",
    "sh deploy/kubernetes/prometheus-rule.sh": "manifests.py",
    "tritonserver": "test_deploy.py",
}
"""Program to the test file that runs it with other arguments."""

NO_CONTAINERS = "needs a container engine, which no test has"
NO_CLUSTER = "needs a cluster, which no test has; tests render and validate what it would send"

NOT_RUN: dict[str, str] = {
    "apt-get download": "tests/support/fetch_debian.sh does the same for the tests",
    "docker build": NO_CONTAINERS,
    "docker compose": NO_CONTAINERS,
    "docker push": NO_CONTAINERS,
    "docker run": NO_CONTAINERS,
    "docker stop": NO_CONTAINERS,
    "docker volume": NO_CONTAINERS,
    "helm upgrade": NO_CLUSTER,
    "kubectl apply": NO_CLUSTER,
    "kubectl create": NO_CLUSTER,
    "kubectl label": NO_CLUSTER,
    "kubectl port-forward": NO_CLUSTER,
    "kubectl rollout": NO_CLUSTER,
    "make check": "continuous integration runs it before the tests",
    "make demo-weights": "takes hours; IN_SMALL has its commands",
    "make test": "is this run",
    "make test-fast": "is a part of this run",
    "cp -r": "copies a folder; any other way will do",
    "mkdir -p": "makes a folder; any other way will do",
    "openssl rand": "makes a secret; any other way will do",
    "pip install": "installs packages; the tests run in what `make test` installed",
    "pytest": "is shown for tests that need a GPU; all others are this run",
    "python -m training.<verb>": "is a placeholder for the other commands",
    "python /models/mri_ldm/1/drain.py": "is drain.py inside a container, which needs a cluster",
    "ssh -N": "makes a tunnel to another machine; any other way will do",
    "tensorboard": "shows a page; tests read the same files",
}
"""Program to the reason why no test runs it."""
