"""``cmi-fast experiment``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cmi_fast.errors import InputError
from cmi_fast.reading_options import LOG_HELP, Columns, Positive, SplitBy, TimeZone, Where, given_source


def experiment(
    table: Annotated[str, typer.Argument(help="table1, table2, table3 or table4.", show_default=False)],
    data: Annotated[list[Path], typer.Argument(help=LOG_HELP, show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to create, or one to continue in.", show_default=False)],
    quick: Annotated[bool, typer.Option("--quick", help="A minute's work, to see it run.")] = False,
    trials: Annotated[int | None, typer.Option(help="Settings tried for each system (8).")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of a trial at most (1500).")] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs with the settings chosen (3).")] = None,
    final_steps: Annotated[int | None, typer.Option(help="Steps of a run at most (6000).")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting of all systems: key=value.")] = None,
    where: Where = None,
    positive: Positive = None,
    columns: Columns = None,
    time_zone: TimeZone = None,
    split: SplitBy = None,
) -> None:
    """One of the paper's tables: systems compared (1), data (2), ablations (3), numbers of interests (4).

    Killed, it goes on where it was by the same command. Tables may share a folder: what is the same is done once.
    """
    from cmi_fast.experiments.experiment import opened, run_table
    from cmi_fast.experiments.plan import SYSTEMS, Table
    from cmi_fast.experiments.progress import Overall, bar
    from cmi_fast.experiments.sheets import result_sheets, statistics_sheet
    from cmi_fast.experiments.training import Log
    from cmi_fast.training.config import Source

    if table not in list(Table):
        raise InputError(f"experiment {table}: expected {', '.join(Table)}")
    chosen = Table(table)
    work = {"trials": trials, "steps": steps, "seeds": seeds, "final_steps": final_steps}
    budget = _budget(quick, {name: value for name, value in work.items() if value is not None}, set_ or [])
    _check_names(data)
    _check_out(out, data)
    sources = [Source(**given_source(path, where, positive, columns, time_zone, split)) for path in data]
    logs = [Log.read(source) for source in sources]
    if chosen is Table.table2:
        from cmi_fast.data import statistics

        with opened(out, logs, budget):
            found = [(log.name, statistics(log.interactions, log.source.split)) for log in logs]
            rows = {name: json.loads(json.dumps(asdict(row))) for name, row in found}
            _write(chosen, {"table": table, "data": rows}, [statistics_sheet(found)], out)
        return
    _require_libraries()
    with opened(out, logs, budget), bar() as shown:
        overall = Overall(len(SYSTEMS[chosen]) * len(logs), budget, shown)
        results = run_table(chosen, logs, budget, out, overall)
        _write(chosen, results, result_sheets(results), out)


def _write(table: Any, results: dict[str, Any], sheets: Sequence[Any], out: Path) -> None:
    from cmi_fast.data.files import atomic_path
    from cmi_fast.experiments.experiment import write_json
    from cmi_fast.experiments.plan import TITLES, Table
    from cmi_fast.experiments.plots import draw
    from cmi_fast.experiments.render import html, markdown

    plots = [] if table is Table.table2 else draw(results, out)
    text = markdown(TITLES[table], sheets, plots)
    for name, content in ((f"{table.value}.md", text), (f"{table.value}.html", html(TITLES[table], sheets, plots))):
        with atomic_path(out / name) as path:
            path.write_text(content, encoding="utf-8")
    write_json(out / f"{table.value}.json", results)
    print(text)
    print(f"{out}: {table.value}.md, {table.value}.html, {table.value}.json")


def _budget(quick: bool, work: dict[str, int], settings: Sequence[str]) -> Any:
    """Raises InputError where an option or a setting is out of range."""
    from cmi_fast.experiments.plan import QUICK, Budget
    from cmi_fast.training.config import load_config

    for name, value in work.items():
        if value < 1:
            raise InputError(f"--{name.replace('_', '-')}: expected 1 or more, found {value}")
    config = load_config(settings=settings)  # every key and value is checked
    keys = [setting.partition("=")[0].strip() for setting in settings]
    for key in keys:
        if key in ("model", "interests", "lr", "seed", "epochs", "steps_per_epoch", "patience"):
            raise InputError(f"--set {key}: the experiment sets this itself")
    budget = QUICK if quick else Budget()
    shared = {**budget.settings, **{key: getattr(config, key) for key in keys}}
    return budget.model_copy(update={**work, "settings": shared})


def _check_names(data: Sequence[Path]) -> None:
    """Results go by the names of the files."""
    names = [path.name.partition(".")[0] for path in data]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"experiment: found two files called {name}, expected different names")


def _check_out(out: Path, data: Sequence[Path]) -> None:
    from cmi_fast.experiments.experiment import PLAN
    from cmi_fast.run import check_output

    for path in data:
        begun = (out / PLAN).exists()
        check_output(out, path, overwrite=begun)


def _require_libraries() -> None:
    from cmi_fast.experiments.plots import load_pyplot
    from cmi_fast.experiments.search import load_optuna

    load_optuna()
    load_pyplot()
