"""Draw what a run came to: python examples/plot_run.py runs/demo/cmi docs/demo.png (needs matplotlib)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

NAMES = {
    "cmi": "CMI",
    "item_knn": "ItemKNN",
    "item_knn_recent": "ItemKNN + recent popularity",
    "recent_popularity": "Recent popularity",
    "popularity": "Popularity",
}
COLORS = dict(zip(NAMES, ("#1f6feb", "#d97706", "#b91c1c", "#6b7280", "#9ca3af"), strict=True))


def learning_curve(axes: Axes, metrics: dict) -> None:
    epochs = [epoch["number"] for epoch in metrics["epochs"]]
    axes.plot(epochs, [epoch["valid"]["recall@50"] for epoch in metrics["epochs"]], "o-", color=COLORS["cmi"])
    for name, result in metrics["baselines"].items():
        axes.axhline(result["valid"]["recall@50"], color=COLORS[name], linestyle="--", linewidth=1)
    axes.set(title="Recall@50 on the valid day", xlabel="epoch", ylim=(0, None), xticks=epochs)


def test_bars(axes: Axes, metrics: dict) -> None:
    systems = {"cmi": metrics, **metrics["baselines"]}
    cutoffs = (10, 20, 50)
    for place, name in enumerate(NAMES):
        values = [systems[name]["test"][f"recall@{k}"] for k in cutoffs]
        bars = axes.bar([x + 0.16 * place for x in range(3)], values, 0.15, label=NAMES[name], color=COLORS[name])
        axes.bar_label(bars, [f"{value:.3f}".lstrip("0") for value in values], fontsize=7)
    axes.set(title="Test day", xticks=[x + 0.32 for x in range(3)], xticklabels=[f"Recall@{k}" for k in cutoffs])


def main() -> None:
    run, picture = Path(sys.argv[1]), Path(sys.argv[2])
    metrics = json.loads((run / "metrics.json").read_text())
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    learning_curve(left, metrics)
    test_bars(right, metrics)
    figure.legend(loc="outside lower center", ncols=len(NAMES), frameon=False)  # of the bars; lines have their colours
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    main()
