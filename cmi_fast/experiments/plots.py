"""The results drawn: bars with deviations, the metric against m, and Recall against wall time."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from cmi_fast.data.files import atomic_path
from cmi_fast.errors import InputError
from cmi_fast.experiments.plan import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Results = dict[str, Any]
METRICS = {"recall@50": "Recall@50", "hitrate@50": "HitRate@50"}
MARKERS = "os^vD*Px"
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def load_pyplot() -> ModuleType:
    """matplotlib.pyplot without a display. Raises InputError where it is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise InputError("experiment: needs optuna and matplotlib: pip install 'cmi_fast[experiments]'") from None
    return plt


def draw(results: Results, out: Path) -> list[Path]:
    """Write a picture for each log: ``TABLE-LOG.png``."""
    plt = load_pyplot()
    paths = []
    for found in results["data"]:
        with plt.rc_context(STYLE):
            figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
            _against_interests(left, found) if results["table"] == Table.table4.value else _bars(left, found)
            _against_time(right, found)
            path = out / f"{results['table']}-{found['name']}.png"
            with atomic_path(path) as temporary:
                figure.savefig(temporary, dpi=130)
            plt.close(figure)
        paths.append(path)
    return paths


def _bars(axes: Axes, found: Results) -> None:
    names = [system["name"] for system in found["systems"]]
    for place, (metric, heading) in enumerate(METRICS.items()):
        means, deviations = _series(found, metric)
        at = np.arange(len(names)) + 0.4 * place - 0.2
        axes.bar(at, means, 0.38, yerr=deviations, capsize=2, label=heading)
    axes.set(title=f"{found['name']}, test: mean ± deviation over seeds", ylim=(0, None))
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, ncols=2, loc="upper right")


def _against_interests(axes: Axes, found: Results) -> None:
    interests = [system["chosen"]["interests"] for system in found["systems"]]
    for metric, heading in METRICS.items():
        means, deviations = _series(found, metric)
        axes.errorbar(interests, means, yerr=deviations, marker="o", capsize=3, label=heading)
    axes.set_xscale("log", base=2)
    axes.set_xticks(interests, [str(m) for m in interests])
    axes.set(title=f"{found['name']}, test: mean ± deviation over seeds", xlabel="m, interests", ylim=(0, None))
    axes.legend(frameon=False)


def _against_time(axes: Axes, found: Results) -> None:
    """The first run of each system."""
    for number, system in enumerate(found["systems"]):
        points = system["runs"][0]["curve"]
        seconds, valid = [point["seconds"] for point in points], [point["valid"] for point in points]
        axes.plot(seconds, valid, MARKERS[number % len(MARKERS)] + "-", markersize=4, label=system["name"])
    axes.set(title="Recall@50 on valid against seconds of training, first seed", xlabel="seconds", xscale="log")
    axes.legend(frameon=False, fontsize=7)


def _series(found: Results, metric: str) -> tuple[list[float], list[float]]:
    means = [system["mean"][metric] for system in found["systems"]]
    return means, [system["deviation"][metric] or 0.0 for system in found["systems"]]
