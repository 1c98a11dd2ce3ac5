#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and a CUDA build of torch: builds, runs the operators' tests on CUDA, the benchmarks,
# then the whole test suite on the CPU, and the CUDA kernels' tests under compute-sanitizer. Leaves
# benchmarks/results/gpu.json and gpu.md. Arguments go to the benchmarks; --rehearse runs the same lines where no GPU
# is, on the installed package, and only collects the tests.
#
# PYTHON names the Python that has torch. What the package and its tests need besides is taken from there too, or
# fetched; where nothing can be fetched, PIP_NO_INDEX=1 and PIP_FIND_LINKS name a folder of wheels.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
rehearse=$([[ " $* " == *" --rehearse "* ]] && echo yes || true)
device=cuda
collect=()

if [ "$rehearse" ]; then
  device=cpu
  collect=(--collect-only)
else
  "$python" -c 'import torch; assert torch.cuda.is_available(), "CUDA is not available here"'
  "$python" -m venv --clear build/gpu
  # Not --system-site-packages, which are not those of $PYTHON where that is a virtual environment itself.
  packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  python=build/gpu/bin/python
  echo "$packages" >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
  "$python" -m pip install --quiet 'setuptools>=77' 'cmake>=3.22' ninja
  "$python" -m pip install --quiet --no-build-isolation --editable '.[test]'
fi

operators=(tests/test_nt_xent_loss.py tests/test_soft_assignment_pool.py tests/test_item_soft_assignment_pool.py
  tests/test_interest_softmax_loss.py tests/test_self_attentive_pool.py tests/test_capsule_routing.py
  tests/test_triton_kernels.py tests/test_triton_layers.py tests/test_triton_tuning.py tests/test_losses_nn.py
  tests/test_orthogonality_loss.py)
"$python" -m pytest -q --device "$device" "${collect[@]}" "${operators[@]}"

PYTHONPATH="benchmarks${PYTHONPATH:+:$PYTHONPATH}" "$python" benchmarks/gpu/gpu_benchmarks.py "$@"

"$python" -m pytest -q "${collect[@]}"

# The CUDA C++ kernels alone: what torch's own read is not ours to judge. Freed memory is not kept, lest errors hide
# in it.
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
if [ ! "$rehearse" ] && [ -x "$sanitizer" ] && [ -e cmi_fast/libcmi_fast_cuda.so ]; then
  for tool in memcheck racecheck initcheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 1 --kernel-regex kns=cmi_fast \
      "$python" -m pytest -q --device cuda tests/test_nt_xent_loss.py tests/test_soft_assignment_pool.py \
      tests/test_item_soft_assignment_pool.py tests/test_interest_softmax_loss.py -k 'cuda and not properties'
  done
fi
