"""The shared evaluation task, and the baselines against dense formulas."""

import json
import warnings

import numpy as np
import pytest
from implicit.nearest_neighbours import CosineRecommender
from scipy.sparse import csr_matrix

from cmi_fast.data.interactions import Interactions
from cmi_fast.data.split import Split
from cmi_fast.evaluation import POLICY, EvaluationTask, baselines, evaluate_baselines
from cmi_fast.evaluation.baselines import (
    ItemKNN,
    Popularity,
    RecentItemKNN,
    binary_matrix,
    cosine_similarity,
    first_of_rows,
    sort_rows,
)
from cmi_fast.evaluation.task import popularity_order


def split_of(users, items, days) -> Split:
    """The split of a log given by columns; users and items are rows already."""
    users, items, days = (np.asarray(column, dtype=np.int32) for column in (users, items, days))
    order = np.lexsort((days, users))
    return Interactions(
        users[order], items[order], days[order], days[order].astype(np.int64),
        np.arange(users.max() + 1), np.arange(items.max() + 1), (),
    ).split()  # fmt: skip


@pytest.fixture(scope="module")
def split():
    """100 users, 150 items with a popularity law that drifts, 8 days; new users and items come late."""
    rng = np.random.default_rng(0)
    users, days = rng.integers(0, 100, 3_000), rng.integers(0, 8, 3_000)
    taste = (150 * rng.random(3_000) ** 2).astype(int)
    items = (taste + 30 * (users % 3) + days) % 150
    fresh = (users >= 90) & (days < 6)  # ten users have no training play, the other items of day 7 are cold
    users, items, days = users[~fresh], items[~fresh], days[~fresh]
    items[(days == 7) & (rng.random(len(items)) < 0.1)] = 150
    return split_of(users, items, days)


@pytest.fixture(scope="module")
def tasks(split):
    return EvaluationTask.from_split(split, "valid"), EvaluationTask.from_split(split, "test")


def test_tasks_follow_the_policy(split, tasks):
    valid, test = tasks
    log = split.interactions
    for task, day in ((valid, 6), (test, 7)):
        assert task.users.tolist() == sorted(set(log.users[log.days == day].tolist()))
        for place, user in enumerate(task.users):
            own = log.users == user
            assert task.history[place].tolist() == log.items[own & (log.days < day)].tolist()
            assert set(task.targets[place].tolist()) == set(log.items[own & (log.days == day)].tolist())
    assert not test.catalogue[150]
    assert 150 in test.targets.items
    assert (valid.history.lengths == 0).any()
    json.dumps(POLICY)


def test_popularity_order(split):
    counts = {since: np.zeros(151, dtype=int) for since in (0, 3)}
    for item, day in zip(split.interactions.items, split.interactions.days, strict=True):
        for since, plays in counts.items():
            plays[item] += since <= day < 6
    playable = np.flatnonzero(counts[0]).tolist()
    assert popularity_order(split).tolist() == sorted(playable, key=lambda item: (-counts[0][item], item))
    recent = sorted(playable, key=lambda item: (-counts[3][item], -counts[0][item], item))
    assert EvaluationTask.from_split(split, "test").popular.tolist() == recent


def test_popularity_leaves_out_what_was_seen(split, tasks):
    order = popularity_order(split)
    for task in tasks:
        ranked = Popularity(order).rank(task)
        for place in range(len(task.users)):
            unseen = [item for item in order.tolist() if item not in set(task.history[place].tolist())]
            assert ranked[place].tolist() == unseen[:50]


def test_lists_end_where_the_catalogue_does():
    users, items = [0, 0, 1, 1, 0, 1, 0, 1], [0, 1, 1, 2, 2, 0, 1, 1]
    task = EvaluationTask.from_split(split_of(users, items, [0, 0, 0, 0, 1, 1, 2, 2]), "valid")
    assert Popularity(task.popular).rank(task)[:, :3].tolist() == [[2, -1, -1], [0, -1, -1]]


def dense_item_knn(split, task):
    """Scores [E, V] by dense cosine of the binary matrix; -inf for what a list may not hold."""
    plays = np.zeros((split.num_users, split.num_items))
    plays[split.train.users, split.train.items] = 1
    norms = np.maximum(np.linalg.norm(plays, axis=0), 1e-12)
    history = np.zeros((len(task.users), split.num_items))
    history[task.history.users, task.history.items] = 1
    scores = history @ ((plays.T @ plays) / np.outer(norms, norms))
    return np.where((history > 0) | ~task.catalogue, -np.inf, scores)


def test_item_knn_with_all_neighbours_equals_the_dense_formula(split, tasks):
    plays = binary_matrix(split.train, split.num_items)
    model = ItemKNN(cosine_similarity(plays, None), None)
    for task in tasks:
        ranked, scores = model.rank(task), dense_item_knn(split, task)
        rows = np.arange(len(ranked))[:, None]
        np.testing.assert_allclose(scores[rows, ranked], -np.sort(-scores, axis=1)[:, :50], atol=1e-9)
        assert np.isfinite(scores[rows, ranked]).all()
        without_history = task.history.lengths == 0
        assert (ranked[without_history] == task.popular[:50]).all()


def test_implicit_and_the_product_agree(split):
    plays = binary_matrix(split.train, split.num_items)
    whole = cosine_similarity(plays, None).toarray()
    np.testing.assert_allclose(cosine_similarity(plays, split.num_items).toarray(), whole, atol=1e-12)
    few = cosine_similarity(plays, 5).toarray()
    assert ((few > 0).sum(axis=1) <= 5).all()
    np.testing.assert_allclose(-np.sort(-few, axis=1)[:, :5], -np.sort(-whole, axis=1)[:, :5], atol=1e-12)


def test_fewer_neighbours_are_those_that_implicit_finds(split, monkeypatch):
    plays = binary_matrix(split.train, split.num_items)
    monkeypatch.setattr(baselines, "SORT_BLOCK", 200)
    similarity = sort_rows(cosine_similarity(plays, 50))
    for count in (1, 5, 50):
        ours, expected = first_of_rows(similarity, count).toarray(), cosine_similarity(plays, count).toarray()
        assert ((ours > 0).sum(axis=1) == (expected > 0).sum(axis=1)).all()
        np.testing.assert_allclose(-np.sort(-ours), -np.sort(-expected), atol=1e-12)  # ties apart, the same items
    ties = sort_rows(csr_matrix([[0.5, 0, 0.5, 1], [0, 0, 0, 0], [1, 1, 1, 1]]))
    expected = [[0.5, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert first_of_rows(ties, 2).toarray().tolist() == expected


def test_item_knn_equals_what_implicit_recommends(split, tasks):
    plays, test = binary_matrix(split.train, split.num_items), tasks[1]
    recommender = CosineRecommender(K=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recommender.fit(plays, show_progress=False)
    ranked = ItemKNN(cosine_similarity(plays, 5), 5).rank(test)
    history = binary_matrix(test.history, split.num_items)
    scores = (history @ recommender.similarity).toarray()
    for place in range(len(test.users)):
        _, expected = recommender.recommend(place, history[place], N=10)
        np.testing.assert_allclose(scores[place, ranked[place, : len(expected)]], expected, atol=1e-12)


def test_items_without_a_score_follow_by_recent_popularity():
    # Items 0 and 1 are played together; 2, 3 and 4 by others, 4 most on the last training days.
    users = [0, 0, 1, 2, 3, 4, 5, 0, 1, 0, 1]
    items = [0, 1, 0, 2, 3, 4, 4, 3, 2, 2, 4]
    days = [0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    split = split_of(users, items, days)
    valid = EvaluationTask.from_split(split, "valid")
    model = ItemKNN(cosine_similarity(binary_matrix(split.train, 5), None), None)
    assert model.rank(valid)[:, :5].tolist() == [[4, 2, 3, -1, -1], [1, 4, 2, 3, -1]]


def test_blocks_of_users_do_not_change_a_ranking(split, tasks, monkeypatch):
    model = ItemKNN(cosine_similarity(binary_matrix(split.train, split.num_items), 20), 20)
    whole = model.rank(tasks[1])
    monkeypatch.setattr(baselines, "SCORE_BLOCK", 7 * split.num_items)
    assert (model.rank(tasks[1]) == whole).all()


def test_neighbours_are_chosen_on_the_valid_day(split, tasks, monkeypatch):
    monkeypatch.setattr(baselines, "NEIGHBOURS", (1, 3, 10))
    valid, _ = tasks
    plays = binary_matrix(split.train, split.num_items)
    recalls = {}
    for count in (1, 3, 10, None):
        ranked = ItemKNN(cosine_similarity(plays, count), count).rank(valid)
        recalls[count] = valid.evaluate(ranked)["recall@50"]
    assert len(set(recalls.values())) > 1
    assert ItemKNN.fit(split, valid).neighbours == max(recalls, key=recalls.get)
    monkeypatch.setattr(baselines, "MOST_PAIRS", 0)
    del recalls[None]
    assert ItemKNN.fit(split, valid).neighbours == max(recalls, key=recalls.get)


def test_settings_are_chosen_on_a_sample_of_many_users(split, tasks, monkeypatch):
    valid, _ = tasks
    judges = valid.sample(5)
    assert len(judges.users) == 5 and set(judges.users) < set(valid.users) and valid.sample(10**6) is valid
    places = np.searchsorted(valid.users, judges.users)
    for ours, all_lists in ((judges.targets, valid.targets), (judges.history, valid.history)):
        assert [ours[i].tolist() for i in range(5)] == [all_lists[place].tolist() for place in places]
    asked = []
    rank = ItemKNN.rank_with

    def spy(model, task, added):
        asked.append(len(task.users))
        return rank(model, task, added)

    monkeypatch.setattr(ItemKNN, "rank_with", spy)
    monkeypatch.setattr(baselines, "MOST_JUDGES", 5)
    evaluate_baselines(split, *tasks)
    assert set(asked[:-2]) == {5} and asked[-2:] == [len(task.users) for task in tasks]


def test_evaluate_baselines_reports_every_line(split, tasks, recwarn, capfd):
    results = evaluate_baselines(split, *tasks)
    assert list(results) == ["item_knn", "item_knn_recent", "popularity", "recent_popularity"]
    assert results["item_knn_recent"]["neighbours"] == results["item_knn"]["neighbours"]
    assert results["item_knn"]["neighbours"] in (50, 100, 200, 500, "all")
    for name, model in (("popularity", popularity_order(split)), ("recent_popularity", tasks[0].popular)):
        for task in tasks:
            assert results[name][task.name] == task.evaluate(Popularity(model).rank(task))
    assert json.loads(json.dumps(results)) == results
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def rank_recent(model, task):
    return model.item_knn.rank_with(task, [model.weight * model.recent])[0]


def test_item_knn_with_recent_popularity_equals_the_dense_formula(split, tasks):
    valid, test = tasks
    item_knn = ItemKNN(cosine_similarity(binary_matrix(split.train, split.num_items), None), None)
    recent = np.zeros(split.num_items)
    for item, day in zip(split.interactions.items, split.interactions.days, strict=True):
        recent[item] += 3 <= day < 6
    recalls = {}
    for weight in baselines.POPULARITY_WEIGHTS:
        model = RecentItemKNN(item_knn, recent / recent.max(), weight)
        ranked = rank_recent(model, test)
        scores = dense_item_knn(split, test) + weight * recent / recent.max()
        rows = np.arange(len(ranked))[:, None]
        np.testing.assert_allclose(scores[rows, ranked], -np.sort(-scores, axis=1)[:, :50], atol=1e-9)
        recalls[weight] = valid.evaluate(rank_recent(model, valid))["recall@50"]
    assert len(set(recalls.values())) > 1
    fitted = RecentItemKNN.fit(split, valid, item_knn)
    assert fitted.weight == max(recalls, key=recalls.get)
    np.testing.assert_array_equal(fitted.recent, recent / recent.max())


def test_baselines_ranked_together_are_those_ranked_alone(split, tasks, monkeypatch):
    models = baselines.Baselines.fit(split, tasks[0])
    monkeypatch.setattr(baselines, "SCORE_BLOCK", 7 * split.num_items)
    together = models.rank(tasks[1])
    assert list(together) == list(models.settings)
    recent = models.recent_item_knn
    alone = {
        "item_knn": recent.item_knn.rank(tasks[1]),
        "item_knn_recent": rank_recent(recent, tasks[1]),
        "popularity": models.popularity.rank(tasks[1]),
        "recent_popularity": models.recent_popularity.rank(tasks[1]),
    }
    for name, ranked in alone.items():
        assert (together[name] == ranked).all(), name
    assert (together["item_knn"] != together["item_knn_recent"]).any()


def test_users_without_history_get_recent_popularity(tasks):
    valid, _ = tasks
    ranked = np.tile(np.arange(50), (len(valid.users), 1))
    served = valid.with_fallback(ranked)
    without = valid.history.lengths == 0
    assert (served[without] == valid.popular[:50]).all()
    assert (served[~without] == ranked[~without]).all()
    longer = valid.with_fallback(np.zeros((len(valid.users), 400), dtype=np.int64))[without]
    assert (longer[:, len(valid.popular) :] == -1).all()
