"""The Triton kernels of the other models' layers, in Triton's interpreter: as test_triton_kernels has it for CMI's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checking import assert_within_budget, needs_native, needs_triton, with_gradients
from test_capsule_routing_kernel import case as make_routing
from test_capsule_routing_kernel import routed
from test_self_attentive_pool import make as make_attentive
from test_triton_kernels import HALF, HALF_TOLERANCE, assert_halves_within
from torch import Tensor

from cmi_fast import reference
from cmi_fast.functional import capsule_routing, self_attentive_pool

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
    monkeypatch.setattr("cmi_fast.triton.capsule_routing.PARTS", 2)


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


# B, L, d, e, K. Blocks and tiles as above; 16 sums at a time.
ROUTINGS = [
    pytest.param(2, 5, 3, 7, 2, id="odd"),
    pytest.param(2, 16, 64, 64, 4, id="aligned"),
    pytest.param(1, 17, 65, 33, 17, id="one-past-a-tile"),
    pytest.param(2, 9, 20, 65, 3, id="one-past-a-tile-of-results"),
    pytest.param(1, 1, 1, 1, 1, id="smallest"),
    pytest.param(1, 4, 20, 18, 65, id="many-interests"),
    pytest.param(34, 2, 5, 6, 2, id="several-blocks-a-part"),
]
MAPS = ["shared", "interest"]


@pytest.mark.usefixtures("_few_parts")
@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize(("batch", "length", "d", "e", "k"), ROUTINGS)
def test_capsule_routing(batch: int, length: int, d: int, e: int, k: int, maps: str, jagged: bool) -> None:
    inputs, options = make_routing(batch, length, d, e, k, maps, torch.float32, jagged)
    cotangent = torch.randn(batch, k, e)
    assert_within_budget(routed(options, "triton"), routed(options, "reference"), inputs, cotangent, 2 * FEW_ROUNDINGS)
    if maps == "interest":  # without logits, bias or inactive interests
        plain = {name: x for name, x in options.items() if name not in ("logits", "active")}
        ours, exact = routed(plain, "triton"), routed(plain, "reference")
        assert_within_budget(ours, exact, inputs[:2], cotangent, 2 * FEW_ROUNDINGS)


@pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("maps", MAPS)
def test_capsule_routing_in_half(maps: str, dtype: torch.dtype) -> None:
    inputs, options = make_routing(4, 20, 24, 12, 3, maps, dtype, True)
    assert_halves_within(routed(options, "triton"), routed(options, "reference"), inputs, HALF_TOLERANCE)


@pytest.mark.parametrize("maps", MAPS)
def test_zero_sums_have_a_gradient(maps: str) -> None:
    inputs, options = make_routing(3, 4, 5, 6, 3, maps, torch.float32, False)
    inputs = [torch.zeros_like(inputs[0]), inputs[1]]
    for x in with_gradients(routed(options, "triton"), inputs, torch.ones(3, 3, 6)):
        assert not x.any()


def test_maps_of_one_place_are_every_places() -> None:
    items, maps = torch.randn(3, 1, 4), torch.randn(1, 2, 5, 4)
    routed_items = capsule_routing(items, maps, 2, backend="triton")
    torch.testing.assert_close(routed_items, capsule_routing(items, maps[0], 2, backend="reference"))


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
    pooled = self_attentive_pool(**made, backend="triton")
    results = [
        pooled,
        capsule_routing(made["items"], torch.randn(6, 5), 3, logits=torch.randn(4, 4, 3), backend="triton"),
    ]
    for result in results:
        assert result.isnan().flatten(1).any(1).tolist() == [False, False, True, False]


def operator_calls() -> dict[str, list[Any]]:
    """Arguments of each operator itself, jagged: what lies beyond a length is never written."""
    inputs, options = make_pooling(3, 6, 4, 5, 2, True)
    (items, maps, bias), routing = make_routing(3, 6, 4, 5, 2, "interest", torch.float32, True)
    given = [maps[None], bias, routing["logits"], routing["active"], None, routing["offsets"], 2, 3]
    return {
        "self_attentive_pool": [*inputs, None, options["offsets"]],
        "capsule_routing": [items, *given],
    }


DIFFERENTIABLE = {"self_attentive_pool": 5, "capsule_routing": 3}


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


def layer_calls() -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    inputs, options = make_pooling(3, 6, 4, 5, 2, True)
    routing, routing_options = make_routing(3, 6, 4, 4, 2, "shared", torch.float32, True)
    pool = attentive(self_attentive_pool, **options, backend="triton")
    return {"self_attentive_pool": (pool, inputs), "capsule_routing": (routed(routing_options, "triton"), routing)}


@pytest.mark.parametrize("operator", DIFFERENTIABLE)
def test_second_derivative_is_refused(operator: str) -> None:
    function, inputs = layer_calls()[operator]
    result = function(inputs[0].requires_grad_(), *inputs[1:])
    (gradient,) = torch.autograd.grad(result.sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("operator", DIFFERENTIABLE)
def test_compiles_and_casts(operator: str) -> None:
    function, inputs = layer_calls()[operator]
    expected = with_gradients(function, inputs, torch.ones(3, 2, 4))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for ours, other in zip(with_gradients(compiled, inputs, torch.ones(3, 2, 4)), expected, strict=True):
        torch.testing.assert_close(ours, other)
    with torch.autocast(inputs[0].device.type, torch.bfloat16):
        result = function(*inputs)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected[0], rtol=0, atol=0.05)


def test_values_that_nobody_has_checked_lead_to_nan() -> None:
    """On CUDA values are not looked at: a bad one must not lead out of memory, nor pass unseen."""
    inputs, _ = make_pooling(2, 3, 4, 5, 2, False)
    inputs[0] = torch.randn(2, 3, 4)
    operator = torch.ops.cmi_fast_triton.self_attentive_pool
    pooled, _ = operator(*inputs, torch.tensor([3, 2**40]), None)
    torch.testing.assert_close(pooled, attentive(self_attentive_pool, None, None)(*inputs))
    pooled, _ = operator(inputs[0].flatten(0, 1), *inputs[1:], None, torch.tensor([0, 2, 6]))  # four in three places
    assert pooled.isnan().flatten(1).all(1).tolist() == [False, True]

    routing = torch.ops.cmi_fast_triton.capsule_routing
    items, maps = inputs[0], torch.randn(1, 2, 5, 4)
    routed_items, *_ = routing(items, maps, None, None, torch.tensor([2, 2**40]), torch.tensor([3, 2**40]), None, 2, 3)
    torch.testing.assert_close(routed_items, capsule_routing(items, maps[0], 2))
    routed_items, *_ = routing(items, maps, None, None, torch.tensor([2, 0]), None, None, 2, 3)
    assert routed_items.isnan().flatten(1).all(1).tolist() == [False, True]
