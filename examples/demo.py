"""The whole way in one go: start a server with the demo weights, generate slices, stop the server.

python -m examples.demo
"""

import argparse
import subprocess
import sys
from pathlib import Path

from brats_ldm_client.printing import forgiving_streams
from server.errors import ServerError
from server.process import TritonServer

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the demo; returns the exit status."""
    with forgiving_streams():
        return _demo()


def _demo() -> int:
    parser = argparse.ArgumentParser("python -m examples.demo", description=(__doc__ or "").split(".")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("out/demo"), help="folder for the slices (default: %(default)s)"
    )
    parser.add_argument("-n", type=int, default=8, help="number of slices (default: %(default)s)")
    arguments = parser.parse_args()
    print("Starting tritonserver with the demo weights ...", flush=True)
    try:
        with TritonServer(ROOT / "model_repository", profile="cpu") as server:
            server.probe()
            print(f"It answers at {server.grpc_url}. Generating:", flush=True)
            command = ["generate", "-n", str(arguments.n), "--seed", "0", "--format", "png,nifti"]
            target = ["--url", server.grpc_url, "--out", str(arguments.out)]
            return subprocess.call([sys.executable, "-m", "brats_ldm_client", *command, *target])
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
