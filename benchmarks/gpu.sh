#!/bin/sh
# Φ on a GPU, in at most 8 minutes: sh benchmarks/gpu.sh [options of gpu.py]
#
# On a machine without network that has Python 3.12, torch and little else: collect wheels elsewhere by gpu_wheels.sh and
# copy the repository with them. They are unpacked beside the machine's packages and change none of them.
#   PYTHON   the Python that has torch (python3)
#   WHEELS   folder of the wheels (benchmarks/wheels)
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
WHEELS=${WHEELS:-benchmarks/wheels}
path=$PWD
if [ -d "$WHEELS" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    path=$path:$site
fi
PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" benchmarks/gpu.py "$@"
