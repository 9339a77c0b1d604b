"""Signals: handlers of the loop, handlers of Python, Ctrl-C in every state, and what is restored."""

import asyncio
import inspect
import os
import signal
import socket
import sys
import threading

import pytest

from helpers import current_wakeup_fd, turns, until

ME = os.getpid()


# ---------------------------------------------------------------- add_signal_handler


def test_the_signatures_are_the_standard_ones(loop):
    assert str(inspect.signature(loop.add_signal_handler)) == "(sig, callback, *args)"
    assert str(inspect.signature(loop.remove_signal_handler)) == "(sig)"


def test_a_handler_runs_in_the_loop_with_its_arguments(loop, run):
    seen = []

    async def main():
        loop.add_signal_handler(signal.SIGUSR1, lambda *args: seen.append((args, asyncio.get_running_loop())), 1, "two")
        os.kill(ME, signal.SIGUSR1)
        await until(lambda: seen)
        assert loop.remove_signal_handler(signal.SIGUSR1) is True

    run(main())
    assert seen == [((1, "two"), loop)]


def test_a_signal_that_comes_right_after_the_call_is_not_lost(loop):
    seen = []
    assert loop.add_signal_handler(signal.SIGUSR1, lambda: (seen.append("signal"), loop.stop())) is None
    os.kill(ME, signal.SIGUSR1)
    loop.run_forever()
    assert seen == ["signal"]
    loop.remove_signal_handler(signal.SIGUSR1)


def test_a_signal_between_two_runs_is_not_lost(loop, run):
    seen = []
    loop.add_signal_handler(signal.SIGUSR1, seen.append, "signal")
    run(turns(2))
    os.kill(ME, signal.SIGUSR1)
    assert seen == []
    run(until(lambda: seen))
    assert seen == ["signal"]
    loop.remove_signal_handler(signal.SIGUSR1)


def test_an_idle_loop_is_woken_by_a_signal(loop, run):
    async def main():
        future = loop.create_future()
        loop.add_signal_handler(signal.SIGUSR1, future.set_result, "woken")
        timer = threading.Timer(0.02, os.kill, (ME, signal.SIGUSR1))
        timer.start()
        assert await future == "woken"
        timer.join()
        loop.remove_signal_handler(signal.SIGUSR1)

    run(main())


def test_a_second_handler_replaces_the_first(loop, run):
    seen = []
    loop.add_signal_handler(signal.SIGUSR1, seen.append, "first")
    loop.add_signal_handler(signal.SIGUSR1, seen.append, "second")
    os.kill(ME, signal.SIGUSR1)
    run(until(lambda: seen))
    assert seen == ["second"]
    assert loop.remove_signal_handler(signal.SIGUSR1) is True
    assert loop.remove_signal_handler(signal.SIGUSR1) is False


def test_different_signals_have_different_handlers(loop, run):
    seen = []
    numbers = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM, signal.SIGINT]
    for number in numbers:
        loop.add_signal_handler(number, seen.append, number)
    for number in numbers:
        os.kill(ME, number)
    run(until(lambda: len(seen) == len(numbers)))
    assert sorted(seen) == sorted(numbers)
    for number in numbers:
        loop.remove_signal_handler(number)


def test_a_burst_of_signals_is_never_lost_as_a_whole(loop, run):
    seen = []

    async def main():
        loop.add_signal_handler(signal.SIGUSR1, seen.append, 1)
        for _ in range(300):
            before = len(seen)
            os.kill(ME, signal.SIGUSR1)
            await until(lambda before=before: len(seen) > before)
        loop.remove_signal_handler(signal.SIGUSR1)

    run(main())
    assert len(seen) == 300


def test_a_handler_may_remove_and_add_handlers(loop, run):
    seen = []

    def first():
        loop.remove_signal_handler(signal.SIGUSR1)
        loop.add_signal_handler(signal.SIGUSR1, seen.append, "second")
        os.kill(ME, signal.SIGUSR1)

    loop.add_signal_handler(signal.SIGUSR1, first)
    os.kill(ME, signal.SIGUSR1)
    run(until(lambda: seen))
    assert seen == ["second"]
    loop.remove_signal_handler(signal.SIGUSR1)


def test_the_exception_of_a_handler_is_reported(loop, run, contexts):
    loop.add_signal_handler(signal.SIGUSR1, lambda: 1 / 0)
    os.kill(ME, signal.SIGUSR1)
    run(until(lambda: contexts))
    report = contexts.take_one()
    assert isinstance(report["exception"], ZeroDivisionError) and "handle" in report
    loop.remove_signal_handler(signal.SIGUSR1)


@pytest.mark.parametrize(
    "number, error, message",
    [
        ("SIGUSR1", TypeError, "sig must be an int, not 'SIGUSR1'"),
        (None, TypeError, "sig must be an int, not None"),
        (0, ValueError, "invalid signal number 0"),
        (-5, ValueError, "invalid signal number -5"),
        (1000, ValueError, "invalid signal number 1000"),
        (signal.SIGKILL, RuntimeError, "sig 9 cannot be caught"),
        (signal.SIGSTOP, RuntimeError, "sig 19 cannot be caught"),
    ],
    ids=str,
)
def test_wrong_signals_are_refused(loop, number, error, message):
    before = current_wakeup_fd()
    with pytest.raises(error) as caught:
        loop.add_signal_handler(number, print)
    assert str(caught.value) == message
    assert current_wakeup_fd() == before
    if not isinstance(number, signal.Signals):
        with pytest.raises(error) as caught:
            loop.remove_signal_handler(number)
        assert str(caught.value) == message
    else:
        assert isinstance(caught.value.__context__, OSError) and not caught.value.__suppress_context__


def test_signals_are_for_the_main_thread_only(loop_factory):
    found = []

    def work():
        loop = loop_factory()
        try:
            loop.add_signal_handler(signal.SIGUSR1, print)
        except Exception as exc:
            found.append(exc)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert type(found[0]) is RuntimeError
    assert str(found[0]).startswith("set_wakeup_fd only works in main thread")
    assert type(found[0].__context__) is ValueError and not found[0].__suppress_context__


def test_a_handler_is_added_from_the_main_thread_to_a_loop_that_runs_in_another(loop):
    started = threading.Event()
    seen = []

    def handler():
        seen.append(threading.get_ident())
        loop.stop()

    thread = threading.Thread(target=loop.run_forever)
    loop.call_soon(started.set)
    thread.start()
    started.wait()
    loop.add_signal_handler(signal.SIGUSR1, handler)
    os.kill(ME, signal.SIGUSR1)
    expected = thread.ident
    thread.join(30)
    loop.remove_signal_handler(signal.SIGUSR1)
    assert seen == [expected]


def test_system_calls_are_not_interrupted_by_a_handled_signal(loop):
    # siginterrupt(False) is what the stock loop sets.
    loop.add_signal_handler(signal.SIGUSR1, int)
    first, second = socket.socketpair()
    timer = threading.Timer(0.01, lambda: (os.kill(ME, signal.SIGUSR1), second.send(b"x")))
    timer.start()
    assert first.recv(1) == b"x"
    timer.join()
    loop.remove_signal_handler(signal.SIGUSR1)
    first.close()
    second.close()


# ---------------------------------------------------------------- handlers of Python


def test_a_python_handler_runs_while_the_loop_sleeps(loop, run):
    ran = threading.Event()
    old = signal.signal(signal.SIGUSR1, lambda *_: ran.set())
    seen = []

    async def main():
        future = loop.create_future()

        def send():
            os.kill(ME, signal.SIGUSR1)
            # Nothing else wakes the loop meanwhile.
            seen.append(ran.wait(30))
            loop.call_soon_threadsafe(future.set_result, None)

        timer = threading.Timer(0.02, send)
        timer.start()
        loop.call_later(10, seen.append, "too late").cancel()
        await future
        timer.join()

    try:
        run(main())
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert seen == [True]


def test_a_python_handler_may_use_call_soon_threadsafe(loop, run):
    async def main():
        future = loop.create_future()
        signal.signal(signal.SIGUSR1, lambda *_: loop.call_soon_threadsafe(future.set_result, "from the handler"))
        timer = threading.Timer(0.02, os.kill, (ME, signal.SIGUSR1))
        timer.start()
        assert await future == "from the handler"
        timer.join()

    old = signal.getsignal(signal.SIGUSR1)
    try:
        run(main())
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_an_exception_of_a_python_handler_comes_out_of_the_run(loop):
    class FromHandler(Exception):
        pass

    def handler(*_):
        raise FromHandler

    timers = []

    def start():
        timers.append(threading.Timer(0.05, os.kill, (ME, signal.SIGUSR1)))
        timers[-1].start()

    # On a busy machine the signal may come while start() still runs: then it is the exception of a callback.
    loop.set_exception_handler(lambda loop, context: loop.call_soon(start))
    old = signal.signal(signal.SIGUSR1, handler)
    try:
        loop.call_soon(start)
        with pytest.raises(FromHandler):
            loop.run_forever()
    finally:
        signal.signal(signal.SIGUSR1, old)
    for timer in timers:
        timer.join()
    assert not loop.is_running()
    loop.run_until_complete(turns(2))


# ---------------------------------------------------------------- what is restored


@pytest.mark.fastloop_only("the standard loop passes for running ever after")
def test_a_python_handler_that_raises_as_a_run_ends_does_not_leave_it_running(loop, run):
    """A handler runs where a function of Python begins, such as that which ends a run."""

    def raise_there(frame, event, argument):
        if frame.f_code.co_name == "_run_forever_cleanup":
            raise InterruptedError

    before = sys.gettrace()
    sys.settrace(raise_there)
    try:
        loop.call_soon(loop.stop)
        with pytest.raises(InterruptedError):
            loop.run_forever()
    finally:
        sys.settrace(before)
    assert not loop.is_running()
    assert run(asyncio.sleep(0.001, "answer")) == "answer"


def test_removing_a_handler_restores_the_default(loop):
    loop.add_signal_handler(signal.SIGUSR1, print)
    assert signal.getsignal(signal.SIGUSR1) not in (signal.SIG_DFL, signal.SIG_IGN)
    loop.remove_signal_handler(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    loop.add_signal_handler(signal.SIGINT, print)
    loop.remove_signal_handler(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_close_restores_every_handler(loop):
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        loop.add_signal_handler(number, print)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert current_wakeup_fd() == -1


@pytest.fixture
def somebody_s():
    """Both ends of the wake-up descriptor of somebody else, and a handler in Python for SIGUSR1 that does nothing."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    before = signal.signal(signal.SIGUSR1, lambda *args: None)
    signal.set_wakeup_fd(theirs.fileno())
    yield ours, theirs
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGUSR1, before)
    ours.close()
    theirs.close()


def test_the_wakeup_descriptor_of_somebody_else_survives_a_run(loop, run, somebody_s):
    run(asyncio.sleep(0.001))
    run(turns(3))
    assert current_wakeup_fd() == somebody_s[1].fileno()


def test_the_wakeup_descriptor_of_somebody_else_is_told_of_signals(loop, run, somebody_s):
    """As that of a reactor on this loop, which waits for SIGCHLD: it was set before the run."""
    ours, _ = somebody_s

    async def told():
        return await loop.sock_recv(ours, 10)

    async def by_a_signal_of_the_run():
        loop.call_soon(os.kill, ME, signal.SIGUSR1)
        return await told()

    async def to_the_last():
        os.kill(ME, signal.SIGUSR1)

    assert run(by_a_signal_of_the_run()) == bytes([signal.SIGUSR1])
    run(to_the_last())
    assert run(told()) == bytes([signal.SIGUSR1])


def test_the_wakeup_descriptor_of_somebody_else_is_told_until_the_loop_handles_signals(loop, run, somebody_s):
    ours, _ = somebody_s

    async def main(handles):
        if handles:
            # From now on the loop has the descriptor, and the signals.
            loop.add_signal_handler(signal.SIGUSR2, print)
        signal.raise_signal(signal.SIGUSR1)
        if not handles:
            assert await loop.sock_recv(ours, 10) == bytes([signal.SIGUSR1])
            # At the very end of the run, too.
            signal.raise_signal(signal.SIGUSR1)

    run(main(False))
    assert ours.recv(10) == bytes([signal.SIGUSR1])
    run(main(True))
    run(turns(5))
    with pytest.raises(BlockingIOError):
        ours.recv(10)
    loop.remove_signal_handler(signal.SIGUSR2)


def test_a_wakeup_descriptor_that_was_taken_away_in_the_run_stays_away(loop, run, somebody_s):
    """Its owner may close it then, and its number be that of a connection."""

    async def main():
        signal.set_wakeup_fd(-1)

    run(main())
    assert current_wakeup_fd() == -1


def test_a_loop_that_is_closed_leaves_no_wakeup_descriptor_that_another_one_has_put_back(loop_factory):
    first, second = loop_factory(), loop_factory()
    first.add_signal_handler(signal.SIGUSR1, print)

    async def main():
        first.remove_signal_handler(signal.SIGUSR1)

    second.run_until_complete(main())
    second.close()
    first.close()
    after = current_wakeup_fd()
    signal.set_wakeup_fd(-1)
    assert after == -1


def test_a_wakeup_descriptor_that_was_closed_meanwhile_gets_nothing(loop, run, somebody_s):
    """Its number may be that of another file by now."""
    _, theirs = somebody_s
    other, reader = socket.socketpair()
    reader.setblocking(False)

    async def main():
        os.dup2(other.fileno(), theirs.fileno())
        if isinstance(loop, asyncio.SelectorEventLoop):
            signal.set_wakeup_fd(-1)  # Python writes to the number by itself
        os.kill(ME, signal.SIGUSR1)
        await turns(20)

    run(main())
    with pytest.raises(BlockingIOError):
        reader.recv(1)
    for sock in (other, reader):
        sock.close()


@pytest.mark.parametrize("before", ["the loop knows of it", "the run", "the signal"])
def test_a_wakeup_descriptor_that_is_closed(loop, run, before):
    """The loop learns of its signals all the same, and nobody gets the number back."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    seen = []

    async def main():
        loop.add_signal_handler(signal.SIGUSR1, seen.append, 1)
        theirs.close()
        os.kill(ME, signal.SIGUSR1)
        await until(lambda: seen)
        loop.remove_signal_handler(signal.SIGUSR1)

    if before == "the run":
        run(turns(1))
    if before != "the signal":
        theirs.close()
    run(main())
    ours.close()
    assert seen == [1]
    signal.set_wakeup_fd(-1)


def test_a_number_that_is_no_signal(loop, run):
    """Whatever is written to the wakeup descriptor wakes the loop, no more."""
    seen = []

    async def main():
        loop.add_signal_handler(signal.SIGUSR1, seen.append, 1)
        os.write(current_wakeup_fd(), bytes([0, 250, signal.SIGUSR2, signal.SIGUSR1, 0]))
        await until(lambda: seen)
        await turns(5)
        loop.remove_signal_handler(signal.SIGUSR1)

    run(main())
    assert seen == [1]


def test_a_run_leaves_no_wakeup_descriptor(loop, run):
    run(asyncio.sleep(0.001))
    assert current_wakeup_fd() == -1
    with pytest.raises(RuntimeError, match="stopped"):
        loop.call_soon(loop.stop)
        run(loop.create_future())
    assert current_wakeup_fd() == -1


def test_child_processes_and_a_handler_for_sigchld_get_on(loop, run):
    seen = []

    async def main():
        loop.add_signal_handler(signal.SIGCHLD, seen.append, 1)
        for _ in range(3):
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(7)")
            assert await process.wait() == 7
        await until(lambda: seen)
        loop.remove_signal_handler(signal.SIGCHLD)

    run(main())


# ---------------------------------------------------------------- Ctrl-C

# What a task is at when Ctrl-C comes; it says itself that it is there.
STATES = {
    "idle": "ready(); await asyncio.sleep(1000)",
    "idle without timers": "ready(); await loop.create_future()",
    "busy with tasks": "ready(); await spin()",
    "waiting for a thread": "ready(); await loop.run_in_executor(None, time.sleep, 0.5)",
    "serving": "async with await asyncio.start_server(print, '127.0.0.1', 0) as s: ready(); await s.serve_forever()",
    "waiting in a task group": "async with asyncio.TaskGroup() as g: g.create_task(asyncio.sleep(1000)); ready()",
}


def interrupt(child, number=signal.SIGINT):
    assert child.stdout.readline() == "ready\n", child.communicate()
    child.send_signal(number)
    output, errors = child.communicate(timeout=40)
    return child.returncode, output, errors


@pytest.mark.parametrize("state", STATES)
def test_ctrl_c_ends_a_runner_with_keyboard_interrupt(python, state):
    child = python.start(f"""
        def ready():
            print("ready", flush=True)
        async def spin():
            while True:
                await asyncio.sleep(0)
        async def main():
            loop = asyncio.get_running_loop()
            try:
                {STATES[state]}
            finally:
                print("finally")
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(main())
        except KeyboardInterrupt:
            print("interrupted")
            """)
    assert interrupt(child) == (0, "finally\ninterrupted\n", "")


@pytest.mark.parametrize(
    "start",
    [
        "loop.call_soon(ready)",
        "loop.call_soon(spin)",
        "loop.call_soon(ready, doze)",
        "loop.call_soon(ready, busy)",
        "loop.run_until_complete(busy_task())",
    ],
    ids=["idle", "busy with callbacks", "in a blocking callback", "in a busy callback", "in a busy task"],
)
def test_ctrl_c_comes_out_of_a_run_without_runner(python, start):
    child = python.start(f"""
        loop = new_event_loop()
        turns = 0
        def ready(then=int, *args):
            print("ready", flush=True)
            then(*args)
        def spin():
            global turns
            turns += 1
            if turns == 100:
                ready()
            loop.call_soon(spin)
        def doze():
            # A signal that comes just before a sleep does not shorten it.
            while True:
                time.sleep(0.2)
        def busy():
            while True:
                pass
        async def busy_task():
            ready(busy)
        try:
            {start}
            loop.run_forever()
        except KeyboardInterrupt:
            print("interrupted", loop.is_running())
        loop.close()
        """)
    assert interrupt(child) == (0, "interrupted False\n", "")


def test_an_unhandled_ctrl_c_ends_the_program_by_the_signal(python):
    child = python.start("""
        async def main():
            print("ready", flush=True)
            await asyncio.sleep(1000)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())
        """)
    status, output, errors = interrupt(child)
    assert status == -signal.SIGINT and output == ""
    assert errors.rstrip().endswith("KeyboardInterrupt") and "asyncio.exceptions.CancelledError" in errors


def test_a_handler_for_sigint_replaces_keyboard_interrupt(python):
    child = python.start("""
        async def main():
            loop = asyncio.get_running_loop()
            done = asyncio.Event()
            loop.add_signal_handler(signal.SIGINT, done.set)
            print("ready", flush=True)
            await done.wait()
            print("handled")
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())
        """)
    assert interrupt(child) == (0, "handled\n", "")


def test_sigterm_without_a_handler_kills(python):
    child = python.start("""
        async def main():
            print("ready", flush=True)
            await asyncio.sleep(1000)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())
        """)
    assert interrupt(child, signal.SIGTERM) == (-signal.SIGTERM, "", "")


def test_a_handler_for_sigterm_ends_the_program_in_order(python):
    child = python.start("""
        async def main():
            loop = asyncio.get_running_loop()
            task = asyncio.current_task()
            loop.add_signal_handler(signal.SIGTERM, task.cancel)
            print("ready", flush=True)
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                print("in order")
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())
        """)
    assert interrupt(child, signal.SIGTERM) == (0, "in order\n", "")


def test_a_second_ctrl_c_reaches_a_program_that_ignores_the_first(python):
    child = python.start("""
        async def main():
            print("ready", flush=True)
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                print("ready", flush=True)
            await asyncio.sleep(1000)
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    assert interrupt(child) == (0, "interrupted\n", "")
