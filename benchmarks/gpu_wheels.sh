#!/bin/sh
# Wheels that gpu.sh needs on a machine with torch and without network, for Python 3.12 on Linux (x86-64).
#
#   sh benchmarks/gpu_wheels.sh                          # into benchmarks/wheels
#   sh benchmarks/gpu_wheels.sh --has numpy scipy        # without packages that the machine has
#   sh benchmarks/gpu_wheels.sh --list                   # what would be collected
#   CUEQ=cu12 sh benchmarks/gpu_wheels.sh                # cuequivariance's kernels for CUDA 12, in place of 13
#
# What the library and pytest need, in the versions of constraints.txt, but for torch and what only torch needs.
#   PYTHON   a Python in which the library is installed (.venv/bin/python)
#   WHEELS   where wheels go
#   CUEQ     cu12, cu13 or none
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
WHEELS=${WHEELS:-benchmarks/wheels}
CUEQ=${CUEQ:-cu13}

needed() {
    "$PYTHON" - "$@" <<'PY'
import re
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

THERE = {"python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux", "extra": ""}
pinned = {}
for line in Path("constraints.txt").read_text().splitlines():
    if line and not line.startswith("#"):
        one = Requirement(line)
        if one.marker is None or one.marker.evaluate(THERE):
            pinned[canonicalize_name(one.name)] = str(one.specifier)
seen = {canonicalize_name(name) for name in ("torch", "setuptools", "pip", *sys.argv[1:])}
waiting, found = ["phi-equivariant", "pytest", "pytest-xdist"], []
while waiting:
    name = canonicalize_name(waiting.pop())
    if name in seen:
        continue
    seen.add(name)
    if name != "phi-equivariant":
        found.append(name + pinned.get(name, ""))
    try:
        wanted = map(Requirement, requires(name) or [])
    except PackageNotFoundError:
        continue
    waiting += [r.name for r in wanted if r.marker is None or r.marker.evaluate(THERE)]
print("\n".join(sorted(found)))
PY
}

list=no
case "${1:-}" in
--list) list=yes && shift ;;
esac
case "${1:-}" in
--has) shift ;;
esac
names=$(needed "$@")
[ "$CUEQ" = none ] || names="$names
cuequivariance
cuequivariance-torch
cuequivariance-ops-$CUEQ
cuequivariance-ops-torch-$CUEQ
nvidia-ml-py
platformdirs"
if [ $list = yes ]; then
    echo "$names"
    exit
fi

platforms=""
for minor in 5 12 17 24 26 27 28 31 34; do
    platforms="$platforms --platform manylinux_2_${minor}_x86_64"
done
for name in manylinux1 manylinux2010 manylinux2014; do
    platforms="$platforms --platform ${name}_x86_64"
done
mkdir -p "$WHEELS"
"$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$WHEELS" .
missing=""
for name in $names; do
    # shellcheck disable=SC2086  # a list of words
    "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version 3.12 \
        $platforms --dest "$WHEELS" "$name" 2>/dev/null && continue
    # No wheel for that Python: a package without compiled code is built here, and fits everywhere.
    built=$(mktemp -d)
    if "$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$built" "$name" && ls "$built"/*-none-any.whl >/dev/null 2>&1
    then
        mv "$built"/*.whl "$WHEELS"
    else
        missing="$missing $name"
    fi
    rm -rf "$built"
done
echo "$(ls "$WHEELS" | wc -l) wheels, $(du -sh "$WHEELS" | cut -f1), in $WHEELS"
if [ -n "$missing" ]; then
    echo "gpu_wheels.sh: no wheel for:$missing" >&2
    exit 1
fi
