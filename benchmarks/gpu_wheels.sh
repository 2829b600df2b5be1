#!/usr/bin/env bash
# Wheels of what benchmarks/gpu.py and a fit on volumes need beside torch, timm, lightning, torchmetrics, safetensors,
# rich and matplotlib, for a GPU machine that reaches no registry: at most 60 MiB.
#
#     benchmarks/gpu_wheels.sh WHEELS [PYTHON_VERSION]     here, where the registry is; PYTHON_VERSION is 3.12 if not given
#     pip install --no-index --no-deps WHEELS/*.whl        there; then: python benchmarks/gpu.py
#
# Versions are those of requirements.lock. Without av, nibabel, SimpleITK, pydicom and torchio a fit on volumes runs all
# the same; videos, raw medical files and augmentation need them.
set -euo pipefail
folder=${1:?usage: benchmarks/gpu_wheels.sh WHEELS [PYTHON_VERSION]} version=${2:-3.12}
cd "$(dirname "$0")/.."
needed='webdataset|braceexpand|jsonargparse|typeshed-client|docstring-parser|importlib-resources|orjson|xxhash|blosc2|ndindex|msgpack|numexpr|platformdirs|py-cpuinfo|pyyaml'
grep -iE "^($needed)==" requirements.lock | sed 's/ *[;#\\].*//' > "${TMPDIR:-/tmp}/gpu_wheels.$$"
trap 'rm -f "${TMPDIR:-/tmp}/gpu_wheels.$$"' EXIT
python="$(command -v .venv/bin/python || command -v python3)"
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform any \
  --dest "$folder" --requirement "${TMPDIR:-/tmp}/gpu_wheels.$$"
"$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$folder" .
megabytes=$(du -sm "$folder" | cut -f1)
echo "$folder: $(ls "$folder" | wc -l) wheels, $megabytes MiB"
[ "$megabytes" -le 60 ] || { echo "more than the 60 MiB that may be carried" >&2; exit 1; }
