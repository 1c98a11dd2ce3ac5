"""What an experiment runs: the systems of each table, what is searched, and how much work each system gets."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pydantic


class Table(str, Enum):
    table1 = "table1"
    table2 = "table2"
    table3 = "table3"
    table4 = "table4"


TITLES = {
    Table.table1: "Table 1: the systems compared",
    Table.table2: "Table 2: the data",
    Table.table3: "Table 3: ablations",
    Table.table4: "Table 4: the number of interests",
}
INTERESTS = (8, 4, 2, 16, 1)  # the first trials of a search take these in turn
LEARNING_RATES = (3e-4, 1e-2)
SELECTED_BY = "recall@50"  # on valid


class System(pydantic.BaseModel):
    """A row of a table: what it is called, its preset, the settings that make it, and the numbers of interests that
    its search may choose from. The same key means the same work, whatever table asks for it."""

    model_config = pydantic.ConfigDict(frozen=True)

    key: str
    name: str
    preset: str | None = None
    settings: dict[str, Any] = {}
    interests: tuple[int, ...] = INTERESTS


CMI = System(key="cmi", name="CMI")
SYSTEMS: dict[Table, tuple[System, ...]] = {
    Table.table1: (
        System(key="octopus", name="Octopus", settings={"model": "octopus"}),
        System(key="mind", name="MIND", settings={"model": "mind"}),
        System(key="comirec-dr", name="ComiRec-DR", settings={"model": "comirec-dr"}),
        System(key="comirec-sa", name="ComiRec-SA", settings={"model": "comirec-sa"}),
        System(key="dssrec", name="DSSRec", settings={"model": "dssrec"}),
        System(key="cmi-authors", name="CMI, authors", preset="authors"),
        System(key="cmi-paper", name="CMI, paper", preset="paper"),
        CMI,
    ),
    Table.table2: (),
    Table.table3: (
        CMI,
        System(key="cmi-cl", name="CMI-CL", settings={"contrastive_weight": 0.0}),
        System(key="cmi-g", name="CMI-G", settings={"general_interest": False}),
    ),
    Table.table4: tuple(System(key=f"cmi-m{m}", name=f"CMI, m = {m}", interests=(m,)) for m in sorted(INTERESTS)),
}
BASELINES = {
    "item_knn_recent": "ItemKNN with recent popularity",
    "item_knn": "ItemKNN",
    "recent_popularity": "Recent popularity",
    "popularity": "Popularity",
}


class Budget(pydantic.BaseModel):
    """The work that every system gets, and the settings that all share.

    trials: settings tried, each for at most ``steps`` steps, measured on valid every ``trial_interval`` steps and given
    up by the pruner where it lags. seeds: runs with the settings chosen, each for at most ``final_steps`` steps, and
    stopped when ``patience`` measurements, ``final_interval`` steps apart, brought none better.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    trials: int = pydantic.Field(default=8, ge=1)
    steps: int = pydantic.Field(default=1500, ge=1)
    trial_interval: int = pydantic.Field(default=250, ge=1)
    seeds: int = pydantic.Field(default=3, ge=1)
    final_steps: int = pydantic.Field(default=6000, ge=1)
    final_interval: int = pydantic.Field(default=250, ge=1)
    patience: int = pydantic.Field(default=8, ge=1)
    settings: dict[str, Any] = {"batch_size": 256}

    @property
    def most_steps(self) -> int:
        """Of one system."""
        return self.trials * self.steps + self.seeds * self.final_steps


QUICK = Budget(
    trials=1,
    steps=20,
    trial_interval=10,
    seeds=2,
    final_steps=60,
    final_interval=60,  # one measurement: nothing is chosen by differences that another CPU's rounding may turn
    patience=1,
    settings={"batch_size": 64, "dim": 16, "max_history": 20},
)
