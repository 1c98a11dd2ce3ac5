"""Compile every Triton kernel to machine code as the operators launch it, for a GPU that need not be there.

``python compile_triton.py CAPABILITY DTYPE FP32_PRECISION``, where Triton's interpreter is off. Prints a line of JSON
for each kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from cmi_fast.triton import (
    capsule_routing,
    interest_softmax_loss,
    item_soft_assignment_pool,
    nt_xent_loss,
    rows,
    self_attentive_pool,
    soft_assignment_pool,
)

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
M, D, L = 8, 64, 50  # the paper's, but for the number of users
K = 4  # interests of the other models
OF_CMI = rows, nt_xent_loss, soft_assignment_pool, item_soft_assignment_pool, interest_softmax_loss
OF_OTHERS = self_attentive_pool, capsule_routing


class AbsentGPU:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_instead(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    compiled = kernel.warmup(*arguments, grid=grid, **constants)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        report = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    stack = int(re.search(r"STACK:(\d+)", report.stdout)[1])
    instructions = [name for name in ("wgmma", "mma.sync") if name in compiled.asm["ptx"]]
    name = f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.__name__}"
    shared = compiled.metadata.shared
    print(json.dumps({"kernel": name, "stack": stack, "shared": shared, "matrix": instructions}), flush=True)


def launch_all(dtype: torch.dtype, fp32_precision: str) -> None:
    many, few = torch.zeros(8192, D, dtype=dtype), torch.zeros(4, D, dtype=dtype)
    temperature = torch.tensor(0.1)
    modes = (many, 0.1, None, "all"), (many, 0.01, None, "all"), (few, 1.0, temperature, "cross_view")
    for first, number, tensor, negatives in modes:
        options = first, first, number, tensor, negatives, "both", tensor is None, fp32_precision
        losses, log_sum = nt_xent_loss.forward(*options)
        nt_xent_loss.backward(losses, log_sum, *options, True, True, tensor is not None)
    categories, table = torch.zeros(M, D, dtype=dtype), torch.zeros(300, D, dtype=dtype)
    lengths, ids = torch.zeros(4, dtype=torch.int64), torch.zeros(4, L, dtype=torch.int64)
    pooling = categories, lengths, None, torch.zeros(3, 4, L, dtype=torch.bool), 0.1, None
    for operator, inputs in ((soft_assignment_pool, (table[ids],)), (item_soft_assignment_pool, (ids, table))):
        pooled = operator.forward(*inputs, *pooling)
        operator.backward(pooled, *inputs, *pooling, True, True, True)
    weight, queries, places = torch.zeros(4 * D, D), torch.zeros(K, 4 * D), torch.zeros(L, D)
    attentive = table[ids], weight, queries, weight[:, 0], places, lengths, None
    pooled, attention = self_attentive_pool.forward(*attentive)
    self_attentive_pool.backward(pooled, attention, *attentive, *[True] * 5)
    logits, active = torch.zeros(4, L, K), torch.ones(4, dtype=torch.int64)
    for maps in (1, K):
        routing = table[ids], torch.zeros(1, maps, D, D), places[0], logits, active, lengths, None, K, 3
        result, *saved = capsule_routing.forward(*routing)
        capsule_routing.backward(result, *saved, *routing, True, True, True)
    bias, candidate_ids = torch.zeros(300, dtype=dtype), torch.zeros(300, dtype=torch.int64)
    softmax = few[:, None].repeat(1, M, 1), table, lengths, few, bias, None, candidate_ids, 0.1, None, fp32_precision
    losses, log_sum = interest_softmax_loss.forward(*softmax)
    interest_softmax_loss.backward(losses, log_sum, *softmax, *[True] * 5)


if __name__ == "__main__":
    triton.runtime.driver.set_active(AbsentGPU(int(sys.argv[1])))
    for module in (*OF_CMI, *OF_OTHERS):
        module.launch = compile_instead
    launch_all(getattr(torch, sys.argv[2]), sys.argv[3])
