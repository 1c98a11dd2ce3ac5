"""Results ahead of time: the order of ``map``, its exceptions, and no thread left behind."""

from __future__ import annotations

import threading
import time
from itertools import count, islice

import pytest

from cmi_fast.data.prefetch import prefetch


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("cmi_fast-prefetch")]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_order_is_that_of_the_arguments(threads: int) -> None:
    def slow_first(x: int) -> int:
        time.sleep(0.02 if x % 3 == 0 else 0)
        return x * x

    assert list(prefetch(slow_first, range(10), threads=threads)) == [x * x for x in range(10)]
    assert list(prefetch(slow_first, [], threads=threads)) == []


def test_results_are_prepared_before_they_are_asked_for_and_no_further() -> None:
    begun: set[int] = set()
    results = prefetch(begun.add, count(), threads=1, ahead=3)
    next(results)
    deadline = time.monotonic() + 10
    while len(begun) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert begun == {0, 1, 2, 3}  # the one taken, and three ahead
    results.close()  # type: ignore[attr-defined]


def test_an_exception_comes_in_its_turn() -> None:
    results = prefetch(lambda x: 6 // x, [3, 2, 0, 1])
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not workers()


def test_closing_ends_the_threads() -> None:
    results = prefetch(lambda x: x, count())
    assert list(islice(results, 5)) == [0, 1, 2, 3, 4]
    assert workers()
    results.close()  # type: ignore[attr-defined]
    assert not workers()
