"""A micro-video log drawn from a known model: latent categories, interests, popularity, noise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cmi_fast.data.files import atomic_path, write_frame
from cmi_fast.errors import InputError

_FIRST_DAY_MS = 1_704_067_200_000  # 2024-01-01, 00:00 UTC
_DAY_MS = 86_400_000
_MEAN_GAP_MS = 30_000  # between two plays of a session
_PLAYS_LOG_SPREAD = 0.7
_CHANGE_OF_INTEREST = 0.15  # before a play within a session
_REDRAWS = 4  # of a user's repeated plays
_UNITS = 2**32  # of probability
_MOST = {  # what the arithmetic in 64 bits, and milliseconds of 13 digits, allow
    "users": 10**9,
    "items": 10**9,
    "categories": 10**6,
    "plays_per_user": 10**9,
    "days": 36_500,
    "most_interests": 10**6,
    "popularity_exponent": 100,
}
_BYTES_PER_PLAY = 100


def simulate(
    *,
    users: int = 2000,
    items: int = 5000,
    days: int = 14,
    seed: int = 0,
    categories: int = 8,
    plays_per_user: float = 40.0,
    popularity_exponent: float = 0.7,
    noise: float = 0.2,
    session_length: float = 6.0,
    fewest_interests: int = 2,
    most_interests: int = 4,
    drift: float = 0.0,
    recency: float = 0.0,
    overlap: float = 0.0,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Draw the plays of ``users`` people on ``items`` videos over ``days`` days.

    Every item has one of ``categories`` hidden categories of (nearly) equal size, and within its category a
    popularity proportional to rank^-popularity_exponent. Every user has ``fewest_interests`` to
    ``most_interests`` interests of different weight and a log-normal number of plays with mean ``plays_per_user``,
    in sessions of about ``session_length`` plays. A session mostly stays in one interest; a share ``noise`` of the
    plays comes from any category. As in a real feed, few plays are repeats.

    Args:
        drift: the chance, at the beginning of each session, that all of a user's interests are replaced.
        recency: the chance that a session goes on with the interest that the one before ended with.
        overlap: the share of an interest's plays that fall into the next category instead, as if the two had items in
            common.

    Returns:
        The log (user_id, item_id, timestamp in UTC milliseconds, all int64; day int32 from 0 to days - 1),
        sorted by time, and the truth (item_id, category), a row for every item, played or not.

    Raises:
        InputError: an option is out of range, or the log would not fit into this machine's memory.
    """
    _require("users", users, 1)
    _require("categories", categories, 1)
    _require("items", items, categories)
    _require("days", days, 3)
    _require("seed", seed, 0)
    _require("plays_per_user", plays_per_user, 1)
    _require("popularity_exponent", popularity_exponent, 0)
    _require("noise", noise, 0, 1)
    _require("session_length", session_length, 1)
    _require("fewest_interests", fewest_interests, 1)
    _require("most_interests", most_interests, fewest_interests)
    for option, chance in {"drift": drift, "recency": recency, "overlap": overlap}.items():
        _require(option, chance, 0, 1)
    sizes = {"users": users, "items": items, "categories": categories, "plays_per_user": plays_per_user}
    others = {"days": days, "popularity_exponent": popularity_exponent, "most_interests": most_interests}
    for option, size in {**sizes, **others}.items():
        if size > _MOST[option]:
            raise InputError(f"{option}: found {size}, expected at most {_MOST[option]}")
    tastes = users * (1 + drift * plays_per_user / session_length)
    _require_memory(users * plays_per_user, tastes * categories, items)
    rng = np.random.default_rng(seed)
    rng_of_changes = np.random.default_rng([seed, 1])  # its own, so that without changes the log stays the same
    players = np.repeat(np.arange(users), _play_counts(rng, users, plays_per_user))
    opens_session = rng.random(len(players)) < 1 / session_length
    opens_session[np.flatnonzero(np.diff(players, prepend=-1))] = True
    times = _times(rng, players, opens_session, days)
    taste = _tastes(rng_of_changes, players, opens_session, drift)
    weights = _interest_weights(rng, taste[-1] + 1, categories, fewest_interests, most_interests)
    goes_on = rng_of_changes.random(len(players)) < recency
    chooses = (opens_session & ~goes_on) | (rng.random(len(players)) < _CHANGE_OF_INTEREST)
    chooses[np.flatnonzero(np.diff(taste, prepend=-1))] = True
    wanted = _draw_columns(rng, weights, taste[chooses])[np.cumsum(chooses) - 1]
    wanted = (wanted + (rng_of_changes.random(len(players)) < overlap)) % categories
    wanted = np.where(rng.random(len(players)) < noise, rng.integers(categories, size=len(players)), wanted)
    # Slot s has category s % categories and popularity rank s // categories; the item in it is random.
    item_of_slot = rng.permutation(items)
    played = item_of_slot[_slots(rng, players, wanted, items, categories, popularity_exponent)]
    log = pl.DataFrame(
        {
            "user_id": players,
            "item_id": played,
            "timestamp": times + _FIRST_DAY_MS,
            "day": (times // _DAY_MS).astype(np.int32),
        }
    ).sort("timestamp", maintain_order=True)
    truth = pl.DataFrame({"item_id": item_of_slot, "category": np.arange(items) % categories}).sort("item_id")
    return log, truth


def write_simulation(path: str | os.PathLike[str], **options: Any) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Write ``simulate(**options)``: the log to x.parquet = ``path``, the truth beside it to x.truth.parquet.

    Both files appear whole or not at all. Returns the two frames.

    Raises:
        InputError: ``path`` does not end in .parquet, its folder is missing, or an option is out of range.
    """
    path = Path(path)
    if path.suffix != ".parquet":
        raise InputError(f"{path}: found suffix {path.suffix!r}, expected '.parquet'")
    with atomic_path(path) as log_file, atomic_path(path.with_suffix(".truth.parquet")) as truth_file:
        log, truth = simulate(**options)
        write_frame(log, log_file)
        write_frame(truth, truth_file)
    return log, truth


def _require_memory(plays: float, likes: float, items: int) -> None:
    needed = _BYTES_PER_PLAY * plays + 40 * likes + 80 * items
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        sizes = f"{plays:,.0f} plays of the users and {items:,} items"
        raise InputError(f"{sizes} take about {needed / 1e9:,.0f} GB to draw, found {present / 1e9:,.0f} GB of memory")


def _play_counts(rng: np.random.Generator, users: int, mean: float) -> NDArray[np.int64]:
    log_mean = np.log(mean) - _PLAYS_LOG_SPREAD**2 / 2
    return np.maximum(np.rint(rng.lognormal(log_mean, _PLAYS_LOG_SPREAD, users)), 1).astype(np.int64)


def _times(
    rng: np.random.Generator, players: NDArray[np.int64], opens_session: NDArray[np.bool_], days: int
) -> NDArray[np.int64]:
    """Milliseconds from the start of the log to each play [n]; a session may begin at any time."""
    owners = players[opens_session]
    begins = rng.integers(days * _DAY_MS, size=len(owners))
    # A user's plays stand in order of time, so that it is the later of two equal ones that is drawn again.
    begins = begins[np.lexsort((begins, owners))]
    session = np.cumsum(opens_session) - 1
    since_first_play = np.cumsum(rng.exponential(_MEAN_GAP_MS, len(players)).astype(np.int64))
    within_session = since_first_play - since_first_play[opens_session][session]
    times: NDArray[np.int64] = np.minimum(begins[session] + within_session, days * _DAY_MS - 1)
    return times


def _tastes(
    rng: np.random.Generator, players: NDArray[np.int64], opens_session: NDArray[np.bool_], drift: float
) -> NDArray[np.int64]:
    """The number of the taste behind each play [n], from 0: a new one for each user, and where interests change."""
    changes = opens_session & (rng.random(len(players)) < drift)
    changes[np.flatnonzero(np.diff(players, prepend=-1))] = True
    taste: NDArray[np.int64] = np.cumsum(changes) - 1
    return taste


def _interest_weights(
    rng: np.random.Generator, tastes: int, categories: int, fewest: int, most: int
) -> NDArray[np.float64]:
    """How much each taste likes each category, [tastes, categories]."""
    fewest, most = min(fewest, categories), min(most, categories)
    how_many = rng.integers(fewest, most + 1, size=(tastes, 1))
    liked = rng.permuted(np.tile(np.arange(categories), (tastes, 1)), axis=1) < how_many
    return np.where(liked, rng.exponential(size=liked.shape), 0)


def _slots(
    rng: np.random.Generator,
    players: NDArray[np.int64],
    wanted: NDArray[np.int64],
    items: int,
    categories: int,
    exponent: float,
) -> NDArray[np.int64]:
    """The slot (rank * categories + category) of the item of each play [n], with few repeats of one user."""
    slots = np.arange(-(-items // categories) * categories).reshape(-1, categories).T  # [categories, ranks]
    weights = np.where(slots < items, (slots // categories + 1.0) ** -exponent, 0)
    played: NDArray[np.int64] = slots[wanted, _draw_columns(rng, weights, wanted)]
    for _ in range(_REDRAWS):
        again = _repeats(players * items + played)
        played[again] = slots[wanted[again], _draw_columns(rng, weights, wanted[again])]
    return played


def _draw_columns(rng: np.random.Generator, weights: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of ``rows`` [n], a column of ``weights`` [R, C] drawn in proportion to that row's weights.

    The rows' distribution functions lie end to end, in whole units, so that one binary search serves all.
    """
    shares = np.cumsum(weights, axis=1)
    edges = np.rint(shares / shares[:, -1:] * _UNITS).astype(np.int64)
    edges += np.arange(len(weights))[:, None] * _UNITS
    points = rows * _UNITS + rng.integers(_UNITS, size=len(rows))
    columns: NDArray[np.int64] = np.searchsorted(edges.ravel(), points, side="right") - rows * weights.shape[1]
    return columns


def _repeats(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions in ``keys`` [n] of every value that has occurred before."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    repeats: NDArray[np.int64] = order[1:][ordered[1:] == ordered[:-1]]
    return repeats


def _require(option: str, value: float, least: float, most: float = np.inf) -> None:
    if not least <= value <= most:
        expected = f"at least {least}" if most == np.inf else f"{least} to {most}"
        raise InputError(f"{option}: found {value}, expected {expected}")
