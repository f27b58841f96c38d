#!/usr/bin/env bash
# Runs the benchmark of the checkout in which it is called, with the kit around it (benchmarks/serving/gpu/kit.py) and
# the PyTorch of this machine's python3. Arguments go to `python -m benchmarks.serving --device gpu`. TORCH_SITE names
# the folder that holds torch/ where python3 does not find it.
set -euo pipefail
[ -f benchmarks/serving/gpu/kit.py ] || { echo "error: $PWD is no checkout of this project: call $0 in one" >&2; exit 1; }
kit=$(cd "$(dirname "$0")" && pwd)
lib=$(echo "$kit"/python/lib/python3.*)
torch=${TORCH_SITE:-$(python3 -c 'from importlib.util import find_spec; print(find_spec("torch").origin.rsplit("/", 2)[0])')}
minor=${lib##*python3.}
compgen -G "$torch/torch/_C.cpython-3$minor-*" > /dev/null ||
  { echo "error: no torch for Python 3.$minor, the kit's, in $torch: set TORCH_SITE, or pack another kit" >&2; exit 1; }
# After the kit's own packages: its NumPy 1 is the one that the server's models can use.
echo "$torch" > "$lib/site-packages/machine.pth"
unset PYTHONHOME VIRTUAL_ENV
export PYTHONPATH="$PWD/client" PYTHONUNBUFFERED=1
export LD_LIBRARY_PATH="$kit/python/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$kit/python/bin/python3" -m benchmarks.serving --device gpu "$@"
