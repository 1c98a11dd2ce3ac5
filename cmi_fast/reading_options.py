"""The command line's options of how a log is read, the same for every command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cmi_fast.errors import InputError

LOG_HELP = "A log of plays: Parquet, CSV, TSV, .inter, .dat (also with .gz) or .npz."
Where = Annotated[str | None, typer.Option(help="Row filter, such as 'long_view = 1'.")]
Positive = Annotated[str | None, typer.Option(help="A play has one of these above 0: like,forward.")]
Columns = Annotated[str | None, typer.Option(help="Which column is what: user_id=uid,item_id=vid,timestamp=ts.")]
TimeZone = Annotated[str | None, typer.Option(help="Whose days split the log, such as Asia/Shanghai (UTC).")]
SplitBy = Annotated[str | None, typer.Option("--split", help="day (the default), last, ratio or ratio:0.8,0.1,0.1.")]


def given_source(
    data: Path | None,
    where: str | None,
    positive: str | None,
    columns: str | None,
    time_zone: str | None,
    split: str | None,
) -> dict[str, Any]:
    """The options of reading that were given, as fields of ``Source``."""
    from cmi_fast.training.config import file_name

    given: dict[str, Any] = {"where": where, "time_zone": time_zone, "split": split}
    if data is not None:
        given["path"] = file_name(data)
    if positive is not None:
        given["positive"] = positive.split(",")
    if columns is not None:
        pairs = [pair.partition("=") for pair in columns.split(",")]
        if not all(separator and role and column for role, separator, column in pairs):
            raise InputError(f"--columns {columns}: expected role=column, or several with commas between")
        given["columns"] = {role.strip(): column.strip() for role, _, column in pairs}
    return {name: value for name, value in given.items() if value is not None}
