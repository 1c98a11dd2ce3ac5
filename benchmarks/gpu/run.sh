#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and a CUDA build of torch: builds, runs the whole test suite on CPU and the operators'
# on CUDA, then the benchmarks. Leaves benchmarks/results/gpu.json and gpu.md. Arguments go to the benchmarks.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}

"$python" -c 'import torch; assert torch.cuda.is_available(), "CUDA is not available here"'
"$python" -m venv --system-site-packages build/gpu
bin=build/gpu/bin
"$bin/pip" install --quiet --editable '.[test]'

"$bin/pytest" -q
operators=(tests/test_nt_xent_loss.py tests/test_soft_assignment_pool.py tests/test_item_soft_assignment_pool.py
  tests/test_interest_softmax_loss.py tests/test_triton_kernels.py tests/test_losses_nn.py tests/test_orthogonality_loss.py)
"$bin/pytest" -q --device cuda "${operators[@]}"

export PYTHONPATH=benchmarks
"$bin/python" benchmarks/gpu/gpu_benchmarks.py "$@"
