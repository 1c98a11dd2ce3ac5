"""The Triton kernels of the other models' layers, in Triton's interpreter: as test_triton_kernels has it for CMI's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checking import assert_within_budget, needs_native, needs_triton, with_gradients
from test_self_attentive_pool import make as make_attentive
from test_triton_kernels import HALF, HALF_TOLERANCE, assert_halves_within
from torch import Tensor

from cmi_fast import reference
from cmi_fast.functional import self_attentive_pool

pytestmark = [needs_triton, pytest.mark.usefixtures("poisoned")]

FEW_ROUNDINGS = 8 * torch.finfo(torch.float32).eps  # of sums whose order differs
NAMES = ("items", "weight", "queries", "bias", "positions")

# B, L, d, h, K. A block has 16 items; dimensions and hidden columns come in tiles of up to 64, of fewer with many
# interests.
ATTENTIVE = [
    pytest.param(2, 5, 3, 7, 2, id="odd"),
    pytest.param(2, 16, 64, 128, 4, id="aligned"),
    pytest.param(2, 17, 65, 65, 17, id="one-past-every-tile"),
    pytest.param(1, 1, 1, 1, 1, id="smallest"),
    pytest.param(2, 20, 40, 20, 130, id="many-interests"),
    pytest.param(5, 3, 5, 6, 2, id="several-sequences-a-part"),
]


@pytest.fixture
def _few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few sequences are already more than a part's, and more than are summed at once."""
    monkeypatch.setattr("cmi_fast.triton.self_attentive_pool.PARTS", 2)
    monkeypatch.setattr("cmi_fast.triton.self_attentive_pool.BLOCK_SEQUENCES", 4)


def attentive(
    function: Callable[..., Tensor], lengths: Tensor | None, offsets: Tensor | None, **options: str
) -> Callable[..., Tensor]:
    def pool(*inputs: Tensor) -> Tensor:
        given = dict(zip(NAMES, inputs, strict=False))
        return function(**given, lengths=lengths, offsets=offsets, **options)

    return pool


def make_pooling(
    batch: int, length: int, d: int, h: int, k: int, jagged: bool, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """Items, NaN beyond the lengths, and parameters; lengths or offsets."""
    made = make_attentive(batch, length, d, h, k, dtype)
    made["queries"] /= h**0.5
    lengths = made["lengths"]
    lengths[0] = length
    inside = torch.arange(length) < lengths[:, None]
    made["items"][~inside] = torch.nan
    inputs = [made[name] for name in NAMES]
    if not jagged:
        return inputs, {"lengths": lengths, "offsets": None}
    inputs[0] = inputs[0][inside]
    return inputs, {"lengths": None, "offsets": torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])}


@pytest.mark.usefixtures("_few_parts")
@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
@pytest.mark.parametrize(("batch", "length", "d", "h", "k"), ATTENTIVE)
def test_self_attentive_pool(batch: int, length: int, d: int, h: int, k: int, jagged: bool) -> None:
    inputs, options = make_pooling(batch, length, d, h, k, jagged)
    ours = attentive(self_attentive_pool, **options, backend="triton")
    exact = attentive(reference.self_attentive_pool, **options)
    cotangent = torch.randn(batch, k, d)
    assert_within_budget(ours, exact, inputs, cotangent, FEW_ROUNDINGS)
    assert_within_budget(ours, exact, inputs[:3], cotangent, FEW_ROUNDINGS)  # without bias and positions


@pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])
def test_self_attentive_pool_in_half(dtype: torch.dtype) -> None:
    inputs, options = make_pooling(4, 20, 24, 40, 3, False, dtype)
    ours = attentive(self_attentive_pool, **options, backend="triton")
    assert_halves_within(ours, attentive(reference.self_attentive_pool, **options), inputs, HALF_TOLERANCE)


def test_scores_far_apart() -> None:
    """The hidden layer at its ends, and an attention on one item alone."""
    made = make_attentive(3, 9, 4, 6, 3, torch.float32)
    made["items"] *= 100
    made["queries"] *= 100
    pooled = self_attentive_pool(**made, backend="triton")
    torch.testing.assert_close(pooled, self_attentive_pool(**made, backend="reference"))


def test_a_nan_stays_in_its_sequence() -> None:
    made = make_attentive(4, 4, 5, 6, 3, torch.float32)
    made["lengths"][:] = 4
    made["items"][2, 1, 3] = torch.nan
    bad = self_attentive_pool(**made, backend="triton").isnan().flatten(1).any(1)
    assert bad.tolist() == [False, False, True, False]


def operator_calls() -> dict[str, list[Any]]:
    """Arguments of each operator itself, jagged: what lies beyond a length is never written."""
    inputs, options = make_pooling(3, 6, 4, 5, 2, True)
    return {"self_attentive_pool": [*inputs, None, options["offsets"]]}


DIFFERENTIABLE = {"self_attentive_pool": 5}


@pytest.mark.parametrize("operator", DIFFERENTIABLE)
def test_opcheck(operator: str) -> None:
    count, arguments = DIFFERENTIABLE[operator], operator_calls()[operator]
    leaves = [x.requires_grad_() if i < count else x for i, x in enumerate(arguments)]
    forward = getattr(torch.ops.cmi_fast_triton, operator).default
    backward = getattr(torch.ops.cmi_fast_triton, f"{operator}_backward").default
    torch.library.opcheck(forward, leaves)
    detached = [x.detach() if isinstance(x, Tensor) else x for x in leaves]
    result, *saved = forward(*detached)
    for wanted in ((True,) * count, (False, True) * (count // 2) + (False,) * (count % 2)):
        torch.library.opcheck(backward, (torch.randn_like(result), *saved, *detached, *wanted))


@needs_native
@pytest.mark.parametrize("operator", DIFFERENTIABLE)
@pytest.mark.parametrize("suffix", ["", "_backward"])
def test_schemas_are_the_compiled_operators(operator: str, suffix: str) -> None:
    def types(library: object) -> list[str]:
        schema = getattr(library, f"{operator}{suffix}").default._schema
        return [str(value.type) for value in (*schema.arguments, *schema.returns)]

    assert types(torch.ops.cmi_fast_triton) == types(torch.ops.cmi_fast)


@pytest.mark.parametrize("operator", DIFFERENTIABLE)
def test_only_wanted_gradients_are_computed(operator: str) -> None:
    count, arguments = DIFFERENTIABLE[operator], operator_calls()[operator]
    result, *saved = getattr(torch.ops.cmi_fast_triton, operator)(*arguments)
    backward = getattr(torch.ops.cmi_fast_triton, f"{operator}_backward")
    given = (torch.randn_like(result), *saved, *arguments)
    everything = backward(*given, *[True] * count)
    for i in range(count):
        wanted = [i == j for j in range(count)]
        for gradient, full, want in zip(backward(*given, *wanted), everything, wanted, strict=True):
            assert torch.equal(gradient, full) if want else gradient.numel() == 0


def test_second_derivative_is_refused() -> None:
    inputs, options = make_pooling(2, 3, 3, 2, 2, True)
    pooled = attentive(self_attentive_pool, **options, backend="triton")(inputs[0].requires_grad_(), *inputs[1:])
    (gradient,) = torch.autograd.grad(pooled.sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_compiles_and_casts() -> None:
    inputs, options = make_pooling(3, 6, 4, 5, 2, True)
    pool = attentive(self_attentive_pool, **options, backend="triton")
    expected = with_gradients(pool, inputs, torch.ones(3, 2, 4))
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    for ours, other in zip(with_gradients(compiled, inputs, torch.ones(3, 2, 4)), expected, strict=True):
        torch.testing.assert_close(ours, other)
    with torch.autocast("cpu", torch.bfloat16):
        ours = pool(*inputs)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), expected[0], rtol=0, atol=0.05)


def test_values_that_nobody_has_checked_lead_to_nan() -> None:
    """On CUDA values are not looked at: a bad one must not lead out of memory, nor pass unseen."""
    inputs, _ = make_pooling(2, 3, 4, 5, 2, False)
    inputs[0] = torch.randn(2, 3, 4)
    operator = torch.ops.cmi_fast_triton.self_attentive_pool
    pooled, _ = operator(*inputs, torch.tensor([3, 2**40]), None)
    torch.testing.assert_close(pooled, attentive(self_attentive_pool, None, None)(*inputs))
    pooled, _ = operator(inputs[0].flatten(0, 1), *inputs[1:], None, torch.tensor([0, 2, 6]))  # four in three places
    assert pooled.isnan().flatten(1).all(1).tolist() == [False, True]
