"""Seconds and peak memory of one training iteration, of each stage of the shipped configurations.

    python -m benchmarks.micro.training_speed --out benchmarks/training_speed.json

Each case runs in a process of its own, so that its peak memory is its own. Batches are random numbers: reading data is
not measured, nor is the perceptual network of stage 1. --slices makes a batch smaller that the machine cannot hold; the
table says how large it was.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.harness.command import parser, write_record
from benchmarks.harness.markdown import Record
from benchmarks.tables.micro import iterations
from training.cli import run_command

CASES = (("demo", "autoencoder"), ("demo", "diffusion"), ("brats", "autoencoder"), ("brats", "diffusion"))


def measure(name: str, stage: str, slices: int, iterations: int) -> Record:
    """One case, in this process: median seconds of an iteration after the first, and peak memory in GB."""
    import torch

    from training.config import load_config
    from training.losses import alpha_bars_of
    from training.networks import build_autoencoder, build_discriminator, build_unet
    from training.processes import joined
    from training.update import Trained, update_autoencoder, update_unet

    config, processes = load_config(name), joined()
    settings = config.autoencoder_training if stage == "autoencoder" else config.diffusion_training
    rows = min(slices, settings.volumes_per_batch * settings.slices_per_volume)
    size = config.data.size if stage == "autoencoder" else 64
    batch = {0: torch.rand(rows, 1, size, size).to(processes.device)}
    networks: list[torch.nn.Module] = [build_unet(config.unet)]
    if stage == "autoencoder":
        networks = [build_autoencoder(config.autoencoder), build_discriminator(config.discriminator)]
    trained = [Trained(network, settings, processes) for network in networks]
    alpha_bars = alpha_bars_of(config.noise_schedule).to(processes.device)
    seconds = []
    for iteration in range(iterations + 1):
        started = time.perf_counter()
        for network in trained:
            network.begin(settings.learning_rate)
        if stage == "autoencoder":
            update_autoencoder(trained[0], trained[1], None, batch, iteration, config)
        else:
            update_unet(trained[0], batch, alpha_bars, iteration, replace(config, seed=1))
        seconds.append(time.perf_counter() - started)
    on_gpu = processes.device.type == "cuda"
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "config": name,
        "stage": stage,
        "batch": rows,
        "seconds": round(statistics.median(seconds[1:]), 4),
        "peak_gb": round((torch.cuda.max_memory_allocated() if on_gpu else host) / 1e9, 2),
        "device": torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads",
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    command = parser("benchmarks.micro.training_speed", __doc__, "out")
    command.add_argument("--slices", type=int, default=4, help="largest batch (default: %(default)s)")
    command.add_argument("--iterations", type=int, default=3, help="timed iterations a case (default: %(default)s)")
    command.add_argument("--case", nargs=2, metavar=("CONFIG", "STAGE"), help="measure only this case, in this process")
    options = command.parse_args(argv)
    if options.case:
        name, stage = options.case
        print(json.dumps(measure(name, stage, options.slices, options.iterations)))
        return 0

    from benchmarks.harness.machine import describe

    machine, rows = describe(), []
    for name, stage in CASES:
        case = ["--case", name, stage, "--slices", str(options.slices if name == "brats" else 1000)]
        module = [sys.executable, "-m", "benchmarks.micro.training_speed", "--iterations", str(options.iterations)]
        done = subprocess.run([*module, *case], check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout))
    print("\n".join(iterations(rows)))
    if options.out:
        write_record(options.out, {"machine": machine, "rows": rows})
    return 0


if __name__ == "__main__":
    run_command(main)
