"""The metrics against trec_eval, scikit-learn, and a literal loop."""

import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from cmi_fast.data.histories import Histories
from cmi_fast.evaluation import coverage, ranking_metrics, user_metrics


def lists_and_targets(seed, users=60, items=80, length=50):
    """Rankings [users, 50] of which some end early, and 1 to 9 targets a user, some of them cold."""
    rng = np.random.default_rng(seed)
    ranked = np.stack([rng.permutation(items)[:length] for _ in range(users)])
    ranked[np.arange(length) >= rng.integers(0, 2 * length, users)[:, None]] = -1
    targets = [rng.permutation(items + 20)[: rng.integers(1, 10)] for _ in range(users)]
    owners = np.repeat(np.arange(users), [len(row) for row in targets])
    return ranked, Histories.group(owners, np.concatenate(targets), users)


def literal(ranked, targets, cutoffs):
    metrics = {}
    for cutoff in cutoffs:
        recalls, ndcgs, reciprocals = [], [], []
        for user, row in enumerate(ranked):
            wanted = set(targets[user].tolist())
            recalls.append(len(wanted & set(row[:cutoff].tolist())) / len(wanted))
            hits = [rank for rank, item in enumerate(row[:cutoff].tolist(), 1) if item in wanted]
            ideal = sum(1 / math.log2(1 + rank) for rank in range(1, min(cutoff, len(wanted)) + 1))
            ndcgs.append(sum(1 / math.log2(1 + rank) for rank in hits) / ideal)
            reciprocals.append(1 / hits[0] if hits else 0)
        metrics[f"recall@{cutoff}"] = sum(recalls) / len(recalls)
        metrics[f"hitrate@{cutoff}"] = sum(recall > 0 for recall in recalls) / len(recalls)
        metrics[f"ndcg@{cutoff}"] = sum(ndcgs) / len(ndcgs)
        metrics[f"mrr@{cutoff}"] = sum(reciprocals) / len(reciprocals)
    return metrics


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_literal_loop(seed):
    ranked, targets = lists_and_targets(seed)
    cutoffs = (1, 10, 20, 50)
    assert ranking_metrics(ranked, targets, cutoffs) == pytest.approx(literal(ranked, targets, cutoffs), abs=1e-12)


def test_each_user_has_the_metrics_of_a_log_of_one():
    ranked, targets = lists_and_targets(2)
    each = user_metrics(ranked, targets)
    for user in range(len(ranked)):
        alone = literal(ranked[user : user + 1], targets.select(np.array([user])), (10, 20, 50))
        assert {name: values[user] for name, values in each.items()} == pytest.approx(alone, abs=1e-12)


def test_equals_trec_eval():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    ranked, targets = lists_and_targets(7)
    relevant = {f"u{u}": {f"i{item}": 1 for item in targets[u]} for u in range(len(targets))}
    runs = {
        f"u{u}": {f"i{item}": float(-place) for place, item in enumerate(row) if item >= 0}
        for u, row in enumerate(ranked)
    }
    evaluator = pytrec_eval.RelevanceEvaluator(relevant, {"recall.10,20,50", "success.10,20,50", "ndcg_cut.10,20,50"})
    measured = evaluator.evaluate(runs)
    ours = ranking_metrics(ranked, targets)
    for cutoff in (10, 20, 50):
        # A user whose list is empty is absent from trec_eval's answer: nothing found.
        recall = sum(user[f"recall_{cutoff}"] for user in measured.values()) / len(targets)
        success = sum(user[f"success_{cutoff}"] for user in measured.values()) / len(targets)
        assert ours[f"recall@{cutoff}"] == pytest.approx(recall, abs=1e-12)
        ndcg = sum(user[f"ndcg_cut_{cutoff}"] for user in measured.values()) / len(targets)
        assert ours[f"hitrate@{cutoff}"] == pytest.approx(success, abs=1e-12)
        assert ours[f"ndcg@{cutoff}"] == pytest.approx(ndcg, abs=1e-12)


def test_ndcg_equals_scikit_learn():
    ranked, targets = lists_and_targets(5)
    relevance, scores = np.zeros((2, len(ranked), 100))
    for user, row in enumerate(ranked):
        relevance[user, targets[user]] = 1
        # scikit-learn ranks all items: those not listed come last, and the targets among them very last, as misses.
        scores[user] = -np.arange(100) - 1000 * relevance[user]
        listed = row[row >= 0]
        scores[user, listed] = np.arange(len(listed), 0, -1)
    ours = ranking_metrics(ranked, targets, (1, 10, 50))
    for cutoff in (1, 10, 50):
        assert ours[f"ndcg@{cutoff}"] == pytest.approx(ndcg_score(relevance, scores, k=cutoff), abs=1e-12)


def test_mrr_equals_trec_eval():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    ranked, targets = lists_and_targets(9)
    relevant = {f"u{u}": {f"i{item}": 1 for item in targets[u]} for u in range(len(targets))}
    for cutoff in (10, 50):
        runs = {
            f"u{u}": {f"i{item}": float(-place) for place, item in enumerate(row[:cutoff]) if item >= 0}
            for u, row in enumerate(ranked)
        }
        measured = pytrec_eval.RelevanceEvaluator(relevant, {"recip_rank"}).evaluate(runs)
        mean = sum(user["recip_rank"] for user in measured.values()) / len(targets)
        assert ranking_metrics(ranked, targets, (cutoff,))[f"mrr@{cutoff}"] == pytest.approx(mean, abs=1e-12)


def test_coverage_by_hand():
    ranked = np.array([[4, 2, 7], [4, 3, -1]])
    assert coverage(ranked, 8, (1, 2, 3)) == {"coverage@1": 1 / 8, "coverage@2": 3 / 8, "coverage@3": 4 / 8}


def test_by_hand():
    ranked = np.array([[4, 2, 7, 9], [1, 3, -1, -1]])
    targets = Histories.group(np.array([0, 0, 0, 1]), np.array([7, 4, 100, 0]), 2)
    assert ranking_metrics(ranked, targets, (1, 4)) == {
        "recall@1": 1 / 6, "hitrate@1": 1 / 2, "ndcg@1": 1 / 2, "mrr@1": 1 / 2,
        "recall@4": 1 / 3, "hitrate@4": 1 / 2, "mrr@4": 1 / 2,
        "ndcg@4": pytest.approx((1 + 1 / 2) / (1 + 1 / math.log2(3) + 1 / 2) / 2),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ranked", "owners", "cutoffs", "message"),
    [
        ([[1, 2]], [0, 1], (1,), r"ranked must have shape \[E, n\] with E = 2 >= 1"),
        ([[1, 2], [3, 4]], [0, 1], (3,), "cutoffs must lie in 1 to 2"),
        ([[1, 2], [3, 4]], [0, 1], (0,), "cutoffs must lie in 1 to 2"),
        ([[1, 2], [3, 4], [5, 6]], [0, 2], (1,), "user 1 has none"),
        ([[-1, -1], [4, 4]], [0, 1], (1,), "user 1 repeats one"),
    ],
)
def test_bad_arguments(ranked, owners, cutoffs, message):
    targets = Histories.group(np.array(owners), np.arange(2), max(owners) + 1)
    with pytest.raises(ValueError, match=message):
        ranking_metrics(np.array(ranked), targets, cutoffs)
