"""What can be done with a run, the folder that training left: evaluate, report, recommend, export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from cmi_fast.data import Histories, Interactions
from cmi_fast.data.files import atomic_path, write_frame
from cmi_fast.data.ids import read_user_ids, rows_of
from cmi_fast.errors import InputError
from cmi_fast.evaluation import POLICY, EvaluationTask, evaluate_baselines
from cmi_fast.evaluation.categories import read_item_categories
from cmi_fast.ranking import USERS_AT_ONCE, Ranker, read_users, translate
from cmi_fast.report.metrics import read_metrics
from cmi_fast.retrieval.export import export_index, load_faiss
from cmi_fast.run import Metrics
from cmi_fast.run_folder import write_report
from cmi_fast.training.config import Source, file_of
from cmi_fast.training.trainer import Progress


def evaluate_run(run: Path, *, progress: Progress | None = None, **given: Any) -> Metrics:
    """Metrics of the trained model in ``run`` and of the baselines, on its own log; ``given``: as in :func:`_open`."""
    progress = progress or Progress()
    ranker, source, interactions, rows = _open(run, given, progress)
    split = interactions.split(source.split)
    valid, test = (EvaluationTask.from_split(split, name) for name in ("valid", "test"))
    progress.phase("evaluating")
    metrics: Metrics = {"model": ranker.config.model}
    metrics |= {task.name: ranker.evaluate(task, rows, progress) for task in (valid, test)}
    progress.phase("baselines")
    return metrics | {"baselines": evaluate_baselines(split, valid, test), "policy": POLICY}


def report_run(
    run: Path, *, item_categories: Path | None = None, progress: Progress | None = None, **given: Any
) -> Path:
    """Write ``report.html`` of a training that is complete, and return its path.

    Users are those of the log trained on, kept in the run, unless another is ``given`` (as in :func:`_open`). Without
    ``item_categories`` the file of known categories is the one given to training, if it is still there.
    """
    progress = progress or Progress()
    metrics = read_metrics(run / "metrics.json") if run.is_dir() else {}
    if given:
        ranker, _, interactions, rows = _open(run, given, progress)
        user_ids, histories = interactions.user_ids, translate(interactions.histories(), rows)
    else:
        progress.phase("reading")
        ranker = Ranker.load(run)
        user_ids, histories = read_users(run / "users.parquet", len(ranker.item_ids))
    if item_categories is None and metrics.get("categories", {}).get("file"):
        before = Path(metrics["categories"]["file"])
        item_categories = before if before.exists() else None
    known = read_item_categories(item_categories, ranker.item_ids) if item_categories else None
    progress.phase("report")
    return write_report(run, ranker, metrics, user_ids, histories, known)


def recommend_run(
    run: Path,
    out: Path,
    k: int,
    *,
    users: Path | None = None,
    skip_unknown: bool = False,
    progress: Progress | None = None,
    **given: Any,
) -> tuple[pl.DataFrame, int]:
    """Write the k best unseen items for every user of the log, or those in the file ``users``, to ``out``.

    Returns the frame ``user_id, item_id, score, rank``, and how many of ``users`` are not in the log: an InputError
    without ``skip_unknown``. ``given``: as in :func:`_open`.
    """
    if out.suffix not in (".parquet", ".csv"):
        raise InputError(f"--out {out}: expected a name ending in .parquet or .csv")
    if out.resolve().parent == run.resolve():
        raise InputError(f"--out {out}: expected a place outside the run, whose files it might replace")
    progress = progress or Progress()
    ranker, source, interactions, rows = _open(run, given, progress)
    for name, read in (("the log", file_of(source.path)), ("--users", users)):
        if read is not None and out.exists() and out.samefile(read):
            raise InputError(f"--out {out}: expected another file than {name}")
    user_ids, histories = interactions.user_ids, translate(interactions.histories(), rows)
    unknown = 0
    if users is not None:
        wanted = read_user_ids(users, text=user_ids.dtype == object)
        places = rows_of(wanted, user_ids, "user")
        missing = wanted[places < 0].tolist()
        unknown = len(missing)
        if missing and not skip_unknown:
            found = f"{unknown:,} are not in the log, such as {missing[0]!r}"
            raise InputError(f"--users {users}: {found}; --skip-unknown leaves them out")
        user_ids, histories = wanted[places >= 0], histories.select(places[places >= 0])
    progress.phase("ranking")
    with atomic_path(out) as path:
        frame = ranker.recommend(user_ids, histories, k, progress=progress)
        progress.phase("writing")
        write_frame(frame, path)
    return frame, unknown


def export_run(
    run: Path, folder: Path, index: str | None = None, *, progress: Progress | None = None, **given: Any
) -> Metrics:
    """Write a faiss index of the items and the vectors of every user of the log into the new folder ``folder``.

    ``items.parquet`` and ``users.parquet`` there hold the ids that rows stand for; the rest, and what is returned, is
    that of :func:`cmi_fast.retrieval.export.export_index`. Leaving out what a user has seen is the service's part.
    ``given``: as in :func:`_open`.
    """
    load_faiss()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--faiss {folder}: expected a new or empty folder")
    progress = progress or Progress()
    ranker, _, interactions, rows = _open(run, given, progress)
    histories = translate(interactions.histories(), rows)
    users = np.arange(len(histories))
    progress.phase("exporting")
    blocks = _interests(ranker, histories, progress)
    vectors = ranker.item_vectors().cpu()
    m, d = ranker.interests(histories.select(users[:1])).shape[1:]
    summary = export_index(folder, vectors, blocks, (len(users), m, d), index)
    for name, ids in (("user", interactions.user_ids), ("item", ranker.item_ids)):
        with atomic_path(folder / f"{name}s.parquet") as path:
            pl.DataFrame({f"{name}_id": ids}).write_parquet(path)
    return summary


def _interests(ranker: Ranker, histories: Histories, progress: Progress) -> Iterator[Tensor]:
    """Block by block the interests of the users."""
    users = np.arange(len(histories))
    for part in np.array_split(users, range(USERS_AT_ONCE, len(users), USERS_AT_ONCE)):
        yield ranker.interests(histories.select(part)).cpu()
        progress.users(int(part[-1]) + 1, len(users))


def _open(
    run: Path, given: dict[str, Any], progress: Progress
) -> tuple[Ranker, Source, Interactions, NDArray[np.int64]]:
    """The model, a log, and the model's row of each item of the log.

    The log is read as for training, except for what is ``given``: fields of :class:`Source`.
    """
    ranker = Ranker.load(run)
    if ranker.config.data is None and "path" not in given:
        raise InputError(f"{run}: config.toml names no log; say which with --data")
    source = (ranker.config.data or Source(path="")).model_copy(update=given)
    progress.phase("reading")
    interactions = source.read()
    rows = ranker.encode(interactions.item_ids)
    if not (rows >= 0).any():
        raise InputError(f"{file_of(source.path)}: found no item that the model in {run} knows")
    return ranker, source, interactions, rows
