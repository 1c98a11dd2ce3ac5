"""The layouts of logs: which column is what, recognised by the columns that are there, or said by the user."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cmi_fast.data.plays import Source
from cmi_fast.errors import InputError

ROLES = ("user_id", "item_id", "day", "date", "timestamp", "datetime")
WAYS_OUT = "or say which is which, as in --columns user_id=uid,item_id=vid,timestamp=ts"


@dataclass(frozen=True)
class Layout:
    """The names of a log's columns; ``None`` where it has no such column.

    day: whole numbers. date: YYYYMMDD, or of a date type. timestamp: seconds or milliseconds since 1970.
    datetime: ISO text or a datetime type. day, else date, decides the day; timestamp, else datetime, orders.
    note: what whoever uses the layout must know.
    """

    name: str
    user: str
    item: str
    day: str | None = None
    date: str | None = None
    timestamp: str | None = None
    datetime: str | None = None
    note: str | None = None

    @property
    def columns(self) -> list[str]:
        """All columns that are read, each once."""
        columns = (self.user, self.item, self.day, self.date, self.timestamp, self.datetime)
        return list(dict.fromkeys(name for name in columns if name is not None))


GENERIC = Layout("generic", "user_id", "item_id", day="day", timestamp="timestamp", datetime="datetime")
WECHAT_NOTE = "every row counts as a play; --positive like,forward keeps those with such an action"
# The first that fits is taken; all columns of each must be there.
KNOWN = (
    Layout("kuairand", "user_id", "video_id", date="date", timestamp="time_ms"),
    Layout("kuairec", "user_id", "video_id", date="date", timestamp="timestamp"),
    Layout("wechat", "userid", "feedid", day="date_", note=WECHAT_NOTE),
    Layout("movielens", "userId", "movieId", timestamp="timestamp"),
    Layout("microlens", "user", "item", timestamp="timestamp"),
)
EXPECTED = (
    "user_id, item_id and day, timestamp or datetime; or KuaiRand's user_id, video_id, date, time_ms; "
    f"or the columns of KuaiRec, WeChat, MovieLens, MicroLens or RecBole; {WAYS_OUT}"
)


def recognise(columns: Sequence[str], source: Source) -> Layout:
    """The layout that a log with these columns has; InputError where it has none."""
    present = set(columns)
    if {"user_id", "item_id"} <= present and present & {"day", "timestamp", "datetime"}:
        return only(GENERIC, present)
    for layout in KNOWN:
        if set(layout.columns) <= present:
            return layout
    raise InputError(f"{source.name}: missing columns: found {listing(columns) or 'none'}; expected {EXPECTED}")


def named(names: Mapping[str, str], columns: Sequence[str], source: Source) -> Layout:
    """The layout in which ``names`` gives the column of each role; roles not named have their own name."""
    for role, column in names.items():
        if role not in ROLES:
            raise InputError(f"--columns {role}={column}: unknown role {role!r}, expected {', '.join(ROLES)}")
        if column not in columns:
            raise InputError(f"--columns {role}={column}: no column {column}; {source.name} has {listing(columns)}")
    user, item = names.get("user_id", "user_id"), names.get("item_id", "item_id")
    times = {role: names.get(role, role) for role in ("day", "timestamp", "datetime")}
    if "timestamp" not in names and "datetime" in names:
        times.pop("timestamp")  # the one named is meant
    layout = only(Layout("named", user, item, date=names.get("date"), **times), set(columns))
    for role, column in (("user_id", user), ("item_id", item)):
        if column not in columns:
            raise InputError(f"{source.name}: no column {column}, found {listing(columns)}; add --columns {role}=NAME")
    if len(layout.columns) == 2:
        raise InputError(f"{source.name}: no column of times, found {listing(columns)}; add --columns timestamp=NAME")
    return layout


def only(layout: Layout, present: set[str]) -> Layout:
    """``layout`` with the times that are ``present``."""
    columns = (layout.day, layout.date, layout.timestamp, layout.datetime)
    day, date, timestamp, moment = (name if name in present else None for name in columns)
    return replace(layout, day=day, date=date, timestamp=timestamp, datetime=moment)


def listing(columns: Sequence[str]) -> str:
    """Column names in one line, however many there are and whatever they hold."""
    shown = ", ".join(name if name.isidentifier() else reprlib.repr(name) for name in columns[:30])
    return shown if len(columns) <= 30 else f"{shown} and {len(columns) - 30} more"
