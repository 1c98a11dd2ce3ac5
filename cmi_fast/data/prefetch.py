"""Results prepared ahead, in background threads, in the order they were asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Argument], Result], arguments: Iterable[Argument], *, threads: int = 2, ahead: int = 4
) -> Generator[Result, None, None]:
    """``map(function, arguments)``, with up to ``ahead`` results ready or under way in ``threads`` threads.

    ``arguments`` may be endless. An exception of ``function`` is raised in its result's place. Closing the iterator
    ends the threads.
    """
    executor = ThreadPoolExecutor(threads, thread_name_prefix="cmi_fast-prefetch")
    remaining = iter(arguments)
    try:
        pending: deque[Future[Result]] = deque(executor.submit(function, x) for x in islice(remaining, ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(executor.submit(function, x) for x in islice(remaining, 1))
            yield result
    finally:
        executor.shutdown(cancel_futures=True)
