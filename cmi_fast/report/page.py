"""The page: what is known of a run, put into the templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from cmi_fast.data import Histories
from cmi_fast.evaluation import CUTOFFS
from cmi_fast.evaluation.categories import KnownCategories, category_agreement
from cmi_fast.ranking import Ranker
from cmi_fast.report import diagnostics
from cmi_fast.report.charts import Chart, curve
from cmi_fast.report.users import user_map
from cmi_fast.systems import NAMES

TEMPLATES = Path(__file__).with_name("templates")
METRICS = {"recall": "Recall", "hitrate": "HitRate", "ndcg": "NDCG", "mrr": "MRR", "coverage": "Coverage"}
LOSSES = {
    "total": "Objective",
    "main": "Main loss",
    "contrastive": "Contrastive loss",
    "orthogonality": "Orthogonality",
}
SAMPLED_USERS = 2000
COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#b45309", "#65a30d", "#dc2626", "#475569")


def render(
    title: str,
    ranker: Ranker,
    metrics: dict[str, Any],
    user_ids: NDArray[Any],
    histories: Histories,
    known: KnownCategories | None = None,
) -> str:
    """The whole page, as HTML.

    Args:
        title: what the run is called.
        metrics: as in ``metrics.json``.
        user_ids, histories: users and their plays, as rows of the model's items: diagnostics are of at most 2,000 of
            those with plays, drawn at random.
        known: known categories of the model's items.
    """
    played = np.flatnonzero(histories.lengths)
    sample = np.random.default_rng(0).permutation(played)[:SAMPLED_USERS]
    chosen = histories.select(np.sort(sample))
    _, found = ranker.rank(chosen, min(diagnostics.LIST_LENGTH, len(ranker.item_ids)))
    assignment = diagnostics.assignment(ranker, known)
    agreement = confusion = None
    if assignment is not None and known is not None:
        agreement = category_agreement(assignment.of, known.of, ranker.popular)
        confusion = diagnostics.confusion(assignment.of, len(assignment.categories), known)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = as_json
    return environment.get_template("report.html").render(
        title=title,
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        config=ranker.config.model_dump(exclude={"data"}),
        source=ranker.config.data,
        model=NAMES[metrics["model"]],
        metrics=metrics,
        metric_names=METRICS,
        cutoffs=CUTOFFS,
        systems=systems(metrics),
        parts=parts_of(metrics),
        best=best_values(metrics),
        curves=learning_curves(metrics),
        seconds=sum(epoch["seconds"] for epoch in metrics["epochs"]),
        users=len(histories),
        plays=len(histories.items),
        items=len(ranker.item_ids),
        interests=diagnostics.interests(ranker, chosen, found) if len(chosen) else None,
        assignment=assignment,
        agreement=agreement,
        confusion=confusion,
        map=user_map(ranker, user_ids, histories, None if assignment is None else assignment.of),
        colours=COLOURS,
    )


def parts_of(metrics: dict[str, Any]) -> list[str]:
    """The parts that were evaluated, the most telling first."""
    return [part for part in ("test", "valid") if part in metrics]


def systems(metrics: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Key, name and metrics of the model and the baselines."""
    return [(metrics["model"], NAMES[metrics["model"]], metrics)] + [
        (key, NAMES[key], metrics["baselines"][key]) for key in NAMES if key in metrics["baselines"]
    ]


def best_values(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The best value of each metric, by day."""
    results = [result for _, _, result in systems(metrics)]
    return {day: {key: max(r[day][key] for r in results) for key in metrics[day]} for day in parts_of(metrics)}


def learning_curves(metrics: dict[str, Any]) -> list[Chart]:
    epochs, best = metrics["epochs"], metrics["best_epoch"]
    levels = [(name, result["valid"]["recall@50"]) for _, name, result in systems(metrics)[1:]]
    recall = [epoch["valid"]["recall@50"] for epoch in epochs]
    charts = [curve("Recall@50, valid", recall, levels=levels, best=best, from_zero=True)]
    for key in epochs[0]["losses"]:
        values = [epoch["losses"][key] for epoch in epochs]
        charts.append(curve(LOSSES.get(key, key.capitalize()), values, best=best))
    return charts


def as_json(value: Any) -> Markup:
    """JSON that stands safely in a script element: what could end the element is written as an escape."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
