#!/bin/sh
# Checks and times the CUDA kernels on a machine with an NVIDIA GPU, in under 8 minutes:
#
#     sh benchmarks/gpu.sh [RESULT.json]
#
# Needs Python 3.11 or newer (PYTHON names another than python3) and the driver. Makes a virtual
# environment in a temporary folder, with torch and CuPy for the driver's version of CUDA.
set -eu
cd "$(dirname "$0")/.."
result=${1:-gpu.json}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python=$folder/venv/bin/python

cuda=$(nvidia-smi | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p' | head -n 1)
echo "The driver supports CUDA ${cuda:?nvidia-smi names no version of CUDA}." >&2
if [ "$cuda" -ge 13 ]; then
    torch='torch>=2.11' extra=cuda13
else
    torch='torch>=2.6,<2.11' extra=cuda12
fi
"$python" -m pip install -q "$torch" ".[test,$extra]"
"$python" -c 'import torch; print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")' >&2

tests=passed
(cd "$folder" && timeout 240 "$python" -m pytest -q -m gpu -c "$OLDPWD/pyproject.toml" \
    -p no:cacheprovider "$OLDPWD/tests/test_cuda_gpu.py") || tests=failed
timeout 180 "$python" benchmarks/gpu_kernels.py "$result"
echo "GPU tests: $tests. Numbers: $result."
test "$tests" = passed
