"""What the paper reports on WeChat, as far as our notes of it hold; what they do not hold is left out."""

from __future__ import annotations

METRICS = tuple(f"{metric}@{k}" for metric in ("recall", "hitrate") for k in (10, 20, 50))

DATASET = "WeChat"
STATISTICS = {"users": 20_000, "items": 77_557, "interactions": 2_666_296}


def _figures(recall: tuple[float, ...], hitrate: tuple[float, ...] = ()) -> dict[str, float]:
    return dict(zip(METRICS, (*recall, *hitrate), strict=False))


_CMI = _figures((0.0424, 0.0717, 0.1342), (0.2436, 0.3612, 0.5292))

# By table, and by the key of the system there.
FIGURES: dict[str, dict[str, dict[str, float]]] = {
    "table1": {
        "octopus": _figures((0.0057, 0.0125, 0.0400)),
        "mind": _figures((0.0296, 0.0521, 0.1025)),
        "comirec-sa": _figures((0.0297, 0.0538, 0.1079)),
        "dssrec": _figures((0.0327, 0.0578, 0.1161)),
        "cmi": _CMI,
    },
    "table3": {
        "cmi": _CMI,
        "cmi-cl": _figures((0.0390, 0.0665, 0.1285)),
        "cmi-g": _figures((0.0342, 0.0589, 0.1165)),
    },
    "table4": {
        "cmi-m1": _figures((0.0303,)),
        "cmi-m8": _figures((0.0428, 0.0718, 0.1364)),  # not the figures of Table 1, for the same setting
    },
}
