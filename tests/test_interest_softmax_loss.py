"""interest_softmax_loss: the equation itself, cross-entropy where they agree, and every option."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from checking import WITH_CUDA, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmi_fast import functional

# "auto" is the compiled kernel.
interest_softmax_loss = functional.interest_softmax_loss


@pytest.fixture(autouse=True, params=["auto" if backend == "cpu" else backend for backend in WITH_CUDA])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test of this file, for each backend."""
    monkeypatch.setitem(
        globals(), "interest_softmax_loss", partial(functional.interest_softmax_loss, backend=request.param)
    )
    return request.param


def make(users: int, m: int, count: int, d: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Every argument; ``candidate_ids`` repeats items, ``exclude`` spares the targets."""
    targets = torch.randint(0, count, (users,))
    exclude = torch.rand(users, count) < 0.3
    exclude[torch.arange(users), targets] = False
    return {
        "interests": torch.randn(users, m, d, dtype=dtype),
        "candidates": torch.randn(count, d, dtype=dtype),
        "targets": targets,
        "general": torch.randn(users, d, dtype=dtype),
        "candidate_bias": torch.randn(count, dtype=dtype),
        "exclude": exclude,
        "candidate_ids": torch.randint(0, count // 2 + 1, (count,)),
    }


def literal(
    interests: Tensor,
    candidates: Tensor,
    targets: Tensor,
    general: Tensor,
    candidate_bias: Tensor,
    exclude: Tensor,
    candidate_ids: Tensor,
    temperature: float,
) -> Tensor:
    """Eq. 7 user by user, candidate by candidate, in Python's own floats."""
    losses = []
    for b, target in enumerate(targets.tolist()):
        shares = []
        for c, v in enumerate(candidates):
            copy = candidate_ids[c] == candidate_ids[target]
            if c != target and (exclude[b, c] or copy):
                shares.append(0.0)
                continue
            score = max(float(u @ v) / temperature for u in interests[b]) + float(general[b] @ v)
            shares.append(math.exp(score + float(candidate_bias[c])))
        losses.append(-math.log(shares[target] / sum(shares)))
    return torch.tensor(losses, dtype=torch.float64)


def test_equals_the_equation() -> None:
    arguments = make(6, 3, 9, 4)
    expected = literal(**arguments, temperature=0.7)
    loss = partial(interest_softmax_loss, **arguments, temperature=0.7)
    torch.testing.assert_close(loss(reduction="none"), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss(reduction="sum"), expected.sum())
    torch.testing.assert_close(loss(), expected.mean())


def test_one_interest_is_cross_entropy() -> None:
    given_ = make(5, 1, 8, 4)
    users, candidates, targets = given_["interests"], given_["candidates"], given_["targets"]
    expected = F.cross_entropy(users[:, 0] @ candidates.T / 0.5, targets, reduction="none")
    losses = interest_softmax_loss(users, candidates, targets, temperature=0.5, reduction="none")
    torch.testing.assert_close(losses, expected)
    general = interest_softmax_loss(torch.zeros_like(users), candidates, targets, users[:, 0], reduction="none")
    torch.testing.assert_close(general, F.cross_entropy(users[:, 0] @ candidates.T, targets, reduction="none"))


@pytest.mark.parametrize("options", [(), ("general",), ("candidate_bias", "exclude"), ("general", "candidate_ids")])
@pytest.mark.parametrize(("users", "m", "count", "d"), [(1, 2, 3, 2), (3, 2, 5, 4)])
def test_gradcheck(backend: str, options: tuple[str, ...], users: int, m: int, count: int, d: int) -> None:
    arguments = make(users, m, count, d)
    names = ["interests", "candidates", *(name for name in options if arguments[name].is_floating_point())]
    fixed = {name: arguments[name] for name in ("targets", *options) if name not in names}
    cotangent = torch.randn(users, dtype=torch.float64)
    temperature = torch.tensor(0.8, dtype=torch.float64)

    def loss(temperature: Tensor, *inputs: Tensor) -> Tensor:
        wanted = dict(zip(names, inputs, strict=True))
        losses = interest_softmax_loss(**wanted, **fixed, temperature=temperature, reduction="none")
        return (losses * cotangent).sum()

    inputs = [x.requires_grad_() for x in (temperature, *(arguments[name] for name in names))]
    # The interpreter takes its time: there, along one random direction.
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=backend == "triton")
    if users == 1 and backend == "reference":
        assert torch.autograd.gradgradcheck(loss, inputs)


def test_only_the_best_interest_learns_and_the_first_of_equals() -> None:
    interests = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    candidates = torch.tensor([[1.0, 0.0], [2.0, 0.5]])
    loss = partial(interest_softmax_loss, targets=torch.tensor([0]))
    _, gradient, _ = with_gradients(loss, (interests, candidates), torch.tensor(1.0))
    assert gradient[0, 0].any()
    assert not gradient[0, 1:].any()


@pytest.mark.parametrize("how", ["exclude", "candidate_ids", "alone"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_target_alone_loses_nothing(how: str, dtype: torch.dtype) -> None:
    arguments = make(3, 2, 4, 5, dtype)
    targets = arguments["targets"]
    options = {
        "exclude": {"exclude": torch.arange(4) != targets[:, None]},
        "candidate_ids": {"candidate_ids": torch.full((4,), 7)},
        "alone": {},
    }[how]
    candidates = arguments["candidates"]
    if how == "alone":
        candidates, targets = candidates[:1], torch.zeros_like(targets)
    loss = partial(interest_softmax_loss, targets=targets, reduction="none", **options)
    for result in with_gradients(loss, (arguments["interests"], candidates), torch.ones(3)):
        assert torch.equal(result, torch.zeros_like(result))


def test_other_copies_of_the_target_do_not_count() -> None:
    arguments = make(4, 2, 6, 3)
    users, candidates, targets = (arguments[name] for name in ("interests", "candidates", "targets"))
    expected = interest_softmax_loss(users, candidates, targets, reduction="none")
    twice = torch.cat([candidates, candidates])
    ids = torch.arange(6).repeat(2)
    # All other candidates are there twice; the target's other copy is not, wherever the target points.
    expected_twice = expected + torch.log(2 - (-expected).exp())
    for where in (targets, targets + 6):
        losses = interest_softmax_loss(users, twice, where, candidate_ids=ids, reduction="none")
        torch.testing.assert_close(losses, expected_twice)
    plain = interest_softmax_loss(users, twice, targets, reduction="none")
    torch.testing.assert_close(plain, expected + math.log(2))


def test_bias_is_the_log_q_correction() -> None:
    """A candidate drawn n times with bias -log(n) counts as once."""
    arguments = make(4, 2, 6, 3)
    users, candidates, targets = (arguments[name] for name in ("interests", "candidates", "targets"))
    drawn = torch.cat([candidates, candidates[-1:], candidates[-1:]])
    bias = torch.tensor([0.0] * 5 + [-math.log(3)] * 3, dtype=torch.float64)
    targets = targets.clamp_max(4)
    torch.testing.assert_close(
        interest_softmax_loss(users, drawn, targets, candidate_bias=bias),
        interest_softmax_loss(users, candidates, targets),
    )


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_logits(size: float, dtype: torch.dtype) -> None:
    interests = torch.ones(2, 1, 1, dtype=dtype)
    candidates = torch.tensor([[size], [size - 1], [0.0]], dtype=dtype)
    loss = partial(interest_softmax_loss, targets=torch.tensor([0, 2]), temperature=1.0, reduction="none")
    losses, *gradients = with_gradients(loss, (interests, candidates), torch.ones(2))
    softplus = math.log1p(math.exp(-1.0))
    expected = [softplus, size + softplus] if size > 0 else [-size, 0.0]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=dtype))
    assert all(gradient.isfinite().all() for gradient in gradients)


@given(seed=st.integers(0, 2**31), users=st.integers(1, 6), m=st.integers(1, 5), count=st.integers(1, 9))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_properties(seed: int, users: int, m: int, count: int) -> None:
    torch.manual_seed(seed)
    arguments = make(users, m, count, 4)
    loss = partial(interest_softmax_loss, temperature=0.5, reduction="none")
    losses = loss(**arguments)
    assert (losses >= 0).all()
    order = torch.randperm(m)
    torch.testing.assert_close(loss(**{**arguments, "interests": arguments["interests"][:, order]}), losses)
    # Candidates in another order, each user's target following.
    order = torch.randperm(count)
    moved = {name: arguments[name][order] for name in ("candidates", "candidate_bias", "candidate_ids")}
    moved |= {"exclude": arguments["exclude"][:, order], "targets": order.argsort()[arguments["targets"]]}
    torch.testing.assert_close(loss(**{**arguments, **moved}), losses)
    # The general interest is an offset of every interest, a common bias is nothing.
    general = arguments["general"]
    folded = {"interests": arguments["interests"] + 0.5 * general[:, None], "general": None}
    torch.testing.assert_close(loss(**{**arguments, **folded}), losses)
    torch.testing.assert_close(loss(**{**arguments, "candidate_bias": arguments["candidate_bias"] + 3}), losses)
    # An excluded candidate is one that is not there.
    kept = torch.cat([arguments["targets"][:1], (~arguments["exclude"][0]).nonzero()[:, 0]]).unique()
    alone = {"interests": arguments["interests"][:1], "general": general[:1], "exclude": None}
    alone |= {name: arguments[name][kept] for name in ("candidates", "candidate_bias", "candidate_ids")}
    alone |= {"targets": (kept == arguments["targets"][0]).nonzero()[0]}
    torch.testing.assert_close(loss(**{**arguments, **alone}), losses[:1])


def test_strided_inputs_and_int32_targets() -> None:
    arguments = make(3, 2, 5, 4)
    strided = {
        name: x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x for name, x in arguments.items()
    }
    strided["targets"] = arguments["targets"].int()
    strided["candidate_ids"] = arguments["candidate_ids"].int()
    torch.testing.assert_close(interest_softmax_loss(**strided), interest_softmax_loss(**arguments))


def test_nan_gives_nan() -> None:
    arguments = make(3, 2, 5, 4, torch.float32)
    del arguments["exclude"], arguments["candidate_ids"]
    arguments["interests"][1, 0, 2] = math.nan
    losses = interest_softmax_loss(**arguments, reduction="none")
    assert losses.isnan().tolist() == [False, True, False]
    arguments["candidates"][0, 0] = math.nan
    assert interest_softmax_loss(**arguments, reduction="none").isnan().all()


def test_no_gradient_is_computed_that_nobody_asked_for() -> None:
    arguments = make(3, 2, 5, 4)
    arguments["candidates"].requires_grad_()
    interest_softmax_loss(**arguments).backward()
    assert arguments["candidates"].grad is not None
    assert arguments["interests"].grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_summed_in_float32(dtype: torch.dtype) -> None:
    arguments = make(20, 4, 30, 16, dtype)
    names = ("interests", "candidates", "general", "candidate_bias")
    fixed = {name: x for name, x in arguments.items() if name not in names}

    def loss(*inputs: Tensor) -> Tensor:
        return interest_softmax_loss(**dict(zip(names, inputs, strict=True)), **fixed, temperature=0.5)

    inputs = [arguments[name] for name in names]
    ours = with_gradients(loss, inputs, torch.tensor(1.0))
    exact = with_gradients(loss, [x.double() for x in inputs], torch.tensor(1.0))
    assert ours[0].dtype == torch.float32
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-5, atol=0)
    for gradient, true in zip(ours[1:], exact[1:], strict=True):
        assert gradient.dtype == dtype
        assert (gradient.double() - true).norm() <= 2.5e-3 * true.norm()


def test_autocast() -> None:
    arguments = make(3, 2, 5, 4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = interest_softmax_loss(**arguments)
    halves = {name: x.bfloat16() if x.is_floating_point() else x for name, x in arguments.items()}
    assert torch.equal(loss, interest_softmax_loss(**halves))
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("everything", [True, False])
def test_compiles_as_one_graph(everything: bool) -> None:
    arguments = make(3, 2, 5, 4, torch.float32)
    inputs = arguments.pop("interests"), arguments.pop("candidates"), torch.tensor(0.2)
    fixed = arguments if everything else {"targets": arguments["targets"]}

    def loss(interests: Tensor, candidates: Tensor, temperature: Tensor) -> Tensor:
        return interest_softmax_loss(interests, candidates, temperature=temperature, **fixed)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = with_gradients(loss, inputs, torch.tensor(1.0))
    for our, their in zip(with_gradients(compiled, inputs, torch.tensor(1.0)), expected, strict=True):
        torch.testing.assert_close(our, their)


B, M, C, D = 3, 2, 4, 5
ARGUMENTS = {
    "interests": torch.zeros(B, M, D),
    "candidates": torch.zeros(C, D),
    "targets": torch.tensor([0, 3, 1]),
    "general": torch.zeros(B, D),
}
OWN = torch.zeros(B, C, dtype=torch.bool)
OWN[1, 3] = True


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, r"interests: expected a tensor \[B, m, d\], found NoneType", {"interests": None}),
        (
            ValueError,
            r"interests: expected shape \[B, m, d\], found float32 \[3, 5\]",
            {"interests": torch.zeros(3, 5)},
        ),
        (ValueError, r"interests: .* without a zero, found \[3, 0, 5\]", {"interests": torch.zeros(B, 0, D)}),
        (ValueError, r"candidates: expected shape \[4, 5\].* found \[4, 6\]", {"candidates": torch.zeros(4, 6)}),
        (ValueError, r"candidates: .* without a zero, found \[0, 5\]", {"candidates": torch.zeros(0, D)}),
        (TypeError, r"candidates: expected dtype torch.float32", {"candidates": torch.zeros(C, D).double()}),
        (TypeError, r"targets: expected a dtype among int64, int32", {"targets": torch.zeros(B)}),
        (ValueError, r"targets: expected shape \[3\].* found \[2\]", {"targets": torch.tensor([0, 1])}),
        (IndexError, r"targets\[2\]: expected a value in \[0, 4\), found 4", {"targets": torch.tensor([0, 1, 4])}),
        (IndexError, r"targets\[1\]: expected a value in \[0, 4\), found -1", {"targets": torch.tensor([0, -1, 9])}),
        (ValueError, r"general: expected shape \[3, 5\].* found \[3, 4\]", {"general": torch.zeros(B, 4)}),
        (ValueError, r"general: expected shape \[B, d\], found", {"general": torch.zeros(B, M, D)}),
        (TypeError, r"general: expected dtype torch.float32", {"general": torch.zeros(B, D).half()}),
        (ValueError, r"candidate_bias: expected shape \[4\]", {"candidate_bias": torch.zeros(3)}),
        (TypeError, r"candidate_bias: expected dtype", {"candidate_bias": torch.zeros(C).double()}),
        (ValueError, r"candidate_bias: expected device cpu", {"candidate_bias": torch.zeros(C, device="meta")}),
        (TypeError, r"exclude: expected a dtype among bool, found float32", {"exclude": torch.zeros(B, C)}),
        (ValueError, r"exclude: expected shape \[3, 4\].* found \[4, 3\]", {"exclude": OWN.T}),
        (ValueError, r"exclude\[1, 3\]: expected False for the target of row 1", {"exclude": OWN}),
        (ValueError, r"candidate_ids: expected shape \[4\]", {"candidate_ids": torch.zeros(3).long()}),
        (TypeError, r"candidate_ids: expected a dtype among int64, int32", {"candidate_ids": torch.zeros(C)}),
        (ValueError, r"temperature: expected a positive finite number, found -1", {"temperature": -1}),
        (ValueError, r"temperature: expected at least 1e-30, found 6e-39", {"temperature": 6e-39}),
        (ValueError, r"temperature: expected at least 1e-30, found 6e-39", {"temperature": torch.tensor(6e-39)}),
        (ValueError, r"reduction: expected one of none, sum, mean, found 'max'", {"reduction": "max"}),
        (ValueError, r"backend: expected one of auto, reference", {"backend": "gpu"}),
    ],
)
def test_bad_arguments(error: type[Exception], message: str, arguments: dict[str, object]) -> None:
    with pytest.raises(error, match=message):
        interest_softmax_loss(**{**ARGUMENTS, **arguments})
