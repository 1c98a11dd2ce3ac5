"""CMI: the objective against its equations, retrieval vectors against the score they stand for."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cmi_fast.models.cmi import CMI


def make_batch(items: int = 30, batch: int = 4, length: int = 6) -> dict[str, Tensor]:
    lengths = torch.randint(1, length + 1, (batch,))
    member = torch.arange(length) < lengths[:, None]
    views = (torch.rand(2, batch, length) < 0.5) & member
    views[:, :, 0] = True
    return {
        "history": torch.randint(items, (batch, length)),
        "lengths": lengths,
        "views": views,
        "positives": torch.randint(items, (batch,)),
        "negatives": torch.randint(items, (batch,)),
    }


def pooled(model: CMI, items: Tensor) -> Tensor:
    """Eq. 1-3 for one user's items [n, d], with the unit norm of docs/model.md."""
    unit = F.normalize(items, dim=-1)
    assignment = torch.softmax(unit @ F.normalize(model.categories, dim=-1).T / model.temperature, dim=-1)
    return F.normalize(assignment.T @ unit, dim=-1)


def scores(model: CMI, history: Tensor, candidates: Tensor) -> Tensor:
    """max_k(u_k . v / epsilon) + u_g . v of the candidates for one user."""
    vectors = model.item_vectors(candidates)
    best = (pooled(model, model.items[history]) @ vectors.T / model.temperature).max(0).values
    if model.gru is None:
        return best
    general = model.gru(model.item_vectors(history)[None])[0]
    return best + vectors @ general


@pytest.mark.parametrize("general", [True, False], ids=["with-general", "without-general"])
def test_retrieval_vectors_reproduce_the_score(general: bool) -> None:
    model = CMI(30, interests=3, dim=8, general_interest=general).double()
    batch = make_batch()
    vectors = model(batch["history"], batch["lengths"])
    ranked = (vectors @ model.item_vectors().T).amax(1)
    for b, n in enumerate(batch["lengths"]):
        torch.testing.assert_close(ranked[b], scores(model, batch["history"][b, :n], torch.arange(30)))


def test_retrieval_of_the_text_is_by_the_cosine_of_sums() -> None:
    model = CMI(30, interests=3, dim=8, unit_interests=False, general_in_retrieval=False).double()
    batch = make_batch()
    ranked = (model(batch["history"], batch["lengths"]) @ model.item_vectors().T).amax(1)
    sums = model.pool(batch["history"], batch["lengths"])
    for b, n in enumerate(batch["lengths"]):
        unit = F.normalize(model.items[batch["history"][b, :n]], dim=-1)
        assignment = torch.softmax(unit @ F.normalize(model.categories, dim=-1).T / model.temperature, dim=-1)
        torch.testing.assert_close(sums[b], assignment.T @ unit)
        cosines = F.cosine_similarity(sums[b][:, None], model.items[None], dim=-1)
        torch.testing.assert_close(ranked[b], cosines.max(0).values)


def test_loss_equals_the_equations() -> None:
    frequency = torch.rand(30) + 0.1
    model = CMI(30, interests=3, dim=8, contrastive_weight=0.3, orthogonality_weight=2.0, frequency=frequency).double()
    batch = make_batch()
    losses = model.loss(**batch)

    candidates = torch.cat([batch["positives"], batch["negatives"]])
    main = torch.zeros(())
    for b, n in enumerate(batch["lengths"]):
        logits = scores(model, batch["history"][b, :n], candidates) - frequency.log().double()[candidates]
        rivals = candidates != candidates[b]
        rivals[b] = True
        main = main + torch.logsumexp(logits[rivals], 0) - logits[b]
    torch.testing.assert_close(losses.main, (main / 4).double())

    # Eq. 6 over all pairs: every other vector of both views is a negative.
    views = [
        torch.cat([pooled(model, model.items[h[v]]) for h, v in zip(batch["history"], view, strict=True)])
        for view in batch["views"]
    ]
    z = torch.cat(views)
    similarity = (z @ z.T / model.contrastive_temperature).exp()
    pairs = len(z) // 2
    contrastive = 0.0
    for i in range(2 * pairs):
        positive = similarity[i, (i + pairs) % (2 * pairs)]
        contrastive -= math.log(float((positive / (similarity[i].sum() - similarity[i, i])).detach()))
    assert losses.contrastive.item() == pytest.approx(contrastive / pairs, rel=1e-10)

    g = F.normalize(model.categories, dim=-1)
    orthogonality = (g @ g.T).square().sum() - (g @ g.T).diagonal().square().sum()
    torch.testing.assert_close(losses.orthogonality, orthogonality)
    torch.testing.assert_close(losses.total, losses.main + 0.3 * losses.contrastive + 2 * losses.orthogonality)


def test_ablations() -> None:
    batch = make_batch()
    without_contrastive = CMI(30, interests=3, dim=8, contrastive_weight=0.0).loss(**batch)
    assert without_contrastive.contrastive == 0
    assert not any(name.startswith("gru") for name in CMI(30, general_interest=False).state_dict())


def test_initialisation_is_uniform() -> None:
    for name, parameter in CMI(500, dim=64).named_parameters():
        assert parameter.abs().max() <= 1 / 8, name
        assert parameter.abs().max() > 0.12, name


def test_assigned_categories() -> None:
    model = CMI(3, interests=2, dim=2)
    model.categories.data = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    model.items.data = torch.tensor([[5.0, 1.0], [0.1, 0.2], [3.0, -4.0]])
    assert model.assigned_categories().tolist() == [0, 1, 0]


def shares(model: CMI, items: Tensor) -> Tensor:
    """The share of one user's items [n, d] in each category."""
    cosines = F.normalize(items, dim=-1) @ F.normalize(model.categories, dim=-1).T
    return torch.softmax(cosines / model.assignment_temperature, dim=-1).mean(0)


@pytest.mark.parametrize("general", [True, False], ids=["with-general", "without-general"])
def test_the_share_term_is_added_to_each_interests_score(general: bool) -> None:
    model = CMI(30, interests=3, dim=8, general_interest=general, share_weight=0.7, contrastive_weight=0.0).double()
    batch = make_batch()
    candidates = torch.cat([batch["positives"], batch["negatives"]])
    ranked = (model(batch["history"], batch["lengths"]) @ model.item_vectors(candidates).T).amax(1)
    main = torch.zeros(())
    for b, n in enumerate(batch["lengths"]):
        items = model.items[batch["history"][b, :n]]
        unit = F.normalize(model.items[candidates], dim=-1)
        term = 0.7 * shares(model, items).log()[:, None]
        expected = (pooled(model, items) @ unit.T / model.temperature + term).max(0).values
        if model.gru is not None:
            expected = expected + unit @ model.gru(F.normalize(items, dim=-1)[None])[0]
        torch.testing.assert_close(ranked[b], expected)
        rivals = candidates != candidates[b]
        rivals[b] = True
        main = main + torch.logsumexp(expected[rivals], 0) - expected[b]
    torch.testing.assert_close(model.loss(**batch).main, (main / 4).double())


def test_the_share_term_with_the_texts_retrieval() -> None:
    """Ranked by the cosine of the interests, to which epsilon times the term is added, and without u_g."""
    model = CMI(30, interests=3, dim=8, unit_interests=False, general_in_retrieval=False, share_weight=0.7).double()
    batch = make_batch()
    ranked = (model(batch["history"], batch["lengths"]) @ model.item_vectors().T).amax(1)
    for b, n in enumerate(batch["lengths"]):
        items = model.items[batch["history"][b, :n]]
        cosines = pooled(model, items) @ F.normalize(model.items, dim=-1).T
        term = 0.7 * shares(model, items).log()[:, None]
        torch.testing.assert_close(ranked[b], (cosines + model.temperature * term).max(0).values)


def test_the_share_term_stays_finite_where_a_share_is_zero() -> None:
    model = CMI(30, interests=3, dim=8, share_weight=1.0, assignment_temperature=1e-4)
    batch = make_batch()
    batch["lengths"][0] = 1  # one item: two shares vanish
    model.loss(**batch).total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_assignment_has_a_temperature_of_its_own() -> None:
    model = CMI(30, interests=3, dim=8, general_interest=False, assignment_temperature=0.3, temperature=0.05).double()
    batch = make_batch()
    vectors = model(batch["history"], batch["lengths"])
    for b, n in enumerate(batch["lengths"]):
        unit = F.normalize(model.items[batch["history"][b, :n]], dim=-1)
        assignment = torch.softmax(unit @ F.normalize(model.categories, dim=-1).T / 0.3, dim=-1)
        torch.testing.assert_close(vectors[b], F.normalize(assignment.T @ unit, dim=-1) / 0.05)


def test_annealing_falls_by_the_same_factor_and_is_kept_with_the_weights() -> None:
    options = {"assignment_temperature": 0.1, "first_assignment_temperature": 1.0, "annealing_steps": 4}
    model = CMI(30, interests=3, dim=8, **options)
    found = []
    for step in (0, 1, 2, 4, 9):
        model.begin_step(step)
        found.append(float(model.assignment_temperature))
    assert found == pytest.approx([1, 0.1**0.25, 0.1**0.5, 0.1, 0.1])
    batch = make_batch()
    model.begin_step(2)
    other = CMI(30, interests=3, dim=8, **options)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(batch["history"], batch["lengths"]), model(batch["history"], batch["lengths"]))
    model.begin_step(4)
    constant = CMI(30, interests=3, dim=8)  # at epsilon
    weights = {name: value for name, value in model.state_dict().items() if name != "assignment_temperature"}
    constant.load_state_dict(weights)
    torch.testing.assert_close(constant(batch["history"], batch["lengths"]), model(batch["history"], batch["lengths"]))


def test_annealing_under_autocast() -> None:
    model = CMI(30, interests=3, dim=8, share_weight=1.0, first_assignment_temperature=1.0)
    model.begin_step(5)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(**(batch := make_batch())).total
    torch.testing.assert_close(half, model.loss(**batch).total, rtol=0.05, atol=0.05)
