"""ThreadPool: the standard ThreadPoolExecutor, with a work queue that fastloop's loops feed directly."""

import concurrent.futures
from concurrent.futures import thread

from fastloop import _core

#: The worker function counts itself as idle after each job; newer ones do so when they find the queue empty.
_WORKER_COUNTS_EACH = "get_nowait" not in thread._worker.__code__.co_names
#: What shows that a subclass does something of its own with its jobs, which only submit() knows about (3.14).
_CONTEXT_METHOD = "prepare_context"


class ThreadPool(thread.ThreadPoolExecutor):
    """A concurrent.futures.ThreadPoolExecutor that a fastloop's run_in_executor() needs a fraction of the time for.

    max_workers is the largest number of threads, by default that of the standard executor. thread_name_prefix begins
    their names. initializer(*initargs) is called by each of them first; when it fails, the pool is broken, and what is
    queued and submitted raises concurrent.futures.thread.BrokenThreadPool. Raises ValueError and TypeError as the
    standard one does. See https://docs.python.org/3/library/concurrent.futures.html#threadpoolexecutor.
    """

    def __init__(self, max_workers=None, thread_name_prefix="", initializer=None, initargs=(), **context):
        super().__init__(max_workers, thread_name_prefix, initializer, initargs, **context)
        if _keeps_context_method(type(self)):
            # To the standard worker function these are its queue.SimpleQueue and its threading.Semaphore.
            self._work_queue = self._idle_semaphore = _core.JobQueue(vars(thread), _WORKER_COUNTS_EACH)

    @property
    def _max_workers(self):
        return self._most_workers

    @_max_workers.setter
    def _max_workers(self, number):
        # There are programs that set it on a pool that runs.
        self._most_workers = number
        queue = getattr(self, "_work_queue", None)
        if isinstance(queue, _core.JobQueue):
            queue.set_full(False)

    def _submit_job(self, func, args, future, loop):
        """Queue a job of the loop and start a worker unless one is idle; False when the pool takes no jobs."""
        with self._shutdown_lock, thread._global_shutdown_lock:
            if self._broken or self._shutdown or thread._shutdown:
                return False
            if not self._work_queue.put_job(func, args, future, loop):
                return False
            self._adjust_thread_count()
            self._work_queue.set_full(len(self._threads) >= self._max_workers)
        return True

    def _initializer_failed(self):
        jobs = self._stop_jobs()
        super()._initializer_failed()
        error = getattr(self, "BROKEN", thread.BrokenThreadPool)
        for loop, future in jobs:
            _send(loop, _fail, future, error(self._broken))

    def shutdown(self, wait=True, *, cancel_futures=False):
        """Take no more jobs and let the workers end when the queue is empty.

        wait tells to return only then; cancel_futures cancels the jobs that have not started. See
        concurrent.futures.Executor.shutdown().
        """
        if cancel_futures:
            for loop, future in self._stop_jobs():
                _send(loop, future.cancel)
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _stop_jobs(self):
        """Close the work queue to jobs of loops; return the (loop, future) pairs of those that have not started."""
        queue = self._work_queue
        if not isinstance(queue, _core.JobQueue):
            return []
        queue.close()
        return queue.take_jobs()


def _keeps_context_method(cls):
    """Whether the class leaves it to ThreadPoolExecutor what a worker does with a job."""
    method = getattr(cls, _CONTEXT_METHOD, None)
    return getattr(method, "__func__", None) is getattr(
        getattr(thread.ThreadPoolExecutor, _CONTEXT_METHOD, None), "__func__", None
    )


def _send(loop, callback, *args):
    """loop.call_soon_threadsafe(), unless the loop is closed."""
    try:
        if not loop.is_closed():
            loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        # It was closed by its own thread in between.
        pass


def _fail(future, error):
    if not future.done():
        future.set_exception(error)


def new_default_executor():
    """A pool with the names of asyncio's default executor; None when the standard class has been replaced."""
    if concurrent.futures.ThreadPoolExecutor is not thread.ThreadPoolExecutor:
        return None
    return ThreadPool(thread_name_prefix="asyncio")
