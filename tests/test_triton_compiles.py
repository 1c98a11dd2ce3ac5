"""Every Triton kernel compiles to machine code for GPUs that need not be there. Running them is another matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checking import needs_triton

pytestmark = needs_triton

KERNELS = {
    "rows.unit_rows_backward_kernel",
    "nt_xent_loss.panel_kernel",
    "nt_xent_loss.forward_kernel",
    "nt_xent_loss.anchor_weight_kernel",
    "nt_xent_loss.gradient_kernel",
    "soft_assignment_pool.forward_kernel",
    "soft_assignment_pool.backward_kernel",
    "item_soft_assignment_pool.sum_by_id_kernel",
    "self_attentive_pool.score_kernel",
    "self_attentive_pool.pool_kernel",
    "self_attentive_pool.score_gradient_kernel",
    "self_attentive_pool.item_gradient_kernel",
    "self_attentive_pool.parameter_gradient_kernel",
    "self_attentive_pool.place_gradient_kernel",
    "capsule_routing.forward_kernel",
    "capsule_routing.sum_gradient_kernel",
    "capsule_routing.pooled_gradient_kernel",
    "capsule_routing.item_gradient_kernel",
    "capsule_routing.map_gradient_kernel",
    "capsule_routing.bias_gradient_kernel",
    "interest_softmax_loss.forward_kernel",
    "interest_softmax_loss.weight_kernel",
    "interest_softmax_loss.user_gradient_kernel",
    "interest_softmax_loss.candidate_gradient_kernel",
}


@pytest.mark.parametrize(
    ("capability", "dtype", "fp32_precision", "matrix"),
    [(90, "bfloat16", "ieee", "wgmma"), (80, "float32", "ieee", None), (80, "float32", "tf32", "mma.sync")],
    ids=["H100-bfloat16", "A100-float32", "A100-tf32"],
)
def test_kernels_compile(tmp_path: Path, capability: int, dtype: str, fp32_precision: str, matrix: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_triton.py"), str(capability), dtype, fp32_precision],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in compiled} == KERNELS
    for kernel in compiled:
        assert kernel["shared"] <= 99 * 1024, kernel  # what the smallest of these GPUs gives one block
        assert kernel["stack"] <= 64, kernel  # registers that did not fit: a few are no harm
        if kernel["kernel"] == "nt_xent_loss.gradient_kernel" and matrix is not None:
            assert kernel["matrix"], kernel
    # Of float32 the tensor cores would round the factors: nothing but an explicit "tf32" may take them there.
    assert any(matrix in kernel["matrix"] for kernel in compiled) if matrix else not any(k["matrix"] for k in compiled)
