"""capsule_routing: the routing of MIND and ComiRec-DR as their code has it, on every backend."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checking import BACKENDS, needs_triton, to_jagged
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmi_fast.functional import capsule_routing

MAPS = ["shared", "interest", "position"]
# Triton has no kernels for maps by place.
KINDS = [(backend, maps) for backend in BACKENDS for maps in MAPS if (backend, maps) != ("triton", "position")]


def make(
    batch: int, length: int, d: int, e: int, k: int, maps: str, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    leading = {"shared": (), "interest": (k,), "position": (length, k)}[maps]
    return {
        "items": torch.randn(batch, length, d, dtype=dtype),
        "maps": torch.randn(*leading, e, d, dtype=dtype) / d**0.5,
        "interests": k,
        "lengths": torch.randint(0, length + 1, (batch,)),
        "bias": torch.randn(e, dtype=dtype) / 2,
        "logits": torch.randn(batch, length, k, dtype=dtype),
        "active": torch.randint(1, k + 1, (batch,)),
    }


def literal(
    items: Tensor,
    maps: Tensor,
    interests: int,
    lengths: Tensor,
    bias: Tensor,
    logits: Tensor,
    active: Tensor,
    iterations: int = 3,
) -> Tensor:
    """One user, one item, one interest at a time. The weights of the last iteration are constants."""
    routed = []
    for b, n in enumerate(lengths.tolist()):
        count = int(active[b])

        def map_of(t: int, k: int) -> Tensor:
            return (maps, maps[k % maps.shape[0]], maps[t, k] if maps.dim() == 4 else maps)[maps.dim() - 2]

        u = [[map_of(t, k) @ items[b, t] + bias for k in range(count)] for t in range(n)]
        scores = [[float(logits[b, t, k]) for k in range(count)] for t in range(n)]
        for _ in range(iterations):
            capsules = []
            weights = [[math.exp(s) / sum(map(math.exp, row)) for s in row] for row in scores]  # over the interests
            for k in range(count):
                z = torch.zeros(maps.shape[-2], dtype=items.dtype)
                for t in range(n):
                    z = z + weights[t][k] * u[t][k]
                square = z @ z
                capsules.append(square / (1 + square) * z / torch.sqrt(square + 1e-9))
            for t in range(n):
                for k in range(count):
                    scores[t][k] += float(u[t][k].detach() @ capsules[k].detach())
        zeros = [torch.zeros(maps.shape[-2], dtype=items.dtype)] * (interests - count)
        routed.append(torch.stack(capsules + zeros))
    return torch.stack(routed)


@pytest.mark.parametrize(("backend", "maps"), KINDS)
@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_value_and_gradient_equal_the_equations(backend: str, maps: str, iterations: int) -> None:
    inputs = make(4, 5, 3, 2, 3, maps)
    names = ("items", "maps", "bias")
    leaves = [inputs[name].requires_grad_() for name in names]
    cotangent = torch.randn(4, 3, 2, dtype=torch.float64)
    results = [
        [output, *torch.autograd.grad(output, leaves, cotangent)]
        for output in (
            capsule_routing(**inputs, iterations=iterations, backend=backend),
            literal(**inputs, iterations=iterations),
        )
    ]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(("backend", "maps"), [kind for kind in KINDS if kind[1] != "shared"])
def test_defaults(backend: str, maps: str) -> None:
    """Logits of zero, no bias, all interests active, all items valid."""
    inputs = make(2, 4, 3, 3, 2, maps)
    literal_inputs = {
        **inputs,
        "lengths": torch.tensor([4, 4]),
        "bias": torch.zeros(3),
        "logits": torch.zeros(2, 4, 2),
        "active": torch.tensor([2, 2]),
    }
    ours = capsule_routing(inputs["items"], inputs["maps"], 2, backend=backend)
    torch.testing.assert_close(ours, literal(**literal_inputs))


@pytest.mark.parametrize(("backend", "maps"), KINDS)
@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
def test_gradcheck_of_the_last_iteration(backend: str, maps: str, jagged: bool) -> None:
    """With one iteration weights are the logits' and constant: the gradient is the function's own."""
    inputs = make(3, 4, 3, 2, 2, maps)
    lengths = torch.tensor([4, 0, 2])
    options: dict[str, Any] = {"lengths": lengths, "logits": inputs["logits"]}
    if jagged:
        logits, offsets = to_jagged(inputs["logits"], lengths)
        inputs["items"], _ = to_jagged(inputs["items"], lengths)
        options = {"offsets": offsets, "logits": logits}
    leaves = [inputs[name].requires_grad_() for name in ("items", "maps", "bias")]
    cotangent = torch.randn(3, 2, 2, dtype=torch.float64)

    def routed(items: Tensor, maps: Tensor, bias: Tensor) -> Tensor:
        output = capsule_routing(items, maps, 2, bias=bias, iterations=1, **options, backend=backend)
        return (output * cotangent).sum()

    assert torch.autograd.gradcheck(routed, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_get_no_gradient(backend: str) -> None:
    inputs = make(2, 4, 3, 2, 2, "shared")
    inputs["logits"].requires_grad_()
    inputs["maps"].requires_grad_()
    capsule_routing(**inputs, backend=backend).sum().backward()
    assert inputs["logits"].grad is None
    assert inputs["maps"].grad.any()


@pytest.mark.parametrize(("backend", "maps"), KINDS)
def test_padding_does_not_matter(backend: str, maps: str) -> None:
    inputs = make(4, 5, 3, 2, 2, maps)
    inputs["lengths"] = torch.tensor([5, 0, 2, 3])
    padding = torch.arange(5) >= inputs["lengths"][:, None]
    clean = capsule_routing(**inputs, backend=backend)
    inputs["items"] = inputs["items"].masked_fill(padding[..., None], math.nan).requires_grad_()
    inputs["logits"] = inputs["logits"].masked_fill(padding[..., None], math.nan)
    inputs["maps"].requires_grad_()
    routed = capsule_routing(**inputs, backend=backend)
    torch.testing.assert_close(routed, clean)
    assert not routed[1].any()
    routed.square().sum().backward()
    assert not inputs["items"].grad[padding].any()
    assert inputs["items"].grad[~padding].any(-1).all()
    assert inputs["maps"].grad.isfinite().all()


@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 5),
    length=st.integers(1, 9),
    kind=st.sampled_from(KINDS),
    index=st.sampled_from([torch.int32, torch.int64]),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_properties(seed: int, batch: int, length: int, kind: tuple[str, str], index: torch.dtype) -> None:
    torch.manual_seed(seed)
    backend, maps = kind
    inputs = make(batch, length, 4, 3, 3, maps)
    inputs["lengths"] = inputs["lengths"].to(index)
    routed = capsule_routing(**inputs, backend=backend)
    assert (routed.norm(dim=-1) < 1).all()  # what squashing leaves
    items, lengths, logits, active = (inputs.pop(name) for name in ("items", "lengths", "logits", "active"))
    users = torch.randperm(batch)
    torch.testing.assert_close(
        capsule_routing(
            items[users], lengths=lengths[users], logits=logits[users], active=active[users], **inputs, backend=backend
        ),
        routed[users],
    )
    rows, offsets = to_jagged(items, lengths.long())
    torch.testing.assert_close(
        capsule_routing(
            rows,
            offsets=offsets.to(index),
            logits=to_jagged(logits, lengths.long())[0],
            active=active,
            **inputs,
            backend=backend,
        ),
        routed,
    )


@pytest.mark.parametrize(("backend", "maps"), KINDS)
def test_empty_sequences_and_batches(backend: str, maps: str) -> None:
    inputs = make(2, 5, 4, 6, 3, maps)
    items, matrix = inputs["items"], inputs["maps"]
    none = torch.zeros(2, dtype=torch.int64)
    for empty in (
        capsule_routing(items, matrix, 3, none, backend=backend),
        capsule_routing(items[:, :0], matrix, 3, backend=backend),
        capsule_routing(items[0, :0], matrix, 3, offsets=torch.zeros(3, dtype=torch.int64), backend=backend),
    ):
        assert torch.equal(empty, torch.zeros(2, 3, 6, dtype=torch.float64))
    assert capsule_routing(items[:0], matrix, 3, backend=backend).shape == (0, 3, 6)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, r"items: expected a tensor \[B, L, d\], found NoneType", {"items": None}),
        (ValueError, r"maps: expected shape \[6, 4\]", {"maps": torch.zeros(6, 3)}),
        (ValueError, r"maps: expected shape \[3, 6, 4\]", {"maps": torch.zeros(2, 6, 4)}),
        (ValueError, r"maps: expected at least 5 places", {"maps": torch.zeros(4, 3, 6, 4)}),
        (ValueError, r"interests: expected at least 1, found 0", {"interests": 0}),
        (ValueError, r"iterations: expected at least 1, found 0", {"iterations": 0}),
        (ValueError, r"bias: expected shape \[6\]", {"bias": torch.zeros(5)}),
        (ValueError, r"logits: expected shape \[2, 5, 3\]", {"logits": torch.zeros(2, 5, 4)}),
        (ValueError, r"active\[1\]: expected a value in \[1, 4\), found 0", {"active": torch.tensor([3, 0])}),
        (TypeError, r"maps: expected dtype torch.float32", {"maps": torch.zeros(6, 4).double()}),
        (ValueError, r"capsule_routing has no 'cuda' kernel", {"backend": "cuda"}),
    ],
)
def test_bad_arguments(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    inputs = make(2, 5, 4, 6, 3, "shared", torch.float32)
    with pytest.raises(error, match=message):
        capsule_routing(**{**inputs, **arguments})


@needs_triton
def test_triton_refuses_maps_by_place() -> None:
    inputs = make(2, 5, 4, 6, 3, "position", torch.float32)
    with pytest.raises(ValueError, match="cannot run on 'triton': it has no kernel for maps that differ by place"):
        capsule_routing(**inputs, backend="triton")
