"""The command line: ``cmi-fast info | simulate | stats | train | compare | evaluate | report | recommend | export |
experiment``."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import cmi_fast
from cmi_fast import _native, functional, triton
from cmi_fast.errors import InputError
from cmi_fast.experiments.commands import experiment
from cmi_fast.ops.backend import automatic_backends
from cmi_fast.printing import plain, print_comparison, print_metrics, print_notes
from cmi_fast.reading_options import LOG_HELP, Columns, Positive, SplitBy, TimeZone, Where, given_source
from cmi_fast.tables import text_table

UsageError: Any = typer.BadParameter.__base__  # of click, which newer typers carry within themselves

if TYPE_CHECKING:
    from cmi_fast.data import Interactions
    from cmi_fast.training.config import Config, Source

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


@app.command()
def train(
    data: Annotated[Path | None, typer.Argument(help=LOG_HELP)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to create.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted training; continue it.")] = None,
    model: Annotated[
        str | None, typer.Option(help="cmi, cmi-authors, comirec-dr, comirec-sa, dssrec, mind, octopus.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="paper (its text), or authors (what their code trains).")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adam, or lazy-adam for millions of items.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bf16.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings as a TOML file.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="One setting: key=value.")] = None,
    where: Where = None,
    positive: Positive = None,
    columns: Columns = None,
    time_zone: TimeZone = None,
    split: SplitBy = None,
    item_categories: Annotated[
        Path | None,
        typer.Option(help="Known categories (item_id, category) to compare the learned ones with."),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write events into OUT/tensorboard.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Write into a folder that is not empty.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    rolling: Annotated[str | None, typer.Option(help="Test days FIRST:LAST, each in turn; OUT/DAY-SEED each.")] = None,
    seeds: Annotated[int, typer.Option(help="With --rolling: this many seeds a day.")] = 1,
    no_test: Annotated[bool, typer.Option("--no-test", help="Leave the test day out: to search settings.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Print where the time of a step goes; on the CPU.")
    ] = False,
) -> None:
    """Train on all but the last two days, choose the epoch on the last but one, test on the last (or --split)."""
    from cmi_fast.display import display
    from cmi_fast.run import check_output, resume_run, train_run
    from cmi_fast.training.checkpoint import Evaluation
    from cmi_fast.training.config import Source, load_config
    from cmi_fast.training.record import summary_writer

    def on_read(interactions: Interactions) -> None:
        print_notes(interactions.notes)

    run: Path
    if resume is not None:
        others: tuple[object, ...] = (data, out, model, preset, optimizer, precision, config, set_, item_categories)
        others += (where, positive, columns, time_zone, split, rolling)
        flags = overwrite or no_test or profile or tensorboard or device != "cpu" or seeds != 1
        if any(x is not None for x in others) or flags:
            raise InputError("--resume: expected no other arguments, as the training goes on with those it began with")
        run = resume
        with _resumable(run), display("reading") as progress:
            metrics = resume_run(run, on_read=on_read, progress=progress)
    else:
        if data is None or out is None:
            raise InputError("train: expected a log and --out, or --resume")
        run = out
        loaded = load_config(config, set_ or [], preset=preset, model=model, optimizer=optimizer, precision=precision)
        given = given_source(data, where, positive, columns, time_zone, split)
        source = loaded.data.model_copy(update=given) if loaded.data is not None else Source(**given)
        if rolling is not None:
            if overwrite or profile or tensorboard or item_categories is not None:
                raise InputError("--rolling: expected no --overwrite, --profile, --tensorboard or --item-categories")
            return _train_rolling(source, run, loaded, rolling, seeds, not no_test, device)
        if seeds != 1:
            raise InputError("--seeds: expected --rolling beside it")
        if profile and device != "cpu":
            raise InputError(f"--profile: expected --device cpu, whose time it measures, found {device}")
        check_output(run, data, overwrite)
        if tensorboard:
            summary_writer()
        with _resumable(run), display("reading", profile) as progress:
            metrics = train_run(
                source,
                run,
                loaded,
                device=device,
                item_categories=item_categories,
                evaluation=Evaluation(test=not no_test),
                tensorboard=tensorboard,
                on_read=on_read,
                progress=progress,
            )
    print_metrics(metrics)
    print(f"\n{run}: config.toml, model.safetensors, items.parquet, users.parquet, metrics.json, report.html, log.txt")


def _train_rolling(
    source: Source, folder: Path, config: Config, rolling: str, seeds: int, test: bool, device: str
) -> None:
    from cmi_fast.display import display
    from cmi_fast.rolling import Days, train_rolling

    try:
        with display("reading") as progress:
            days, say = Days.parse(rolling), progress.bar.console.print
            train_rolling(source, folder, config, days, seeds, test=test, device=device, on_run=say, progress=progress)
    except KeyboardInterrupt:
        print("cmi-fast: interrupted; to continue, repeat the command", file=sys.stderr)
        raise typer.Exit(130) from None
    print_comparison(folder, None)


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
    from cmi_fast.run import evaluate_run

    given = given_source(data, where, positive, columns, time_zone, split)
    with display("reading") as progress:
        metrics = evaluate_run(run, progress=progress, **given)
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
    from cmi_fast.run import report_run

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
    from cmi_fast.run import recommend_run

    if k < 1:
        raise InputError(f"--k: expected 1 or more, found {k}")
    given = given_source(data, where, positive, columns, time_zone, None)
    with display("reading") as progress:
        frame, unknown = recommend_run(run, out, k, users=users, skip_unknown=skip_unknown, progress=progress, **given)
    if unknown:
        print(f"note: {unknown:,} of the users are not in the log")
    print(f"{out}: {len(frame):,} recommendations for {frame['user_id'].n_unique():,} users")


@app.command()
def export(
    run: Run,
    faiss: Annotated[Path, typer.Option(help="Folder to create.", show_default=False)],
    index: Annotated[str | None, typer.Option(help="A faiss.index_factory description; default: IVF.")] = None,
    data: Data = None,
    where: Where = None,
    positive: Positive = None,
    columns: Columns = None,
    time_zone: TimeZone = None,
) -> None:
    """A faiss index of the items and every user's vectors, with the recall that the index reaches."""
    from cmi_fast.display import display
    from cmi_fast.run import export_run

    given = given_source(data, where, positive, columns, time_zone, None)
    with display("reading") as progress:
        summary = export_run(run, faiss, index, progress=progress, **given)
    print(f"{faiss}: items.faiss, items.parquet, user_vectors.npy, users.parquet, export.json")
    items, users = summary["items"][0], summary["user_vectors"][0]
    print(f"{summary['index']}: {items:,} items, {users:,} users")
    recall = summary["recall@50"]
    print(f"Recall@50 against exact retrieval: {recall:.4f} (of {summary['recall_users']:,} users, nothing left out)")


app.command()(experiment)


@contextmanager
def _resumable(run: Path) -> Iterator[None]:
    """Ctrl-C ends with a line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        again = f"; to continue: cmi-fast train --resume {run}" if (run / "checkpoint.safetensors").exists() else ""
        print(f"cmi-fast: interrupted{again}", file=sys.stderr)
        raise typer.Exit(130) from None


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
