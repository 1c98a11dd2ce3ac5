"""Agreement of learned with known categories."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cmi_fast.errors import InputError
from cmi_fast.evaluation.categories import category_agreement, read_item_categories

IDS = np.array([3, 5, 8, 13])


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("names", [["b", "a", "b"], [7, -1, 7]], ids=["text", "integers"])
def test_reading(tmp_path: Path, suffix: str, names: list[object]) -> None:
    frame = pl.DataFrame({"item_id": [13, 99, 3], "category": names})
    path = tmp_path / f"c.{suffix}"
    frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
    categories = read_item_categories(path, IDS)
    known = categories.of
    assert [categories.names[place] for place in known[[0, 3]]] == [str(names[2]), str(names[0])]
    assert known[1] == known[2] == -1
    assert known[0] == known[3] >= 0


def test_agreement() -> None:
    known = np.array([0, 0, 1, 1, -1, 2, 2])
    order = np.arange(7)
    perfect = category_agreement(np.array([5, 5, 3, 3, 9, 1, 1]), known, order)
    assert perfect["nmi"] == pytest.approx(1)
    assert perfect["items"] == 6
    assert category_agreement(np.zeros(7, dtype=np.int64), known, order)["nmi"] == 0


def test_agreement_by_popularity_alone() -> None:
    """Where both follow popularity, shuffling among items of similar popularity keeps the agreement."""
    order = np.random.default_rng(1).permutation(1000)
    known = np.empty(1000, dtype=np.int64)
    known[order] = np.arange(1000) // 250
    agreement = category_agreement(known % 2, known, order)
    assert agreement["nmi_shuffled"] < 0.02
    assert agreement["nmi_popularity"] == pytest.approx(agreement["nmi"]) and agreement["nmi"] > 0.6


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": [3, 5]}, "no column 'category', found item_id"),
        ({"item_id": [300, 500], "category": [1, 2]}, "found 0 items of the log's catalogue"),
        ({"item_id": [3], "category": [1]}, "found 1 items of the log's catalogue"),
        ({"item_id": [3, 5], "category": [[1], [2]]}, "column 'category': expected integers or text"),
        ({"item_id": [3, 5], "category": [0.5, 1.5]}, "column 'category': expected integers or text"),
        ({"item_id": [[3], [5]], "category": [1, 2]}, "column 'item_id': expected integers or text"),
    ],
)
def test_bad_files(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    pl.DataFrame(columns).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(InputError) as error:
        read_item_categories(tmp_path / "c.parquet", IDS)
    assert message in str(error.value)


def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read"):
        read_item_categories(tmp_path / "c.parquet", IDS)
