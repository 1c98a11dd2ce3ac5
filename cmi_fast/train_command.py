"""``cmi-fast train``: one training, or with ``--rolling`` one for each test day and seed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmi_fast.errors import InputError
from cmi_fast.printing import print_comparison, print_metrics, print_notes
from cmi_fast.reading_options import LOG_HELP, Columns, Positive, SplitBy, TimeZone, Where, given_source

if TYPE_CHECKING:
    from cmi_fast.data import Interactions
    from cmi_fast.training.config import Config, Source


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
            if overwrite or profile or tensorboard:
                raise InputError("--rolling: expected no --overwrite, --profile or --tensorboard")
            return _train_rolling(source, run, loaded, rolling, seeds, not no_test, device, item_categories)
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
    source: Source,
    folder: Path,
    config: Config,
    rolling: str,
    seeds: int,
    test: bool,
    device: str,
    item_categories: Path | None,
) -> None:
    from cmi_fast.display import display
    from cmi_fast.rolling import Days, train_rolling

    try:
        with display("reading") as progress:
            days, say = Days.parse(rolling), progress.bar.console.print
            train_rolling(
                source,
                folder,
                config,
                days,
                seeds,
                test=test,
                device=device,
                item_categories=item_categories,
                on_run=say,
                progress=progress,
            )
    except KeyboardInterrupt:
        print("cmi-fast: interrupted; to continue, repeat the command", file=sys.stderr)
        raise typer.Exit(130) from None
    print_comparison(folder, None)


@contextmanager
def _resumable(run: Path) -> Iterator[None]:
    """Ctrl-C ends with a line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        again = f"; to continue: cmi-fast train --resume {run}" if (run / "checkpoint.safetensors").exists() else ""
        print(f"cmi-fast: interrupted{again}", file=sys.stderr)
        raise typer.Exit(130) from None
