"""Results as the paper prints them: sheets of cells, whatever they are rendered to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from cmi_fast.data.statistics import Statistics
from cmi_fast.experiments.paper import DATASET, FIGURES, METRICS, STATISTICS
from cmi_fast.experiments.plan import BASELINES, SELECTED_BY, TITLES, Table

Results = dict[str, Any]
HEADINGS = [metric.replace("recall", "Recall").replace("hitrate", "HitRate") for metric in METRICS]
UNKNOWN = "-"


Mark = Literal["", "best", "second"]


@dataclass(frozen=True)
class Cell:
    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Sheet:
    """A table: ``groups`` are headings over so many columns each; the first column names the row."""

    title: str
    groups: Sequence[tuple[str, int]]
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


def result_sheets(results: Results) -> list[Sheet]:
    """For each log the table, and all trials behind it."""
    sheets = []
    for found in results["data"]:
        sheets += [_systems_sheet(Table(results["table"]), found), _trials_sheet(found)]
    return sheets


def statistics_sheet(logs: Sequence[tuple[str, Statistics]]) -> Sheet:
    """Table 2, the paper's data last."""
    rows = [
        [
            *(name, f"{x.users:,}", f"{x.items:,}", f"{x.interactions:,}", f"{x.days:,}", f"{x.density:.4%}"),
            *(f"{x.plays_median:,g}", f"{x.plays_max:,}", f"{x.parts[1].plays:,}", f"{x.parts[2].plays:,}"),
        ]
        for name, x in logs
    ]
    rows.append([f"{DATASET} (paper)", *(f"{figure:,}" for figure in STATISTICS.values()), *[UNKNOWN] * 6])
    return Sheet(
        TITLES[Table.table2],
        [("", 6), ("plays a user", 2), ("plays", 2)],
        ["data", "users", "items", "interactions", "days", "density", "median", "max", "valid", "test"],
        [[Cell(text) for text in row] for row in rows],
    )


def _systems_sheet(table: Table, found: Results) -> Sheet:
    systems, paper = found["systems"], FIGURES[table.value]
    reference = next(system for system in systems if system["key"] == found["reference"])
    means = [system["mean"] for system in systems]
    theirs = [paper.get(system["key"], {}) for system in systems]
    ours = _columns(means, lambda row, metric: _with_deviation(systems[row], metric))
    others = _columns(theirs, lambda row, metric: f"{theirs[row][metric]:.4f}")
    if table is Table.table3:
        ours = _with_declines(ours, means, reference["mean"])
        others = _with_declines(others, theirs, paper[found["reference"]])
    rows = [
        [Cell(system["name"]), Cell(str(system["chosen"]["interests"])), *ours[i], Cell(_interval(system)), *others[i]]
        for i, system in enumerate(systems)
    ]
    if table is Table.table1:
        rivals = [i for i, system in enumerate(systems) if not system["key"].startswith("cmi")]
        here = _improvement([means[i] for i in rivals], reference["mean"])
        there = _improvement([theirs[i] for i in rivals], paper["cmi"])
        rows.append([Cell("CMI over the best rival"), Cell(""), *here, Cell(""), *there])
    return Sheet(
        f"{TITLES[table]}, {found['name']}",
        [("", 2), (f"{found['name']}: test, mean ± deviation over seeds", 6), ("", 1), (f"paper: {DATASET}", 6)],
        ["system", "#I.", *HEADINGS, f"{_heading(SELECTED_BY)} against {reference['name']} [95 %]", *HEADINGS],
        rows,
        [*_findings(table, found, reference), _baselines(found), *NOTES],
    )


NOTES = (
    "Bold: best of a column; underlined: second. #I.: interests, chosen on valid with the learning rate. In brackets: "
    "paired bootstrap over the test users, metrics averaged over seeds; * where it excludes zero.",
    f"The paper's figures are those on {DATASET}, as far as our notes hold them (-: they do not).",
)


def _columns(rows: Sequence[dict[str, float]], text: Callable[[int, str], str]) -> list[list[Cell]]:
    """The cells of all metrics, with the best and the second of each marked."""
    cells = [[Cell(text(i, metric) if metric in row else UNKNOWN) for metric in METRICS] for i, row in enumerate(rows)]
    for column, metric in enumerate(METRICS):
        known = sorted((i for i, row in enumerate(rows) if metric in row), key=lambda i: -rows[i][metric])
        if len(known) > 1:
            marks: tuple[Mark, Mark] = ("best", "second")
            for i, mark in zip(known, marks, strict=False):
                cells[i][column] = replace(cells[i][column], mark=mark)
    return cells


def _with_deviation(system: Results, metric: str) -> str:
    deviation = system["deviation"][metric]
    return f"{system['mean'][metric]:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def _with_declines(
    cells: list[list[Cell]], rows: Sequence[dict[str, float]], whole: dict[str, float]
) -> list[list[Cell]]:
    """Each metric with its change from the ``whole`` model's in per cent."""
    return [
        [
            replace(cell, text=f"{cell.text} ({_per_cent(row[metric], whole[metric])})")
            if row is not whole and metric in row and metric in whole and row[metric] != whole[metric]
            else cell
            for cell, metric in zip(line, METRICS, strict=True)
        ]
        for line, row in zip(cells, rows, strict=True)
    ]


def _improvement(rivals: Sequence[dict[str, float]], ours: dict[str, float]) -> list[Cell]:
    cells = []
    for metric in METRICS:
        known = [row[metric] for row in rivals if metric in row]
        cells.append(Cell(_per_cent(ours[metric], max(known)) if known and metric in ours else UNKNOWN))
    return cells


def _interval(system: Results) -> str:
    if "against" not in system:
        return ""
    found = system["against"][SELECTED_BY]
    star = " *" if found["significant"] else ""
    return f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]{star}"


def _findings(table: Table, found: Results, reference: Results) -> list[str]:
    """What the paper claims, and whether it is so here: on the metric that settings were chosen by."""
    systems = {system["key"]: system for system in found["systems"]}
    metric = _heading(SELECTED_BY)
    if table is Table.table1:
        order = sorted(systems.values(), key=lambda system: -system["mean"][SELECTED_BY])
        rivals = [system for system in order if not system["key"].startswith("cmi")]
        place = order.index(reference) + 1
        return [
            f"Paper: CMI is first. Here, by {metric}: CMI has place {place} of {len(order)}; the best rival, "
            f"{rivals[0]['name']}, differs from it by {_interval(rivals[0])}."
        ]
    claims = {
        Table.table3: {"cmi-cl": "the contrastive loss helps", "cmi-g": "the general interest helps"},
        Table.table4: {"cmi-m1": "8 interests beat 1"},
    }[table]
    sentences = []
    for key, claim in claims.items():
        difference = systems[key]["against"][SELECTED_BY]
        verdict = "so here" if difference["high"] < 0 else "not so here" if difference["low"] > 0 else "open here"
        sentences.append(
            f"Paper: {claim}. By {metric} this is {verdict}: {systems[key]['name']} differs from {reference['name']} "
            f"by {_interval(systems[key])}."
        )
    return sentences


def _baselines(found: Results) -> str:
    rows = [
        f"{BASELINES[key]} {row['recall@50']:.4f} / {row['hitrate@50']:.4f}"
        for key, row in found["baselines"].items()
        if key in BASELINES
    ]
    return f"Without training, Recall@50 / HitRate@50: {', '.join(rows)}."


def _trials_sheet(found: Results) -> Sheet:
    rows = []
    for system in found["systems"]:
        for trial in sorted(system["trials"], key=lambda trial: trial["number"]):
            chosen = trial is system["trials"][0]
            valid = UNKNOWN if trial["valid"] is None else f"{trial['valid']:.4f}"
            steps = trial["curve"][-1]["steps"] if trial["curve"] else 0
            settings = trial["settings"]
            cells = [str(settings["interests"]), f"{settings['lr']:.2g}", trial["state"], f"{steps:,}", valid]
            number = Cell(str(trial["number"] + 1))
            rows.append([Cell(system["name"]), number, *(Cell(x, "best" if chosen else "") for x in cells)])
    return Sheet(
        f"All trials, {found['name']}",
        [],
        ["system", "trial", "interests", "lr", "state", "steps", f"valid {_heading(SELECTED_BY)}"],
        rows,
        ["Bold: chosen."],
    )


def _heading(metric: str) -> str:
    return HEADINGS[METRICS.index(metric)]


def _per_cent(value: float, base: float) -> str:
    return f"{(value - base) / base:+.1%}" if base else UNKNOWN
