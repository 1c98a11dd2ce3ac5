"""Each user's metrics, kept in files: what paired comparisons of systems are made of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cmi_fast.data.files import atomic_path, write_frame
from cmi_fast.data.plays import UNREADABLE, one_line
from cmi_fast.errors import InputError
from cmi_fast.evaluation.task import EvaluationTask

USER_METRICS = "user_metrics.parquet"


def write_user_metrics(
    path: Path, user_ids: NDArray[Any], lists: Iterable[tuple[str, EvaluationTask, NDArray[np.int64]]]
) -> None:
    """Write ``system, part, user_id`` and the metrics: a row for each user of each system's ranked lists [E, 50].

    ``user_ids`` [U]: the id of each user of the tasks' log.
    """
    frames = []
    for system, task, ranked in lists:
        frame = pl.DataFrame({"user_id": user_ids[task.users], **task.evaluate_users(ranked)})
        frames.append(frame.select(pl.lit(system).alias("system"), pl.lit(task.name).alias("part"), pl.all()))
    with atomic_path(path) as temporary:
        write_frame(pl.concat(frames), temporary)


def read_user_metrics(path: Path) -> pl.DataFrame:
    """What :func:`write_user_metrics` wrote. Raises InputError where it is not that."""
    try:
        frame = pl.read_parquet(path.read_bytes())
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    if frame.columns[:3] != ["system", "part", "user_id"]:
        raise InputError(f"{path}: expected columns system, part and user_id, then metrics, found {frame.columns}")
    return frame
