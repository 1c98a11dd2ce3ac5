"""What the commands print."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from cmi_fast.errors import InputError
from cmi_fast.systems import NAMES
from cmi_fast.tables import text_table

TABLES = [
    [f"{metric}@{k}" for metric in metrics for k in (10, 20, 50)]
    for metrics in (("Recall", "HitRate"), ("NDCG", "MRR", "Coverage"))
]


def print_notes(notes: tuple[str, ...]) -> None:
    for note in notes:
        print(f"note: {note}")


def print_metrics(metrics: dict[str, Any]) -> None:
    systems = {metrics["model"]: metrics, **metrics["baselines"]}
    parts = [part for part in ("valid", "test") if part in metrics]
    for day, columns in itertools.product(parts, TABLES):
        rows = [[day, *columns]]
        for name, result in sorted(systems.items(), key=lambda item: list(NAMES).index(item[0])):
            rows.append([NAMES[name], *(f"{result[day][column.lower()]:.4f}" for column in columns)])
        print(f"\n{text_table(rows)}")
    if "categories" in metrics:
        agreement = metrics["categories"]
        print(
            f"\nLearned categories against the known ones of {agreement['items']:,} items: "
            f"NMI {agreement['nmi']:.3f} (shuffled: {agreement['nmi_shuffled']:.3f}, "
            f"among items of similar popularity: {agreement['nmi_popularity']:.3f})"
        )


def print_comparison(folder_a: Path, folder_b: Path | None) -> None:
    """The tables of ``compare``; without ``folder_b``, the baselines alone."""
    from cmi_fast.rolling import Rolling, differences

    a = Rolling.read(folder_a)
    systems = sorted(a.frame["system"].unique(), key=list(NAMES).index)
    others = {NAMES[name]: a.of(name) for name in systems if name != a.model}
    spreads = {"a": a.deviations()}
    if folder_b is not None:
        b = Rolling.read(folder_b)
        if a.part != b.part:
            raise InputError(f"compare: {folder_a} has metrics of {a.part} days, {folder_b} of {b.part} days")
        others = {str(folder_b): b.of(b.model), **others}
        spreads["b"] = b.deviations()
    frame, days = a.of(a.model), a.by_seed["day"].unique().sort().to_list()
    print(f"\na = {folder_a}: {NAMES[a.model]}, {frame['user_id'].n_unique():,} users, {len(frame):,} users and days")
    seeds = len(a.by_seed) // len(days)
    print(f"{a.part} metrics, test days {days}, mean over {seeds} seeds; 95 % intervals over users, sd over seeds")
    for name, other in others.items():
        found_in = spreads if name == str(folder_b) else {"a": spreads["a"]}  # a baseline has no seeds
        rows = [["", "a", "b", "a - b", "from", "to", *(f"sd {system}" for system in found_in)]]
        for metric, found in differences(frame, other).items():
            values: tuple[float | None, ...]
            values = (found.mean_a, found.mean_b, found.difference, found.low, found.high)
            values += tuple(spread[metric] for spread in found_in.values())
            rows.append([metric, *("-" if value is None else f"{value:.4f}" for value in values)])
        print(f"\nb = {name}\n{text_table(rows)}")


def plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
