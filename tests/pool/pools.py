"""What the tests of the thread bridge share."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

from helpers import new_loop


def pool_type(loop_name):
    """The thread pool that belongs to a kind of loop."""
    if loop_name == "stock":
        return ThreadPoolExecutor
    from fastloop import ThreadPool

    return ThreadPool


@contextlib.contextmanager
def stock_loop():
    """A stock loop to compare with, closed at the end."""
    loop = new_loop("stock")
    try:
        yield loop
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def occupy(loop, executor=None):
    """Let one worker run a job that ends when the returned event is set; return (event, future) once it runs."""
    started, release = threading.Event(), threading.Event()

    def job():
        started.set()
        assert release.wait(30)

    future = loop.run_in_executor(executor, job)
    assert started.wait(30)
    return release, future


def idle_workers(executor):
    """The executor's own count of workers that wait for a job, which is taken and given back."""
    count = 0
    while executor._idle_semaphore.acquire(timeout=0):
        count += 1
    for _ in range(count):
        executor._idle_semaphore.release()
    return count


def workers(executor):
    """The names of an executor's workers, sorted."""
    return sorted(thread.name for thread in executor._threads)
