"""The command line: ``cmi-fast info | simulate | stats | train | compare | evaluate | report | recommend | export |
experiment``."""

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
from cmi_fast.experiments.commands import experiment
from cmi_fast.ops.backend import automatic_backends
from cmi_fast.printing import plain, print_comparison, print_metrics, print_notes
from cmi_fast.reading_options import LOG_HELP, Columns, Positive, SplitBy, TimeZone, Where, given_source
from cmi_fast.tables import text_table
from cmi_fast.train_command import train

UsageError: Any = typer.BadParameter.__base__  # of click, which newer typers carry within themselves

app = typer.Typer(
    help="Fast, exact multi-interest recommendation.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes would wrap messages
)

Log = Annotated[Path, typer.Argument(help=LOG_HELP, show_default=False)]
Run = Annotated[Path, typer.Argument(help="The folder that train left.", show_default=False)]
Data = Annotated[Path | None, typer.Option(help="Another log than the one trained on.")]


@app.command()
def info() -> None:
    """Versions, compiled operators, ISA level, threads, and the backend that each operator takes."""
    print(text_table([[key, plain(value)] for key, value in cmi_fast.build_info().items()]))
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
    plays_per_user: Annotated[float, typer.Option(help="Plays of a user, on average.")] = 40,
    categories: Annotated[int, typer.Option(help="Number of latent categories.")] = 8,
    fewest_interests: Annotated[int, typer.Option(help="Categories that a user likes, at least.")] = 2,
    most_interests: Annotated[int, typer.Option(help="Categories that a user likes, at most.")] = 4,
    noise: Annotated[float, typer.Option(help="Share of plays that come from any category.")] = 0.2,
    drift: Annotated[float, typer.Option(help="Chance that a session begins with other interests.")] = 0.0,
    recency: Annotated[float, typer.Option(help="Chance that a session begins with the last one's interest.")] = 0.0,
    overlap: Annotated[float, typer.Option(help="Share of an interest's plays in the next category.")] = 0.0,
) -> None:
    """Write a micro-video log with known latent categories."""
    from cmi_fast.data.simulate import write_simulation
    from cmi_fast.display import display

    sizes = {"users": users, "items": items, "days": days, "plays_per_user": plays_per_user}
    tastes = {"fewest_interests": fewest_interests, "most_interests": most_interests, "noise": noise}
    changes = {"drift": drift, "recency": recency, "overlap": overlap}
    with display("simulating"):
        log, truth = write_simulation(out, seed=seed, categories=categories, **sizes, **tastes, **changes)
    print(f"{out}: {len(log):,} plays of {users:,} users on {items:,} items in {days} days")
    print(f"{out.with_suffix('.truth.parquet')}: the category of each item ({truth['category'].n_unique()} categories)")


@app.command()
def stats(
    data: Log,
    where: Where = None,
    positive: Positive = None,
    columns: Columns = None,
    time_zone: TimeZone = None,
    split: SplitBy = None,
) -> None:
    """The row of the paper's Table 2, and what each split holds."""
    from cmi_fast.data import statistics
    from cmi_fast.display import display
    from cmi_fast.training.config import Source

    source = Source(**given_source(data, where, positive, columns, time_zone, split))
    with display("reading"):
        interactions = source.read()
        print_notes(interactions.notes)
        table = statistics(interactions, source.split)
    print(table)


app.command()(train)


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="The folder of a train --rolling.", show_default=False)],
    run_b: Annotated[Path | None, typer.Argument(help="Another one, of the same log.", show_default=False)] = None,
) -> None:
    """Differences between two rolling tests, and to the baselines, with 95 % intervals over users."""
    print_comparison(run_a, run_b)


@app.command()
def evaluate(
    run: Run,
    data: Data = None,
    where: Where = None,
    positive: Positive = None,
    columns: Columns = None,
    time_zone: TimeZone = None,
    split: SplitBy = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Metrics of a trained model beside the baselines. The log is read as for training, but for what is given."""
    from cmi_fast.display import display
    from cmi_fast.trained_run import evaluate_run

    given = given_source(data, where, positive, columns, time_zone, split)
    with display("reading") as progress:
        metrics = evaluate_run(run, progress=progress, **given)
    _note_incomplete(run)
    if as_json:
        print(json.dumps(metrics, indent=2))
    else:
        print_metrics(metrics)


@app.command()
def report(
    run: Run,
    item_categories: Annotated[
        Path | None, typer.Option(help="Known categories (item_id, category); default: those given to train.")
    ] = None,
    data: Data = None,
    where: Where = None,
    positive: Positive = None,
    columns: Columns = None,
    time_zone: TimeZone = None,
) -> None:
    """Write RUN/report.html, as train does at its end: to look at in a browser, no network needed."""
    from cmi_fast.display import display
    from cmi_fast.trained_run import report_run

    given = given_source(data, where, positive, columns, time_zone, None)
    with display("reading") as progress:
        print(report_run(run, item_categories=item_categories, progress=progress, **given))


@app.command()
def recommend(
    run: Run,
    out: Annotated[Path, typer.Option(help="A .parquet or .csv file to write.", show_default=False)],
    k: Annotated[int, typer.Option(help="Items for each user.")] = 50,
    users: Annotated[
        Path | None, typer.Option(help="Only these: .txt with one a line, or .csv or .parquet with user_id.")
    ] = None,
    skip_unknown: Annotated[bool, typer.Option("--skip-unknown", help="Leave out users not in the log.")] = False,
    data: Data = None,
    where: Where = None,
    positive: Positive = None,
    columns: Columns = None,
    time_zone: TimeZone = None,
) -> None:
    """The best unseen items for every user of the log: user_id, item_id, score, rank."""
    from cmi_fast.display import display
    from cmi_fast.trained_run import recommend_run

    if k < 1:
        raise InputError(f"--k: expected 1 or more, found {k}")
    given = given_source(data, where, positive, columns, time_zone, None)
    with display("reading") as progress:
        frame, unknown = recommend_run(run, out, k, users=users, skip_unknown=skip_unknown, progress=progress, **given)
    _note_incomplete(run)
    if unknown:
        print(f"note: {unknown:,} of the users are not in the log")
    print(f"{out}: {len(frame):,} recommendations for {frame['user_id'].n_unique():,} users")


@app.command()
def export(
    run: Run,
    faiss: Annotated[Path, typer.Option(help="Folder to create.", show_default=False)],
    index: Annotated[
        str | None, typer.Option(help="A faiss.index_factory description; default: Flat up to 20,000 items, else IVF.")
    ] = None,
    data: Data = None,
    where: Where = None,
    positive: Positive = None,
    columns: Columns = None,
    time_zone: TimeZone = None,
) -> None:
    """A faiss index of the items and every user's vectors, with the recall that the index reaches."""
    from cmi_fast.display import display
    from cmi_fast.trained_run import export_run

    given = given_source(data, where, positive, columns, time_zone, None)
    with display("reading") as progress:
        summary = export_run(run, faiss, index, progress=progress, **given)
    _note_incomplete(run)
    print(f"{faiss}: items.faiss, items.parquet, user_vectors.npy, users.parquet, export.json")
    items, users = summary["items"][0], summary["user_vectors"][0]
    print(f"{summary['index']}: {items:,} items, {users:,} users")
    recall = summary["recall@50"]
    print(f"Recall@50 against exact retrieval: {recall:.4f} (of {summary['recall_users']:,} users, nothing left out)")


def _note_incomplete(run: Path) -> None:
    """On stderr, so that what is piped stays what it is."""
    from cmi_fast.run_folder import CHECKPOINT

    if (run / CHECKPOINT).exists():
        continues = f"cmi-fast train --resume {run} continues it"
        print(f"note: this training is not complete, these are its best weights so far; {continues}", file=sys.stderr)


app.command()(experiment)


def main() -> None:
    """Run the command line; what a user can put right is one line and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Whoever follows a log file sees each epoch when it ends; names of files need not be UTF-8.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        if _native.environment_error is not None:
            raise InputError(_native.environment_error)
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except InputError as error:
        message = str(error)
    except UsageError as error:
        message = f"{error.format_message()} (see --help)"
    except MemoryError:
        message = "not enough memory"
    except (KeyboardInterrupt, typer.Abort):
        print("cmi-fast: interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    print(f"cmi-fast: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(2)
