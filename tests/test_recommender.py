"""The Python interface: as the command line trains, recommends and evaluates, and for lists of items."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import cmi_fast
from cmi_fast import Interactions, Recommender
from cmi_fast.data.simulate import simulate
from cmi_fast.errors import InputError
from cmi_fast.run import train_run
from cmi_fast.training.config import Config, make_config

SMALL = {"dim": 8, "interests": 2, "batch_size": 32, "steps_per_epoch": 4, "epochs": 2}


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    return simulate(users=80, items=120, days=6, plays_per_user=20)[0]


@pytest.fixture(scope="module")
def parts(log: pl.DataFrame) -> tuple[Interactions, Interactions, Interactions]:
    return Interactions.from_frame(log).split().parts()


@pytest.fixture(scope="module")
def fitted(parts: tuple[Interactions, Interactions, Interactions]) -> Recommender:
    return Recommender(**SMALL).fit(parts[0], valid=parts[1])


def test_equals_the_command_line(
    log: pl.DataFrame, parts: tuple[Interactions, ...], fitted: Recommender, tmp_path: Path
) -> None:
    log.write_parquet(tmp_path / "log.parquet")
    metrics = train_run(tmp_path / "log.parquet", tmp_path / "run", make_config(**SMALL))
    fitted.save(tmp_path / "own")
    for name in ("model.safetensors", "items.parquet"):
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert fitted.evaluate(parts[2]) == pytest.approx(metrics["test"], abs=1e-12)
    trained = Recommender.load(tmp_path / "run")
    plays = log.filter(pl.col("user_id") == 3).sort("timestamp")["item_id"].to_list()
    by_list = trained.recommend_for([plays], k=5)
    assert trained.recommend([3], k=5)["item_id"].to_list() == by_list["item_id"].to_list()


def test_recommend(log: pl.DataFrame, parts: tuple[Interactions, ...], fitted: Recommender) -> None:
    seen = log.filter(pl.col("day") < 5)
    frame = fitted.recommend(k=7)
    assert frame.schema == {"user_id": pl.Int64, "item_id": pl.Int64, "score": pl.Float32, "rank": pl.Int32}
    assert sorted(frame["user_id"].unique()) == sorted(fitted.user_ids.tolist())
    assert frame.join(seen, on=["user_id", "item_id"]).is_empty()
    for group in frame.partition_by("user_id"):
        assert group["rank"].to_list() == list(range(1, 8))
        assert group["score"].is_sorted(descending=True)
    some = fitted.recommend(np.array([9, 4]), k=7)
    assert some["user_id"].unique(maintain_order=True).to_list() == [9, 4]
    alone, among_all = (lists.filter(pl.col("user_id") == 4) for lists in (some, frame))
    assert alone["item_id"].equals(among_all["item_id"])
    np.testing.assert_allclose(alone["score"], among_all["score"], rtol=1e-6)  # products of another batch size
    everything = fitted.recommend([4], k=1000, filter_viewed=False)
    assert set(everything["item_id"]) == set(fitted.item_ids.tolist())


def test_scores_are_the_largest_inner_product(fitted: Recommender) -> None:
    histories = {"x": [fitted.item_ids[0], 10**9], "y": fitted.item_ids[5:9]}
    frame = fitted.recommend_for(histories, k=10**6, filter_viewed=False)
    vectors = fitted.interests(histories=histories)
    assert vectors.shape == (2, 2, 9)  # eight of the model, and what is in fashion
    scores = (vectors @ fitted.item_vectors().T).amax(1)
    for row, user in enumerate("xy"):
        own = frame.filter(pl.col("user_id") == user).sort("item_id")
        torch.testing.assert_close(torch.tensor(own["score"].to_list()), scores[row], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fitted.interests([9, 4])[1], fitted.interests()[fitted.user_ids.tolist().index(4)])


def test_recent_plays_are_added_to_the_score(parts: tuple[Interactions, ...], tmp_path: Path) -> None:
    plain, recent = (Recommender(**SMALL, recent_weight=w).fit(parts[0]) for w in (0.0, 0.7))
    days = parts[0].days
    played = parts[0].item_ids[parts[0].items[days > days.max() - 3]]
    counts = np.array([(played == item).sum() for item in recent.item_ids])
    assert len(set(counts.tolist())) > 1
    history = [recent.item_ids[:4]]
    before, after = (x.recommend_for(history, k=10**6).sort("item_id") for x in (plain, recent))
    unseen = ~np.isin(recent.item_ids, history[0])
    expected = before["score"].to_numpy() + 0.7 * np.log1p(counts[unseen])
    np.testing.assert_allclose(after["score"], expected, rtol=1e-5)
    scores = (recent.interests(histories=history) @ recent.item_vectors().T).amax(1)[0]
    np.testing.assert_allclose(scores[torch.from_numpy(unseen)], expected, rtol=1e-5)
    recent.save(tmp_path / "model")
    assert Recommender.load(tmp_path / "model").recommend(k=9).equals(recent.recommend(k=9))
    file = tmp_path / "model" / "items.parquet"
    items = pl.read_parquet(file)
    items.drop("recent_plays").write_parquet(file)  # of an earlier version, which ranked without
    np.testing.assert_allclose(
        Recommender.load(tmp_path / "model").recommend_for(history, k=10**6).sort("item_id")["score"],
        before["score"],
        rtol=1e-5,
    )
    items.with_columns(recent_plays=-pl.col("recent_plays") - 1).write_parquet(file)
    with pytest.raises(InputError, match="recent_plays"):
        Recommender.load(tmp_path / "model")


def test_no_history_is_recent_popularity(fitted: Recommender) -> None:
    lists = fitted.recommend_for([[], [10**9]], k=4)
    assert lists["user_id"].to_list() == [0] * 4 + [1] * 4
    assert lists["item_id"][:4].to_list() == lists["item_id"][4:].to_list()
    assert set(lists["score"]) == {0.0}


def test_save_and_load(parts: tuple[Interactions, ...], fitted: Recommender, tmp_path: Path) -> None:
    fitted.save(tmp_path / "a" / "model")
    loaded = Recommender.load(tmp_path / "a" / "model")
    assert loaded.recommend(k=9).equals(fitted.recommend(k=9))
    assert loaded.evaluate(parts[2]) == fitted.evaluate(parts[2])
    assert loaded.config == fitted.config
    with pytest.raises(InputError, match="expected the folder of a trained model"):
        Recommender.load(tmp_path / "nowhere")
    for damage in (b"", b"PAR1"):
        (tmp_path / "a" / "model" / "users.parquet").write_bytes(damage)
        with pytest.raises(InputError, match=r"users\.parquet"):
            Recommender.load(tmp_path / "a" / "model")
    pl.DataFrame({"user_id": [1], "history": [[10**6]]}, schema_overrides={"history": pl.List(pl.Int32)}).write_parquet(
        tmp_path / "a" / "model" / "users.parquet"
    )
    with pytest.raises(InputError, match="item rows from 0 to"):
        Recommender.load(tmp_path / "a" / "model")


def test_valid_plays_of_other_users_and_items(log: pl.DataFrame) -> None:
    """A later log has ids of its own: users and items that the first one lacks are cold, not an error."""
    early, late = log.filter(pl.col("day") < 4), log.filter(pl.col("day") >= 4)
    late = pl.concat([late, late.head(2).with_columns(user_id=pl.lit(777, pl.Int64), item_id=pl.lit(888, pl.Int64))])
    model = Recommender(**SMALL).fit(Interactions.from_frame(early), valid=Interactions.from_frame(late))
    assert 777 in model.user_ids and 888 not in model.item_ids
    seen = pl.concat([early, late])
    assert model.recommend(k=5).join(seen, on=["user_id", "item_id"]).is_empty()
    whole = Interactions.from_frame(pl.concat([early, late]))
    same = Recommender(**SMALL).fit(whole.subset(whole.days < 4), valid=whole.subset(whole.days >= 4))
    assert same.recommend([777, 5], k=5).equals(model.recommend([777, 5], k=5))


def test_without_valid_plays_every_epoch_is_run(parts: tuple[Interactions, ...]) -> None:
    settings = SMALL | {"epochs": 3, "patience": 1}
    short, long = (Recommender(**settings | {"epochs": n}).fit(parts[0]) for n in (2, 3))
    assert not torch.equal(short.item_vectors(), long.item_vectors())


def test_a_new_day_begins_with_the_weights_of_the_last(parts: tuple[Interactions, ...], log: pl.DataFrame) -> None:
    model = Recommender(**SMALL | {"lr": 1e-30}).fit(parts[0])
    before = dict(zip(model.item_ids.tolist(), model.item_vectors(), strict=True))
    new = log.head(3).with_columns(item_id=pl.lit(10**6, pl.Int64), day=pl.lit(9, pl.Int32))
    model.fit(Interactions.from_frame(pl.concat([log, new])), warm_start=True)
    after = dict(zip(model.item_ids.tolist(), model.item_vectors(), strict=True))
    assert 10**6 in after and len(after) > len(before)
    assert all(torch.equal(after[item][:8], vector[:8]) for item, vector in before.items())  # the ninth: recent plays
    with pytest.raises(InputError, match="not fitted"):
        Recommender(**SMALL).fit(parts[0], warm_start=True)


@pytest.mark.parametrize("freeze", [True, False])
def test_pretrained_item_vectors(parts: tuple[Interactions, ...], freeze: bool) -> None:
    items = parts[0].item_ids[np.unique(parts[0].items)]
    vectors = dict(zip(items.tolist(), np.random.default_rng(0).normal(size=(len(items), 8)) * 50, strict=True))
    model = Recommender(**SMALL).fit(parts[0], item_vectors=vectors, freeze_items=freeze)
    given = torch.nn.functional.normalize(torch.tensor(np.stack([vectors[i] for i in model.item_ids.tolist()])), dim=1)
    closeness = (model.item_vectors()[:, :8].double() * given).sum(1)
    assert (closeness > 1 - 1e-6).all() if freeze else (closeness > 0.9).all() and (closeness < 1 - 1e-6).any()


def test_bad_arguments(parts: tuple[Interactions, ...], fitted: Recommender) -> None:
    first = int(fitted.item_ids[0])
    new = Recommender(**SMALL)
    for call, message in (
        (lambda: fitted.recommend([3, 555]), "users: found 1 that were not in the log, such as 555"),
        (lambda: fitted.recommend(["a"]), "user ids of the log are text"),
        (lambda: fitted.recommend([3], k=0), "k must be at least 1, got 0"),
        (lambda: fitted.recommend([3], unknown="warn"), "unknown must be 'raise' or 'skip'"),
        (lambda: new.recommend(), "not fitted"),
        (lambda: Recommender(depth=3), "settings: unknown key 'depth'"),
        (lambda: Recommender(dim=0), "settings: dim = 0"),
        (lambda: new.fit(parts[0], freeze_items=True), "found no item_vectors"),
        (lambda: new.fit(parts[0], item_vectors={first: [1.0]}), r"expected vectors of 8 numbers .* found shape \[1\]"),
        (lambda: new.fit(parts[0], item_vectors={first: [1.0], 2: [1, 2]}), "expected vectors of 8 numbers"),
        (lambda: new.fit(parts[0], item_vectors={first: [np.nan] * 8}), "no finite numbers"),
        (lambda: new.fit(parts[0], item_vectors={10**9: [1.0] * 8}), "found none for the items of the log"),
        (lambda: new.fit(parts[0], item_vectors={first: [1.0] * 8}, freeze_items=True), "items to freeze, such as"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for call, message in (
        (lambda: fitted.recommend([3.5]), "users must be integers, or text"),
        (lambda: fitted.recommend([3, "a"]), "users must be integers, or text, got a mixture"),
        (lambda: fitted.recommend([3], k=2.0), "k must be an int"),
        (lambda: fitted.interests([3], histories=[[3]]), "users or histories, got both"),
        (lambda: Recommender(Config(), dim=3), "config must be given alone"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    assert fitted.recommend([3, 555], unknown="skip")["user_id"].unique().to_list() == [3]
    assert fitted.recommend([], k=3).is_empty()


def test_import_stays_light() -> None:
    code = "import json, sys, cmi_fast; print(json.dumps([m for m in sys.modules if '.' not in m]))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"polars", "pandas", "scipy", "sklearn", "implicit", "pydantic", "pyarrow"} & set(json.loads(found))
    with pytest.raises(AttributeError, match="nothing"):
        cmi_fast.nothing  # noqa: B018
