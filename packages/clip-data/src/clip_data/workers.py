"""Threads that never keep a process from ending."""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["Workers", "wait_at_exit"]

_SECONDS_AT_EXIT = 2.0
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """A fixed number of threads that run tasks in the order they come.

    Unlike those of ``concurrent.futures``, the threads are daemons: one that hangs in a read holds up neither ``stop``
    nor the end of the process.

    Args:
        num_threads: At least 1.
    """

    def __init__(self, num_threads: int):
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._num_threads = num_threads
        for number in range(num_threads):
            thread = threading.Thread(target=_run, args=(self._tasks,), name=f"clip-data-{number}", daemon=True)
            wait_at_exit(thread)
            thread.start()

    def submit(self, task: Callable[[], None]) -> None:
        """Runs a task, which must keep its exceptions to itself."""
        self._tasks.put(task)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Applies a function to all items and returns the results in order.

        Raises:
            Exception: The first of those that the function raised.
        """
        futures = [(Future(), item) for item in items]
        for future, item in futures:
            self.submit(lambda future=future, item=item: _resolve(future, function, item))
        return [future.result() for future, _ in futures]

    def stop(self) -> None:
        """Lets each thread end after the task it is at; does not wait for it."""
        try:
            while True:
                self._tasks.get_nowait()
        except queue.Empty:
            for _ in range(self._num_threads):
                self._tasks.put(None)


def wait_at_exit(thread: threading.Thread) -> None:
    """Gives a thread that was told to stop some time to do so before the interpreter ends.

    Args:
        thread: One that may be in C++ code.
    """
    _threads.add(thread)


def _run(tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (task := tasks.get()) is not None:
        task()
        del task  # or the last task, and all it holds, would live until the next one


def _resolve(future: Future[R], function: Callable[[T], R], item: T) -> None:
    try:
        future.set_result(function(item))
    except BaseException as error:
        future.set_exception(error)


@atexit.register
def _wait() -> None:
    """Gives threads that were told to stop the time to leave C++ code, where the interpreter's end would abort them."""
    deadline = time.monotonic() + _SECONDS_AT_EXIT
    for thread in list(_threads):
        thread.join(max(0.0, deadline - time.monotonic()))
