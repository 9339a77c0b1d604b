"""run_in_executor() and to_thread(): the same on both kinds of loop."""

import asyncio
import concurrent.futures
import contextvars
import gc
import os
import sys
import threading
import time
import weakref

import pytest

from helpers import PATIENCE, normalised, outcome, outcome_of, turns, until

from .pools import idle_workers, occupy, pool_type, stock_loop, workers

# ---------------------------------------------------------------- calling


@pytest.mark.parametrize("args", [(), (1,), (1, 2, 3), tuple(range(300))])
def test_the_function_gets_its_arguments_and_the_future_its_result(loop, run, args):
    def job(*given):
        return given

    assert run(asyncio.wait_for(loop.run_in_executor(None, job, *args), 30)) == args


def show(*given):
    return str(given)


@pytest.mark.parametrize("make", [int, float, str, lambda i: b"%d" % i, lambda i: [i], lambda i: (i, i), object])
def test_arguments_that_nobody_else_holds(loop, run, make):
    """Of types whose end runs no code, and of others."""
    if make is object:
        make = lambda i: type("Own", (), {"__repr__": lambda own: "own"})()  # noqa: E731

    async def main():
        for i in range(1000, 1010):
            # Two, so that a worker has done the first before the loop looks.
            jobs = [loop.run_in_executor(None, show, make(i), make(-i)) for _ in range(2)]
            for job in jobs:
                assert await job == str((make(i), make(-i)))

    run(main())


def test_the_future_is_one_of_the_loop(loop, run):
    async def main():
        future = loop.run_in_executor(None, time.sleep, 0)
        assert asyncio.isfuture(future) and not isinstance(future, concurrent.futures.Future)
        assert future.get_loop() is loop
        await future

    run(main())


@pytest.mark.parametrize("call", [
    lambda loop: loop.run_in_executor(),
    lambda loop: loop.run_in_executor(None),
    lambda loop: loop.run_in_executor(None, func=abs, x=1),
    lambda loop: loop.run_in_executor(None, print, end=""),
    lambda loop: loop.run_in_executor("no executor", print),
    lambda loop: loop.run_in_executor(object(), print),
    lambda loop: loop.set_default_executor(None),
    lambda loop: loop.set_default_executor(concurrent.futures.Executor()),
])  # fmt: skip
def test_wrong_arguments(loop, call):
    with stock_loop() as other:
        assert outcome(call, loop) == outcome(call, other)


def test_keywords_are_accepted(loop, run):
    assert run(loop.run_in_executor(executor=None, func=threading.get_ident)) != threading.get_ident()


@pytest.mark.parametrize("func", [5, None, object, "text"])
def test_what_cannot_be_called_fails_in_the_future(debug_off, loop, run, func):
    async def main(on):
        return await outcome_of(on.run_in_executor(None, func, 1))

    with stock_loop() as other:
        assert run(main(loop)) == other.run_until_complete(main(other))


@pytest.mark.parametrize("make", [
    ValueError, lambda: KeyError("key"), OSError, asyncio.CancelledError,
    lambda: concurrent.futures.CancelledError("why"), lambda: concurrent.futures.TimeoutError("late"),
    lambda: concurrent.futures.InvalidStateError("state"), lambda: ExceptionGroup("group", [ValueError()]),
])  # fmt: skip
def test_exceptions_of_a_job(loop, run, make):
    def job():
        raise make()

    async def main(on):
        return await outcome_of(on.run_in_executor(None, job))

    with stock_loop() as other:
        assert run(main(loop)) == other.run_until_complete(main(other))


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), SystemExit(3), KeyboardInterrupt(), StopAsyncIteration(), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
def test_the_exception_itself_is_raised_where_the_future_is_awaited(loop, run, error):
    def failing():
        raise error

    async def main():
        with pytest.raises(type(error)) as caught:
            await loop.run_in_executor(None, failing)
        return caught.value

    assert run(main()) is error


@pytest.mark.parametrize("exit_type", [SystemExit, KeyboardInterrupt])
def test_an_exit_from_a_job_leaves_the_run(loop, run, exit_type):
    def job():
        raise exit_type

    async def main():
        await loop.run_in_executor(None, job)

    with pytest.raises(exit_type):
        run(main())


def test_stop_iteration_from_a_job(loop, run, contexts):
    async def main(on, reported):
        future = on.run_in_executor(None, next, iter(()))
        await until(lambda: future.done() or reported)
        await turns()
        exception = future.exception() if future.done() else None
        return type(exception), str(exception), [type(context["exception"]) for context in reported]

    with stock_loop() as other:
        reported = []
        other.set_exception_handler(lambda _loop, context: reported.append(context))
        expected = other.run_until_complete(main(other, reported))
    assert run(main(loop, contexts)) == expected
    contexts.take()


def test_a_job_begins_with_a_clean_state(loop, run):
    def job():
        try:
            raise ValueError
        except ValueError as exc:
            return exc.__context__

    assert run(loop.run_in_executor(None, sys.exc_info)) == (None, None, None)
    assert run(loop.run_in_executor(None, job)) is None

    # The worker has waited by now, inside an `except` of the standard worker function.
    run(asyncio.sleep(0.01))
    assert run(loop.run_in_executor(None, sys.exc_info)) == (None, None, None)
    assert run(loop.run_in_executor(None, job)) is None


def test_the_traceback_leads_to_the_job(loop, run):
    def culprit():
        raise ValueError

    with pytest.raises(ValueError) as info:
        run(loop.run_in_executor(None, culprit))
    assert "culprit" in [entry.name for entry in info.traceback]


def test_a_future_that_somebody_else_completes(loop, run, contexts):
    async def main():
        release, future = occupy(loop)
        future.set_result("from elsewhere")
        release.set()
        await until(lambda: contexts)
        return await future

    assert run(main()) == "from elsewhere"
    contexts.take_one()


# ---------------------------------------------------------------- contexts


def test_a_job_does_not_see_the_context_but_to_thread_does(loop, run):
    variable = contextvars.ContextVar("variable", default="none")

    def job():
        before = variable.get()
        variable.set("the thread's")
        return before

    async def main():
        variable.set("main")
        seen = await loop.run_in_executor(None, variable.get), await asyncio.to_thread(job)
        assert variable.get() == "main"
        return seen

    # The thread itself may inherit the context that it is started in (the free-threaded 3.14).
    inherits = getattr(sys.flags, "thread_inherit_context", 0)
    assert run(main()) == ("main" if inherits else "none", "main")


def test_to_thread_passes_arguments_and_exceptions(loop, run):
    def job(*args, **kwargs):
        if not args:
            raise LookupError("nothing")
        return args, kwargs

    assert run(asyncio.to_thread(job, 1, 2, key=3)) == ((1, 2), {"key": 3})
    with pytest.raises(LookupError, match="nothing"):
        run(asyncio.to_thread(job))


def test_callbacks_of_the_future_run_in_their_own_context_in_the_thread_of_the_loop(loop, run):
    variable = contextvars.ContextVar("variable", default="none")
    seen = []

    async def main():
        variable.set("main")
        release, future = occupy(loop)
        future.add_done_callback(lambda _: seen.append((variable.get(), threading.get_ident())))
        release.set()
        await future
        await turns()

    run(main())
    assert seen == [("main", threading.get_ident())]


# ---------------------------------------------------------------- workers


def test_workers_have_the_standard_names_and_are_ordinary_threads(loop, run):
    thread = run(loop.run_in_executor(None, threading.current_thread))
    assert type(thread) is threading.Thread
    assert thread.name == "asyncio_0"
    assert not thread.daemon
    assert thread in threading.enumerate()


def test_saturation_starts_as_many_workers_as_the_standard_executor(loop, run):
    cpus = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    most = min(32, cpus + 4)
    release = threading.Event()

    async def main():
        futures = [loop.run_in_executor(None, release.wait, 30) for _ in range(3 * most)]
        names = workers(loop._default_executor)
        release.set()
        await asyncio.gather(*futures)
        assert workers(loop._default_executor) == names == sorted(f"asyncio_{n}" for n in range(most))

    run(main())


def test_an_idle_worker_is_used_again(loop, run):
    async def main():
        for _ in range(5):
            await loop.run_in_executor(None, abs, 1)
            # Idle is who waits, and the worker needs a moment after its result has arrived.
            await until(lambda: idle_workers(loop._default_executor))

    run(main())
    assert workers(loop._default_executor) == ["asyncio_0"]


def test_nobody_counts_on_a_worker_that_frees_what_its_job_has_left(debug_off, loop, run):
    """What is freed may wait for the next job."""
    done = threading.Event()
    freed = []

    class Left:
        def __del__(self):
            freed.append(done.wait(30))

    async def main():
        await loop.run_in_executor(None, abs, 1)
        await loop.run_in_executor(None, type, Left())
        await loop.run_in_executor(None, done.set)
        await until(lambda: freed)
        assert freed == [True]

    run(main())


def test_jobs_start_in_order(loop, loop_name, run):
    seen = []
    with pool_type(loop_name)(1) as pool:

        async def main():
            await asyncio.gather(*(loop.run_in_executor(pool, seen.append, i) for i in range(500)))

        run(main())
    assert seen == list(range(500))


def test_blocking_jobs_run_in_parallel(loop, loop_name, run):
    barrier = threading.Barrier(64)
    with pool_type(loop_name)(64) as pool:

        async def main():
            return await asyncio.gather(*(loop.run_in_executor(pool, barrier.wait, 30) for _ in range(64)))

        assert sorted(run(main())) == list(range(64))
        # And once more, with workers that wait for work.
        assert sorted(run(main())) == list(range(64))


def test_a_job_starts_while_the_loop_is_blocked(loop, run):
    async def main():
        for _ in range(3):
            started = threading.Event()
            future = loop.run_in_executor(None, started.set)
            assert started.wait(30)
            await future

    run(main())


def test_a_job_starts_before_the_loop_runs(loop):
    started = threading.Event()
    future = loop.run_in_executor(None, started.set)
    assert started.wait(30)
    loop.run_until_complete(future)


def test_the_loop_goes_on_meanwhile(loop, run):
    async def main():
        release = threading.Event()
        future = loop.run_in_executor(None, release.wait, 30)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not future.done()
        release.set()
        assert await future is True

    run(main())


def test_thousands_of_jobs(loop, run):
    async def main():
        results = await asyncio.gather(*[loop.run_in_executor(None, int, str(i)) for i in range(3000)])
        assert results == list(range(3000))
        for i in range(500):
            assert await loop.run_in_executor(None, int, str(i)) == i

    run(main())


def test_jobs_in_c_let_other_threads_in(loop, loop_name, run):
    # The queue is never empty and no job runs bytecode; the loop must get its turn all the same.
    with pool_type(loop_name)(1) as pool:

        async def main():
            left = 20000
            futures = {loop.run_in_executor(pool, abs, 1) for _ in range(100)}
            while futures:
                done, futures = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
                left -= len(done)
                if left > 0:
                    futures |= {loop.run_in_executor(pool, abs, 1) for _ in done}

        run(main())


def test_thread_locals_stay_with_the_worker(loop, loop_name, run):
    local = threading.local()

    def job():
        local.count = getattr(local, "count", 0) + 1
        return local.count

    with pool_type(loop_name)(1) as pool:
        assert [run(loop.run_in_executor(pool, job)) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("install", [threading.settrace, threading.setprofile])
def test_trace_and_profile_functions_of_threads_see_the_job(loop, run, install):
    seen = set()

    def watched():
        return 1

    def watch(frame, event, arg):
        seen.add((frame.f_code.co_name, event))

    install(watch)
    try:
        run(loop.run_in_executor(None, watched))
    finally:
        install(None)
    assert ("watched", "call") in seen


# The first free-threaded Python does not reach other threads by them.
@pytest.mark.left_out(
    sys.version_info < (3, 12) or not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="this Python sets them for its own thread alone",
)
@pytest.mark.parametrize("kind", ["trace", "profile"])
def test_trace_and_profile_functions_of_all_threads_reach_a_worker_that_waits(loop, run, kind):
    seen = set()

    def watched():
        return 1

    def watch(frame, event, arg):
        seen.add((frame.f_code.co_name, event))

    install = getattr(threading, f"set{kind}_all_threads")
    run(loop.run_in_executor(None, watched))
    install(watch)
    try:
        run(loop.run_in_executor(None, watched))
    finally:
        install(None)
    assert ("watched", "call") in seen and workers(loop._default_executor) == ["asyncio_0"]


def test_nothing_of_a_finished_job_is_kept(loop, run):
    class Thing:
        def method(self, other):
            return Thing()

    async def main():
        thing, other = Thing(), Thing()
        references = [weakref.ref(thing), weakref.ref(other)]
        result = await loop.run_in_executor(None, thing.method, other)
        references.append(weakref.ref(result))
        del thing, other, result
        return references

    references = run(main())
    deadline = time.monotonic() + PATIENCE
    while any(reference() is not None for reference in references):
        assert time.monotonic() < deadline, "an idle worker holds on to its last job"
        gc.collect()
        time.sleep(0.001)


# ---------------------------------------------------------------- cancelling


def test_a_job_that_was_cancelled_before_its_start_never_runs(loop, loop_name, run):
    seen = []
    with pool_type(loop_name)(1) as pool:

        async def main():
            release, first = occupy(loop, pool)
            dropped = loop.run_in_executor(pool, seen.append, "dropped")
            kept = loop.run_in_executor(pool, seen.append, "kept")
            dropped.cancel()
            await turns()
            release.set()
            await asyncio.gather(first, kept)
            assert dropped.cancelled()

        run(main())
    assert seen == ["kept"]


def test_of_the_default_pool_too_a_job_cancelled_in_the_queue_never_runs(loop, run):
    async def main():
        seen = []
        release = threading.Event()
        limit = min(32, (os.cpu_count() or 1) + 4)
        blockers = [loop.run_in_executor(None, release.wait, 30) for _ in range(limit)]
        waiting = [loop.run_in_executor(None, seen.append, i) for i in range(10)]
        for future in waiting[::2]:
            future.cancel()
        await turns(3)
        release.set()
        await asyncio.gather(*blockers)
        await asyncio.gather(*waiting, return_exceptions=True)
        assert sorted(seen) == [1, 3, 5, 7, 9]

    run(main())


def test_cancelling_a_job_that_runs_drops_its_outcome(loop, run):
    seen = []

    async def main():
        release, future = occupy(loop)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        release.set()
        # The same worker, later.
        await loop.run_in_executor(None, seen.append, 1)
        await turns()

    run(main())
    assert seen == [1]


def test_cancelling_to_thread_leaves_the_running_job_alone(loop, run):
    async def main():
        started, release, ended = threading.Event(), threading.Event(), threading.Event()

        def job():
            started.set()
            release.wait(30)
            ended.set()

        task = asyncio.ensure_future(asyncio.to_thread(job))
        await until(started.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not ended.is_set()
        release.set()
        await until(ended.is_set)
        await turns(3)

    run(main())


def test_wait_for_gives_up_on_a_job(loop, run):
    async def main():
        release, future = occupy(loop)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.01)
        release.set()

    run(main())


# ---------------------------------------------------------------- jobs that use loops


def test_a_job_may_use_the_threadsafe_calls_of_its_loop(loop, run):
    async def double(x):
        await asyncio.sleep(0)
        return 2 * x

    def job():
        loop.call_soon_threadsafe(seen.append, "called")
        return asyncio.run_coroutine_threadsafe(double(21), loop).result(30)

    seen = []
    assert run(loop.run_in_executor(None, job)) == 42
    assert seen == ["called"]


def test_a_job_may_run_a_loop_of_its_own(loop, loop_factory, run):
    def job():
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(asyncio.to_thread(threading.current_thread)).name

    assert run(loop.run_in_executor(None, job)) == "asyncio_0"


def test_a_job_may_start_jobs_of_its_loop(loop, run):
    async def inner():
        return await loop.run_in_executor(None, threading.get_ident)

    def job():
        return asyncio.run_coroutine_threadsafe(inner(), loop).result(30), threading.get_ident()

    first, second = run(loop.run_in_executor(None, job))
    assert first != second


# ---------------------------------------------------------------- other executors


class Inline(concurrent.futures.Executor):
    """Runs what is submitted at once."""

    def submit(self, fn, /, *args, **kwargs):
        future = concurrent.futures.Future()
        future.set_result(("inline", fn(*args, **kwargs)))
        return future


def test_an_executor_of_the_users_own(loop, run):
    assert run(loop.run_in_executor(Inline(), abs, -1)) == ("inline", 1)


def test_a_standard_thread_pool(loop, run):
    with concurrent.futures.ThreadPoolExecutor(2, "mine") as pool:
        assert run(loop.run_in_executor(pool, threading.current_thread)).name == "mine_0"
    assert outcome(loop.run_in_executor, pool, abs, 1) == (
        "raised", RuntimeError, "cannot schedule new futures after shutdown")  # fmt: skip


@pytest.mark.left_out(sys.version_info < (3, 14), reason="the class is new in Python 3.14")
def test_a_pool_of_interpreters(loop, run):
    with concurrent.futures.InterpreterPoolExecutor(1) as pool:
        assert run(loop.run_in_executor(pool, pow, 2, 5)) == 32
        with pytest.raises(ZeroDivisionError):
            run(loop.run_in_executor(pool, divmod, 1, 0))


def test_a_subclass_with_its_own_submit(loop, loop_name, run):
    class Counting(pool_type(loop_name)):
        count = 0

        def submit(self, fn, /, *args, **kwargs):
            self.count += 1
            return super().submit(fn, *args, **kwargs)

    with Counting(1) as pool:
        assert run(loop.run_in_executor(pool, abs, -1)) == 1
        loop.set_default_executor(pool)
        assert run(asyncio.to_thread(abs, -2)) == 2
        assert pool.count == 2


def test_a_process_pool(python, tmp_path):
    """By fork, spawn and forkserver, with functions of a module and of the program itself."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import asyncio, concurrent.futures, multiprocessing, os, sys
def new_event_loop():
    if {python.name!r} == "stock":
        return asyncio.SelectorEventLoop()
    import fastloop
    return fastloop.new_event_loop()
def power(base, exponent):
    return base ** exponent, os.getpid()
def fail():
    raise LookupError("in the process")
async def main(method):
    loop = asyncio.get_running_loop()
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        results = await asyncio.gather(*[loop.run_in_executor(pool, power, 2, i) for i in range(10)])
        assert [value for value, _ in results] == [2 ** i for i in range(10)]
        assert os.getpid() not in [pid for _, pid in results]
        try:
            await loop.run_in_executor(pool, fail)
        except LookupError as exc:
            print(method, exc)
        assert await loop.run_in_executor(pool, os.path.basename, "a/b") == "b"
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main(method))
""")
    command = f"os.execv(sys.executable, [sys.executable, '-W', 'ignore::DeprecationWarning', {str(program)!r}])"
    # Starting processes is slow, which debug mode says.
    assert python(command, stderr=None) == "fork in the process\nspawn in the process\nforkserver in the process\n"


# ---------------------------------------------------------------- debug mode


def test_debug_mode_refuses_coroutine_functions(loop, run):
    async def coroutine_function():
        pass

    def call(on):
        on.set_debug(True)
        result = outcome(on.run_in_executor, None, coroutine_function)
        on.set_debug(False)
        return result

    with stock_loop() as other:
        kind, error, text = call(loop)
        assert (kind, error, normalised(text)) == call(other)


def test_debug_mode(loop, run):
    loop.set_debug(True)
    assert run(asyncio.to_thread(abs, -3)) == 3
    loop.set_debug(False)
    assert run(asyncio.to_thread(abs, -4)) == 4


# ---------------------------------------------------------------- several loops


def test_loops_in_several_threads_share_a_pool(loop_factory, loop_name):
    results = []
    with pool_type(loop_name)(3) as pool:

        async def main(number):
            own = threading.get_ident()
            loop = asyncio.get_running_loop()
            total = 0
            for i in range(200):
                total += await loop.run_in_executor(pool, abs, -i)
                assert threading.get_ident() == own
            return number, total

        def work(number):
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                results.append(runner.run(main(number)))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(results) == [(n, sum(range(200))) for n in range(4)]
