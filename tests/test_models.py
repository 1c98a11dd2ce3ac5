"""The models CMI is compared with: vectors and losses against their equations, one user at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_cmi import make_batch
from torch import Tensor

from cmi_fast.models import CMI, MIND, ComiRecDR, ComiRecSA, DSSRec, MultiInterestModel, Octopus
from cmi_fast.models.dssrec import split

FREQUENCY = torch.linspace(0.1, 2, 30, dtype=torch.float64)
MODELS = {"comirec-dr": ComiRecDR, "comirec-sa": ComiRecSA, "dssrec": DSSRec, "mind": MIND, "octopus": Octopus}


def make(name: str, **options: Any) -> MultiInterestModel:
    """A model of 30 items in float64, in evaluation: without dropout, and with fixed logits."""
    if name != "octopus":
        options["max_history"] = 6
    return MODELS[name](30, interests=3, dim=4, frequency=FREQUENCY, **options).double().eval()


def squash(z: Tensor) -> Tensor:
    return z @ z / (1 + z @ z) * z / torch.sqrt(z @ z + 1e-9)


def interests_of(model: MultiInterestModel, history: list[int]) -> list[Tensor]:
    """The interests of one user, those that the user has, an item and an interest at a time."""
    items = [model.items[i] for i in history]
    if isinstance(model, ComiRecSA):
        layer = model.extractor
        found = []
        for query in layer.queries:
            weights = [
                torch.exp(query @ torch.tanh(layer.weight @ (x + layer.positions[t]) + layer.bias))
                for t, x in enumerate(items)
            ]
            found.append(sum(w / sum(weights) * x for w, x in zip(weights, items, strict=True)))
        return found
    if isinstance(model, ComiRecDR):
        maps, count = model.extractor.maps, 3
        mapped = [[maps[t, k] @ x for k in range(3)] for t, x in enumerate(items)]
        scores = [[0.0] * 3 for _ in items]
    elif isinstance(model, MIND):
        maps, count = model.extractor.maps, max(1, min(3, int(math.log2(len(items)))))
        mapped = [[maps @ x] * 3 for x in items]
        scores = [model.extractor.fixed_logits[t].tolist() for t in range(len(items))]
    else:
        assert isinstance(model, Octopus)
        groups: dict[int, list[Tensor]] = {}
        heads = model.extractor.channels
        for x in items:
            groups.setdefault(max(range(3), key=lambda j, x=x: (x @ heads[j]).item()), []).append(x)
        found = []
        for j, group in sorted(groups.items()):
            weights = [torch.exp(x @ heads[j]) for x in group]
            found.append(sum(w / sum(weights) * x for w, x in zip(weights, group, strict=True)))
        return found
    for _ in range(3):
        capsules = []
        for k in range(count):
            shares = [math.exp(row[k]) / sum(math.exp(s) for s in row[:count]) for row in scores]
            capsules.append(squash(sum(w * u[k] for w, u in zip(shares, mapped, strict=True))))
        for row, u in zip(scores, mapped, strict=True):
            for k in range(count):
                row[k] += float(u[k].detach() @ capsules[k].detach())
    if isinstance(model, MIND):
        return [torch.relu(model.layer.weight @ v + model.layer.bias) for v in capsules]
    return capsules


def softmax_loss(user: Tensor, items: Tensor, candidates: list[int], target: int) -> Tensor:
    """Of one user among the candidates, with logQ; the target's item once more is no rival."""
    scores = [items[c] @ user - math.log(FREQUENCY[c]) for c in candidates]
    rivals = [s for c, s in zip(candidates, scores, strict=True) if c != candidates[target]]
    return torch.stack([scores[target], *rivals]).logsumexp(0) - scores[target]


def gradients(model: MultiInterestModel, loss: Tensor) -> list[Tensor]:
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("name", ["comirec-dr", "comirec-sa", "mind", "octopus"])
def test_loss_and_its_gradient_equal_the_equations(name: str) -> None:
    model, batch = make(name), make_batch(batch=6)
    batch["positives"][1] = batch["positives"][0]
    losses = model.loss(**batch)
    candidates = torch.cat([batch["positives"], batch["negatives"]]).tolist()
    total = torch.zeros((), dtype=torch.float64)
    for b, n in enumerate(batch["lengths"].tolist()):
        found = interests_of(model, batch["history"][b, :n].tolist())
        user = max(found, key=lambda u: (u @ model.items[candidates[b]]).item())  # closest to the label
        total = total + softmax_loss(user, model.items, candidates, b) / 6
    if name == "octopus":
        heads, orthogonality = model.extractor.channels, 0.0
        for i in range(3):
            for j in range(3):
                orthogonality = orthogonality + (heads[i] @ heads[j] - float(i == j)) ** 2
        distance = 0.0
        for c in batch["positives"]:
            e = model.items[c].detach()
            distance = distance + (e - sum((e @ h) * h for h in heads)).square().sum() / 6
        torch.testing.assert_close(losses.main, total)
        total = total + orthogonality + distance
    torch.testing.assert_close(losses.total, total)
    for ours, expected in zip(gradients(model, losses.total), gradients(model, total), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("name", ["comirec-dr", "comirec-sa", "mind", "octopus"])
def test_items_are_ranked_by_the_interests_a_user_has(name: str) -> None:
    model, batch = make(name), make_batch(batch=6)
    ranked = (model(batch["history"], batch["lengths"]) @ model.item_vectors().T).amax(1)
    for b, n in enumerate(batch["lengths"].tolist()):
        found = torch.stack(interests_of(model, batch["history"][b, :n].tolist()))
        torch.testing.assert_close(ranked[b], (found @ model.items.T).amax(0))


def encode(model: DSSRec, history: list[int]) -> Tensor:
    """SASRec's states [n, d] of one sequence."""
    encoder, n = model.encoder, len(history)
    x = encoder.norm(model.items[history] + encoder.positions[6 - n :])
    for layer in encoder.layers:
        rows = []
        for t in range(n):
            scores = layer.query(x[t]) @ layer.key(x[: t + 1]).T / 2  # sqrt(d)
            attended = layer.output(torch.softmax(scores, 0) @ layer.value(x[: t + 1]))
            h = layer.attention_norm(x[t] + attended)
            rows.append(layer.feed_forward_norm(h + torch.relu(layer.outer(torch.relu(layer.inner(h))))))
        x = torch.stack(rows)
    return x


def test_dssrec_equals_its_equations() -> None:
    model, batch = make("dssrec", keep_share=0.4), make_batch(batch=5)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight)
    torch.manual_seed(3)
    losses = model.loss(**batch)
    torch.manual_seed(3)
    cuts = (torch.rand(5) * batch["lengths"]).long() + 1
    inputs, labels, following = [], [], []
    for b, n in enumerate(batch["lengths"].tolist()):
        sequence = [*batch["history"][b, :n].tolist(), int(batch["positives"][b])]
        cut = int(cuts[b])
        following.append(sequence[cut])
        inputs.append(model.clustering(encode(model, sequence[:cut])[None])[0])
        labels.append(model.clustering(encode(model, sequence[cut:][::-1])[None], offset=model.label_offset)[0])
    candidates = following + batch["negatives"].tolist()
    item = 0.0
    for b, target in enumerate(following):
        every = 0.0
        for c, candidate in enumerate(candidates):
            if c == b or candidate != target:
                for phi in inputs[b]:
                    every += math.exp((phi @ model.items[candidate]).item() / 2) / float(FREQUENCY[candidate])
        best = max(math.exp((phi @ model.items[target]).item() / 2) / float(FREQUENCY[target]) for phi in inputs[b])
        item -= math.log(best / every)
    assert losses.item.item() == pytest.approx(item / 5)
    terms = []
    for b in range(5):
        for k in range(3):
            every = sum(math.exp((inputs[b][k] @ psi).item() / 2) for label in labels for psi in label)
            terms.append(-math.log(math.exp((inputs[b][k] @ labels[b][k]).item() / 2) / every))
    assert losses.sequence.item() == pytest.approx(sum(sorted(terms)[:6]) / 5)  # floor(0.4 * 15)
    torch.testing.assert_close(losses.total, losses.item + losses.sequence)
    vectors = model(batch["history"], batch["lengths"])
    for b, n in enumerate(batch["lengths"].tolist()):
        states = encode(model, batch["history"][b, :n].tolist())
        torch.testing.assert_close(vectors[b], model.clustering(states[None])[0] / 2)


def test_dssrec_splits_a_sequence() -> None:
    history = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 0, 0, 0]])
    following, labels, lengths = split(
        history, torch.tensor([4, 2, 1]), torch.tensor([9, 8, 6]), torch.tensor([2, 2, 1])
    )
    assert following.tolist() == [3, 8, 6]
    assert labels.tolist() == [[9, 4, 3, 0], [8, 0, 0, 0], [6, 0, 0, 0]]
    assert lengths.tolist() == [3, 1, 1]


@pytest.mark.parametrize("name", MODELS)
def test_one_protocol(name: str) -> None:
    model, batch = make(name).train(), make_batch(batch=6)
    losses = model.loss(**batch)
    assert losses._fields[0] == "total" and all(loss.dim() == 0 for loss in losses)
    for parameter, gradient in zip(model.named_parameters(), gradients(model, losses.total), strict=True):
        assert gradient.isfinite().all() and gradient.any(), parameter[0]
    model.eval()
    full = model(batch["history"], batch["lengths"])
    torch.testing.assert_close(model(batch["history"][2:4], batch["lengths"][2:4]), full[2:4])
    assert model(batch["history"], torch.zeros_like(batch["lengths"])).isfinite().all()
    assert model.item_vectors(batch["positives"]).shape == (6, 4)


def test_authors_cmi_equals_their_code() -> None:
    model = CMI.authors(30, interests=3, dim=4, contrastive_weight=0.5).double()
    batch = make_batch(batch=5)
    model.project()
    losses = model.loss(**batch)
    unit = F.normalize(model.items, dim=-1)
    torch.testing.assert_close(unit, model.items)  # projected
    torch.testing.assert_close(model.categories.norm(dim=-1), torch.ones(3).double())
    fused: list[list[Tensor]] = []
    load, count = torch.zeros(3).double(), 0
    for view in batch["views"]:
        fused.append([])
        for b in range(5):
            rows = unit[batch["history"][b][view[b]]]
            assignment = torch.softmax(rows @ model.categories.T / 0.1, -1)
            load, count = load + assignment.sum(0), count + len(rows)
            state = model.general_gru(rows[None])[0]
            general = F.normalize(torch.relu(model.general_layer(state)), dim=0)
            pooled = F.normalize(assignment.T @ rows, dim=-1)
            fused[-1].append(F.normalize(pooled + general, dim=-1))
    main = 0.0
    for users in fused:
        for b, interests in enumerate(users):
            candidates = [int(batch["positives"][b]), *batch["negatives"].tolist(), *batch["negatives"].tolist()]
            scores = (interests @ unit[candidates].T).amax(0) / 0.1
            main = main + (scores.logsumexp(0) - scores[0]) / 10
    torch.testing.assert_close(losses.main, main)
    first, second = (torch.cat(users) for users in fused)
    similarity, diagonal = first @ second.T / 0.1, torch.arange(15)
    contrastive = F.cross_entropy(similarity, diagonal) + F.cross_entropy(similarity.T, diagonal)
    torch.testing.assert_close(losses.contrastive, contrastive)
    gram = model.categories @ model.categories.T
    torch.testing.assert_close(losses.orthogonality, (gram - torch.eye(3)).square().mean())
    share = load / count
    torch.testing.assert_close(losses.balance, share.std() / share.mean())
    total = main + 0.5 * contrastive + 10 * losses.orthogonality + losses.balance
    torch.testing.assert_close(losses.total, total)
    ranked = (model(batch["history"], batch["lengths"]) @ model.item_vectors().T).amax(1)
    assert ranked.abs().max() <= 10 + 1e-9  # a cosine over the temperature


def test_authors_cmi_with_one_interest_has_a_loss() -> None:
    losses = CMI.authors(30, interests=1, dim=4).loss(**make_batch())
    losses.total.backward()
    assert losses.balance == 0 and losses.total.isfinite()
