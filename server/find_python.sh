#!/bin/sh
# Prints a Python that can run the server of the nvidia-pytriton wheel: one on PATH or, where none is, CPython 3.12,
# which uv fetches into FOLDER: server/find_python.sh FOLDER. uv is the one on PATH, or comes from PyPI for the moment.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)

# Debian's Python has ensurepip, without which it makes no environments, in a package of its own.
fits='
import ensurepip, sys
from server.find import WHEEL_PYTHONS as allowed, Host
host = Host.here()
sys.exit(not (allowed[0] <= host.python <= allowed[1] and host.libpython))
'
# Only Linux has that server: elsewhere the launcher says so, and nothing need be fetched for it.
[ "$(uname)" = Linux ] || { echo python3; exit; }
for python in python3 python3.12 python3.11 python3.10; do
    if PYTHONPATH=$root "$python" -c "$fits" > /dev/null 2>&1; then
        command -v "$python"
        exit
    fi
done

echo "no Python 3.10 to 3.12 with venv and a shared libpython on PATH: fetching CPython 3.12 into $1 with uv ..." >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

uv_from_pypi() {
    if python3 -c "import pip"; then
        set -- python3 -m pip
    elif python3 -c "import ensurepip"; then
        python3 -m venv "$work/venv" || return 1
        set -- "$work/venv/bin/pip"
    else
        echo "error: there is no uv, and no python3 with pip or venv to install it"
        return 1
    fi
    # With a user's own settings of the first two, pip refuses this folder; it is neither his nor an environment.
    PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_ROOT_USER_ACTION=ignore "$@" install --quiet --disable-pip-version-check \
        --timeout 10 --retries 1 --target "$work/uv" uv
}

fetch() {
    uv=$(command -v uv) || { uv_from_pypi && uv=$work/uv/bin/uv; } || return 1
    UV_PYTHON_INSTALL_DIR=$1 UV_PYTHON_INSTALL_BIN=0 UV_NO_CACHE=1 UV_NO_PROGRESS=1 \
        UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-20} UV_HTTP_RETRIES=${UV_HTTP_RETRIES:-1} "$uv" python install 3.12
}

fetch "$1" > "$work/log" 2>&1 || {
    reason=$(grep -iE "(error|cause): " "$work/log" | tail -n 1)
    echo "error: CPython 3.12 could not be fetched (${reason#*: }): install Python 3.12 with venv and run make again," \
        "or name a Python 3.10 to 3.12 with PYTHON=" >&2
    exit 1
}
set -- "$1"/cpython-3.12.*/bin/python3.12
echo "$1"
