"""Layers that extract interests, against their equations written as loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from checking import to_jagged
from torch import Tensor

from cmi_fast import functional, nn

LENGTHS = torch.tensor([5, 0, 1, 3])


def items(d: int = 4, length: int = 5) -> Tensor:
    return torch.randn(len(LENGTHS), length, d, dtype=torch.float64)


def layers() -> dict[str, torch.nn.Module]:
    """Every extractor of 3 interests from items of 4 dimensions, in evaluation."""
    made = {
        "self-attentive": nn.SelfAttentivePooling(3, 4, max_length=6),
        "self-attentive, paper": nn.SelfAttentivePooling(3, 4, max_length=6, parity="paper"),
        "self-attentive, set": nn.SelfAttentivePooling(3, 4, hidden=5, bias=False),
        "shared": nn.CapsuleRouting(3, 4, max_length=6, dynamic=True),
        "shared, tf_original": nn.CapsuleRouting(3, 4, max_length=6, parity="tf_original"),
        "interest": nn.CapsuleRouting(3, 4, maps="interest"),
        "position": nn.CapsuleRouting(3, 4, maps="position", max_length=6),
        "hard": nn.HardAssignmentPooling(3, 4),
        "clustering": nn.IntentionClustering(3, 4, max_length=6),
        "soft": nn.SoftAssignmentPooling(3, 4),
    }
    for layer in made.values():
        layer.double().eval()
        for name, parameter in layer.named_parameters():
            if not parameter.any() or "norm" in name:  # a bias of zero would hide what it does
                torch.nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("name", layers())
def test_padding_does_not_matter_and_jagged_is_the_same(name: str) -> None:
    layer, x = layers()[name], items()
    expected = layer(x, LENGTHS)
    assert expected.shape == (4, 3, 4)
    padding = (torch.arange(5) >= LENGTHS[:, None])[..., None]
    poisoned = x.masked_fill(padding, math.nan).requires_grad_()
    interests = layer(poisoned, LENGTHS)
    torch.testing.assert_close(interests, expected)
    interests.square().sum().backward()
    assert poisoned.grad is not None and not poisoned.grad[padding.expand_as(x)].any()
    for leaf_name, leaf in (("items", poisoned), *layer.named_parameters()):
        assert leaf.grad is not None and leaf.grad.isfinite().all() and leaf.grad.any(), leaf_name
    rows, offsets = to_jagged(x, LENGTHS)
    torch.testing.assert_close(layer(rows, offsets=offsets), expected)
    longer = F.pad(x, (0, 0, 0, 1))
    torch.testing.assert_close(layer(longer, LENGTHS), expected)
    for b, n in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(layer(x[b : b + 1, :n])[0], expected[b])


def test_self_attention_where_the_paper_and_its_code_differ() -> None:
    """The code adds positions for the scores alone, the paper before everything."""
    original = nn.SelfAttentivePooling(2, 4, max_length=5).double()
    paper = nn.SelfAttentivePooling(2, 4, max_length=5, parity="paper").double()
    paper.load_state_dict(original.state_dict())
    x = items()
    attention = torch.softmax(
        torch.tanh((x + original.positions) @ original.weight.T + original.bias) @ original.queries.T, 1
    ).transpose(1, 2)
    torch.testing.assert_close(original(x), attention @ x)
    torch.testing.assert_close(paper(x), attention @ (x + paper.positions))
    assert original.weight.shape == (16, 4)


def test_a_bias_of_the_scores_would_drop_out() -> None:
    """What the original's second bias would do: nothing."""
    scores = torch.randn(3, 5, 2)
    torch.testing.assert_close(torch.softmax(scores + torch.randn(2), 1), torch.softmax(scores, 1))


@pytest.mark.parametrize("n", range(0, 40))
def test_dynamic_number_of_interests(n: int) -> None:
    layer = nn.CapsuleRouting(4, 3, max_length=40, dynamic=True)
    expected = max(1, min(4, int(math.log2(n)))) if n else 1
    assert layer.takes_part(torch.tensor([n])).sum() == expected
    if n:
        assert layer(torch.randn(1, n, 3))[0].any(-1).tolist() == [k < expected for k in range(4)]


def test_random_logits_are_drawn_in_training_and_fixed_in_evaluation() -> None:
    layer, other = nn.CapsuleRouting(3, 4, max_length=6).double(), nn.CapsuleRouting(3, 4, max_length=6, seed=1)
    x = items()
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    other.double().eval().load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), layer(x))
    assert not torch.equal(layer(x), other(x))
    assert list(layer.state_dict()) == ["maps"]
    torch.testing.assert_close(layer(x[1:2]), layer(x)[1:2])  # no other user, no chance
    first, second = layer(x).transpose(0, 1)[:2]
    assert not torch.allclose(first, second)  # logits of zero would leave interests equal
    cut = nn.CapsuleRouting(3, 4, max_length=1000, parity="tf_original")
    assert cut.fixed_logits.abs().max() <= 2 < nn.CapsuleRouting(3, 4, max_length=1000).fixed_logits.abs().max()


def test_routing_layers_are_the_operator() -> None:
    x = items()
    for name in ("shared", "shared, tf_original", "interest", "position"):
        layer = layers()[name]
        logits = None if layer.fixed_logits is None else layer.fixed_logits[:5].double().expand(4, -1, -1)
        expected = functional.capsule_routing(
            x,
            layer.maps[:5] if name == "position" else layer.maps,
            3,
            LENGTHS,
            bias=layer.bias,
            logits=logits,
            active=torch.tensor([2, 1, 1, 1]) if layer.dynamic else None,
        )
        assert torch.equal(layer(x, LENGTHS), expected)
    assert layers()["shared"].bias is None and layers()["shared, tf_original"].bias is not None


def test_hard_assignment_equals_the_equations() -> None:
    layer, x = nn.HardAssignmentPooling(3, 4).double(), items()
    layer.reset_parameters()
    torch.testing.assert_close(layer.channels @ layer.channels.T, torch.eye(3).double())
    expected = torch.zeros(4, 3, 4, dtype=torch.float64)
    for b, n in enumerate(LENGTHS.tolist()):
        groups: dict[int, list[Tensor]] = {}
        for row in x[b, :n]:
            scores = [(row @ head).item() for head in layer.channels]
            groups.setdefault(scores.index(max(scores)), []).append(row)
        for j, group in groups.items():
            weights = [math.exp((row @ layer.channels[j]).item()) for row in group]
            for weight, row in zip(weights, group, strict=True):
                expected[b, j] += weight / sum(weights) * row
    torch.testing.assert_close(layer(x, LENGTHS), expected)


def norm(layer: torch.nn.LayerNorm, row: Tensor) -> Tensor:
    centred = row - row.mean()
    return centred / torch.sqrt(centred.square().mean() + layer.eps) * layer.weight + layer.bias


def test_intention_clustering_equals_the_equations() -> None:
    layer, x = layers()["clustering"], items()
    scale = 4**-0.5
    offset = torch.randn(3, 4).double()
    for b, n in enumerate(LENGTHS.tolist()):
        if not n:
            continue
        alpha = layer.positions[6 - n :]  # counted from the end
        query = norm(layer.query_norm, layer.query_bias + alpha[-1] + x[b, n - 1])
        importance, assignment = [], []
        for t in range(n):
            key = norm(layer.key_norm, x[b, t] + alpha[t])
            key = key + torch.relu(layer.key.weight @ key + layer.key.bias)
            importance.append(math.exp((key @ query).item() * scale))
            state = norm(layer.state_norm, x[b, t])
            shares = [math.exp((state @ norm(layer.prototype_norm, c)).item() * scale) for c in layer.prototypes]
            assignment.append([share / sum(shares) for share in shares])
        for k in range(3):
            pooled = sum(assignment[t][k] * importance[t] / sum(importance) * x[b, t] for t in range(n))
            for given, beta in ((None, layer.offset), (offset, offset)):
                ours = layer(x, LENGTHS, offset=given)[b, k]
                torch.testing.assert_close(ours, norm(layer.output_norm, beta[k] + pooled))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0, 3.0, math.inf])
def test_label_aware_attention(power: float) -> None:
    interests, labels = torch.randn(5, 3, 4).double().requires_grad_(), torch.randn(5, 4).double()
    active = torch.tensor([[True] * 3, [True, False, False], [True, True, False], [True] * 3, [False, True, True]])
    expected = []
    for u, e, on in zip(interests, labels, active, strict=True):
        scores = [(row @ e).item() for row in u]
        if math.isinf(power):
            weights = [
                float(on[k] and s == max(s for s, a in zip(scores, on, strict=True) if a)) for k, s in enumerate(scores)
            ]
        else:
            weights = [
                float(on[k]) * math.exp(math.copysign(abs(s) ** power, s if power else 1.0))
                for k, s in enumerate(scores)
            ]
        expected.append(sum(w / sum(weights) * row for w, row in zip(weights, u, strict=True)))
    attention = nn.LabelAwareAttention(power)
    torch.testing.assert_close(attention(interests, labels, active), torch.stack(expected))
    if not math.isinf(power):
        both = (interests, labels.requires_grad_())
        assert torch.autograd.gradcheck(lambda u, e: attention(u, e, active).sin(), both)
    attention(interests * 0, labels).sum().backward()  # a score of zero has a gradient, too
    assert interests.grad.isfinite().all()


def test_hard_read_out() -> None:
    interests, labels = torch.randn(6, 3, 4), torch.randn(6, 4)
    expected = [max(rows, key=lambda row, e=e: float(row @ e)) for rows, e in zip(interests, labels, strict=True)]
    assert torch.equal(nn.hard_read_out(interests, labels), torch.stack(expected))


def test_sampled_softmax_with_logq() -> None:
    users, candidates = torch.randn(3, 4).double(), torch.randn(7, 4).double()
    targets, frequency = torch.tensor([2, 0, 6]), torch.rand(7).double() + 0.1
    ids = torch.tensor([5, 1, 3, 3, 5, 0, 2])  # candidate 3 is user 0's target once more, candidate 4 user 1's
    loss = nn.SampledSoftmaxLoss()(users, candidates, targets, frequency=frequency, candidate_ids=ids)
    expected = 0.0
    for b, target in enumerate(targets.tolist()):
        total = 0.0
        for c in range(7):
            if c == target or ids[c] != ids[target]:
                total += math.exp(float(users[b] @ candidates[c])) / float(frequency[c])
        expected -= math.log(math.exp(float(users[b] @ candidates[target])) / float(frequency[target]) / total)
    assert loss.item() == pytest.approx(expected / 3)
    plain = nn.SampledSoftmaxLoss()(users, candidates, targets)
    torch.testing.assert_close(plain, F.cross_entropy(users @ candidates.T, targets))


@pytest.mark.parametrize(
    ("message", "make"),
    [
        (r"parity: expected one of paper, tf_original", lambda: nn.SelfAttentivePooling(2, 4, parity="torch")),
        (r"maps: expected one of shared", lambda: nn.CapsuleRouting(2, 4, maps="own")),
        (r"max_length: expected a number with maps='shared', found None", lambda: nn.CapsuleRouting(2, 4)),
        (r"power: expected a number of at least 0, found -1", lambda: nn.LabelAwareAttention(-1)),
    ],
)
def test_bad_options(message: str, make: object) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["self-attentive, paper", "shared", "position", "clustering", "self-attentive"])
def test_too_long_a_sequence(name: str) -> None:
    with pytest.raises(ValueError, match=r": expected at least 7 places, as the longest sequence, found 6"):
        layers()[name](torch.zeros(1, 7, 4).double())
