"""The page of `brats-ldm studio` over a server with the demo weights, until Ctrl-C.

python -m examples.studio
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Start the server, serve the page, stop the server; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m examples.studio",
        description="Start a server with the demo weights, and the page of `brats-ldm studio` over it, until Ctrl-C.",
        epilog="Other options, such as --port and --open, go to `brats-ldm studio`.",
    )
    _, options = parser.parse_known_args()
    return _studio(options)


def _studio(options: list[str]) -> int:
    from brats_ldm_client._cli import main as brats_ldm
    from server.errors import ServerError
    from server.process import TritonServer

    print("Starting tritonserver with the demo weights ...", flush=True)
    try:
        with TritonServer(ROOT / "model_repository", profile="cpu") as server:
            server.probe()
            return brats_ldm(["studio", "--url", server.grpc_url, *options])
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
