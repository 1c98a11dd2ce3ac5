"""The command line: ``cmi-fast info | simulate | stats | train | evaluate | recommend``."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import cmi_fast
from cmi_fast import _native, functional, triton
from cmi_fast.errors import InputError
from cmi_fast.ops.backend import automatic_backends
from cmi_fast.tables import text_table

app = typer.Typer(
    help="Fast, exact multi-interest recommendation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes would wrap messages
)

Log = Annotated[Path, typer.Argument(help="A log of plays: .parquet, .csv or .csv.gz.", show_default=False)]
Run = Annotated[Path, typer.Argument(help="The folder that train left.", show_default=False)]
Where = Annotated[str | None, typer.Option(help="Row filter, such as 'long_view = 1'.")]
Data = Annotated[Path | None, typer.Option(help="Another log than the one trained on.")]
COLUMNS = [f"{metric}@{k}" for metric in ("Recall", "HitRate") for k in (10, 20, 50)]
NAMES = {
    "cmi": "CMI",
    "cmi-authors": "CMI, authors' code",
    "comirec-dr": "ComiRec-DR",
    "comirec-sa": "ComiRec-SA",
    "dssrec": "DSSRec",
    "mind": "MIND",
    "octopus": "Octopus",
    "item_knn": "ItemKNN",
    "recent_popularity": "Recent popularity",
    "popularity": "Popularity",
}


@app.command()
def info() -> None:
    """Versions, compiled operators, ISA level, threads, and the backend that each operator takes."""
    print(text_table([[key, _plain(value)] for key, value in cmi_fast.build_info().items()]))
    rows = [[name, *automatic_backends(name)] for name in functional.__all__]
    print(f"\n{text_table([['operator', 'on the CPU', 'on a GPU'], *rows])}")
    tested = ", ".join(triton.TESTED_ON) or "no GPU yet"
    print(f"\nThe tests of the Triton kernels have passed in Triton's interpreter, and on {tested}.")


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="OUT.parquet; the truth goes to OUT.truth.parquet.", show_default=False)],
    users: Annotated[int, typer.Option(help="Number of users.")] = 2000,
    items: Annotated[int, typer.Option(help="Number of items.")] = 5000,
    days: Annotated[int, typer.Option(help="Number of days.")] = 14,
    seed: Annotated[int, typer.Option(help="The same seed gives the same log.")] = 0,
) -> None:
    """Write a micro-video log with known latent categories."""
    from cmi_fast.data.simulate import write_simulation

    log, truth = write_simulation(out, users=users, items=items, days=days, seed=seed)
    print(f"{out}: {len(log):,} plays of {users:,} users on {items:,} items in {days} days")
    print(f"{out.with_suffix('.truth.parquet')}: the category of each item ({truth['category'].n_unique()} categories)")


@app.command()
def stats(data: Log, where: Where = None) -> None:
    """The row of the paper's Table 2, and what each split holds."""
    from cmi_fast.data import Interactions, statistics

    interactions = Interactions.read(data, where=where)
    _print_notes(interactions.notes)
    print(statistics(interactions))


@app.command()
def train(
    data: Log,
    out: Annotated[Path, typer.Option(help="Folder to create.", show_default=False)],
    model: Annotated[
        str | None, typer.Option(help="cmi, cmi-authors, comirec-dr, comirec-sa, dssrec, mind, octopus.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings as a TOML file.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="One setting: key=value.")] = None,
    where: Where = None,
    item_categories: Annotated[
        Path | None,
        typer.Option(help="Known categories (item_id, category) to compare the learned ones with."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Write into a folder that is not empty.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Train on all but the last two days, choose the epoch on the last but one, test on the last."""
    from cmi_fast.display import display
    from cmi_fast.run import check_output, train_run
    from cmi_fast.training.config import load_config

    settings = (set_ or []) + ([f"model={model}"] if model is not None else [])
    loaded = load_config(config, settings)
    check_output(out, data, overwrite)
    with display() as progress:
        metrics = train_run(
            data,
            out,
            loaded,
            where=where,
            device=device,
            item_categories=item_categories,
            on_read=lambda interactions: _print_notes(interactions.notes),
            progress=progress,
        )
    _print_metrics(metrics)
    print(f"\n{out}: config.toml, model.safetensors, items.parquet, users.parquet, metrics.json")


@app.command()
def evaluate(
    run: Run,
    data: Data = None,
    where: Where = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Metrics of a trained model beside the baselines."""
    from cmi_fast.run import evaluate_run

    metrics = evaluate_run(run, data, where)
    if as_json:
        print(json.dumps(metrics, indent=2))
    else:
        _print_metrics(metrics)


@app.command()
def recommend(
    run: Run,
    out: Annotated[Path, typer.Option(help="A .parquet or .csv file to write.", show_default=False)],
    k: Annotated[int, typer.Option(help="Items for each user.")] = 50,
    data: Data = None,
    where: Where = None,
) -> None:
    """The best unseen items for every user of the log: user_id, item_id, score, rank."""
    from cmi_fast.run import recommend_run

    if k < 1:
        raise InputError(f"--k: expected 1 or more, found {k}")
    frame = recommend_run(run, out, k, data, where)
    print(f"{out}: {len(frame):,} recommendations for {frame['user_id'].n_unique():,} users")


def _print_notes(notes: tuple[str, ...]) -> None:
    for note in notes:
        print(f"note: {note}")


def _print_metrics(metrics: dict[str, Any]) -> None:
    systems = {metrics["model"]: metrics, **metrics["baselines"]}
    for day in ("valid", "test"):
        rows = [[day, *COLUMNS]]
        for name, result in sorted(systems.items(), key=lambda item: list(NAMES).index(item[0])):
            rows.append([NAMES[name], *(f"{result[day][column.lower()]:.4f}" for column in COLUMNS)])
        print(f"\n{text_table(rows)}")
    if "categories" in metrics:
        agreement = metrics["categories"]
        print(
            f"\nLearned categories against the known ones of {agreement['items']:,} items: "
            f"NMI {agreement['nmi']:.3f} (shuffled: {agreement['nmi_shuffled']:.3f})"
        )


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def main() -> None:
    """Run the command line; what a user can put right is one line and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # whoever follows a log file sees each epoch when it ends
    try:
        if _native.environment_error is not None:
            raise InputError(_native.environment_error)
        app()
    except InputError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    print(f"cmi-fast: {message}", file=sys.stderr)
    sys.exit(2)
