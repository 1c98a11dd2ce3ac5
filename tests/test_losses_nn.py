"""The loss modules are their functions, and NTXentLoss stands in for lightly's."""

from __future__ import annotations

import inspect

import pytest
import torch
from checking import with_gradients
from lightly_peer import lightly_loss

from cmi_fast import nn
from cmi_fast.functional import interest_softmax_loss, nt_xent_loss


@pytest.fixture(scope="module")
def lightlys() -> type[torch.nn.Module]:
    try:
        return lightly_loss()
    except ImportError as error:
        pytest.skip(f"lightly's loss does not import: {error}")


def test_nt_xent_takes_what_lightlys_takes(lightlys: type[torch.nn.Module]) -> None:
    def parameters(function: object) -> list[tuple[str, object, object]]:
        return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]

    theirs = parameters(lightlys)
    assert parameters(nn.NTXentLoss)[: len(theirs)] == theirs
    assert parameters(nn.NTXentLoss.forward) == parameters(lightlys.forward)


@pytest.mark.parametrize("pairs", [1, 2, 33, 64])
@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_nt_xent_equals_lightlys(lightlys: type[torch.nn.Module], pairs: int, temperature: float, backend: str) -> None:
    first = torch.randn(pairs, 17, dtype=torch.float64)
    views = first, first + 0.5 * torch.randn_like(first)
    ours = with_gradients(nn.NTXentLoss(temperature, backend=backend), views, torch.tensor(1.0))
    theirs = with_gradients(lightlys(temperature), views, torch.tensor(1.0))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-12)


def test_nt_xent_has_lightlys_signature() -> None:
    parameters = list(inspect.signature(nn.NTXentLoss).parameters.values())[:3]
    assert [(p.name, p.default, p.kind.name) for p in parameters] == [
        ("temperature", 0.5, "POSITIONAL_OR_KEYWORD"),
        ("memory_bank_size", 0, "POSITIONAL_OR_KEYWORD"),
        ("gather_distributed", False, "POSITIONAL_OR_KEYWORD"),
    ]
    assert list(inspect.signature(nn.NTXentLoss.forward).parameters) == ["self", "out0", "out1"]


def test_nt_xent_is_the_function() -> None:
    first, second = torch.randn(2, 6, 5)
    assert torch.equal(nn.NTXentLoss()(first, second), nt_xent_loss(first, second, temperature=0.5))
    options = {"negatives": "cross_view", "direction": "first", "normalize": False, "reduction": "none"}
    options["backend"] = "reference"
    module = nn.NTXentLoss(2.0, **options)
    assert torch.equal(module(first, second), nt_xent_loss(first, second, temperature=2.0, **options))
    assert "temperature=2, negatives='cross_view'" in repr(module)


def test_nt_xent_learns_its_temperature() -> None:
    module = nn.NTXentLoss(torch.nn.Parameter(torch.tensor(0.2)))
    assert [name for name, _ in module.named_parameters()] == ["temperature"]
    module(*torch.randn(2, 6, 5)).backward()
    assert module.temperature.grad != 0
    assert "temperature=0.2" in repr(module)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (r"memory_bank_size: a memory bank is not supported, expected 0, found 4096", {"memory_bank_size": 4096}),
        (r"memory_bank_size: .* found \(64, 128\)", {"memory_bank_size": (64, 128)}),
        (r"gather_distributed: .* not supported", {"gather_distributed": True}),
    ],
)
def test_nt_xent_says_what_it_does_not_support(message: str, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=message):
        nn.NTXentLoss(**arguments)


def test_interest_softmax_is_the_function() -> None:
    interests, candidates, general = torch.randn(3, 2, 5), torch.randn(4, 5), torch.randn(3, 5)
    targets = torch.tensor([0, 3, 1])
    options = {"candidate_bias": torch.randn(4), "exclude": None, "candidate_ids": torch.tensor([0, 1, 1, 2])}
    module = nn.InterestSoftmaxLoss(0.3, reduction="none")
    expected = interest_softmax_loss(
        interests, candidates, targets, general, temperature=0.3, reduction="none", **options
    )
    assert torch.equal(module(interests, candidates, targets, general, **options), expected)
    default = nn.InterestSoftmaxLoss()(interests, candidates, targets)
    assert torch.equal(default, interest_softmax_loss(interests, candidates, targets, temperature=0.1))
    assert "temperature=0.3, reduction='none'" in repr(module)


@pytest.mark.parametrize("module", [nn.NTXentLoss, nn.InterestSoftmaxLoss])
def test_a_tensor_as_temperature_moves_with_the_module(module: type[torch.nn.Module]) -> None:
    loss = module(torch.tensor(0.3)).to("meta", torch.float64)
    assert loss.temperature.is_meta
    assert loss.temperature.dtype == torch.float64
    assert not loss.state_dict()
    assert not list(loss.parameters())
    assert "temperature=0.3" in repr(module(torch.tensor(0.3)))
    learned = module(torch.nn.Parameter(torch.tensor(0.3)))
    assert list(learned.state_dict()) == ["temperature"]


@pytest.mark.parametrize("module", [nn.NTXentLoss(), nn.InterestSoftmaxLoss()])
def test_modules_compile_as_one_graph(module: torch.nn.Module) -> None:
    first, second = torch.randn(2, 4, 5)
    inputs = (first, second) if isinstance(module, nn.NTXentLoss) else (first[:, None], second, torch.arange(4))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), module(*inputs))
