"""Child processes: every option of Popen, real pipes, many children, loops in threads, loops that end first."""

import asyncio
import collections.abc
import contextlib
import fcntl
import functools
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import types

import pytest

from helpers import until

PYTHON = sys.executable
F_GETPIPE_SZ = 1032


async def output_of(*arguments, data=None, **options):
    """Run a program to its end; return its exit status and what it wrote."""
    options = {"stdin": subprocess.DEVNULL if data is None else subprocess.PIPE, "stdout": subprocess.PIPE, **options}
    process = await asyncio.create_subprocess_exec(*arguments, **options)
    output, _ = await process.communicate(data)
    return process.returncode, output


# ---------------------------------------------------------------- options of Popen


class Environment(collections.abc.Mapping):
    """An environment that is no dict."""

    def __init__(self, **values):
        self.given = values

    def __getitem__(self, name):
        return self.given[name]

    def __iter__(self):
        return iter(self.given)

    def __len__(self):
        return len(self.given)


@pytest.mark.parametrize(
    "environment", [{"A": "1"}, Environment(A="1"), types.MappingProxyType({"A": "1"}), {b"A": b"1"}, {"A": b"1"}]
)
def test_any_mapping_is_an_environment(run, environment):
    code, output = run(output_of("/usr/bin/env", env=environment))
    assert (code, output) == (0, b"A=1\n")


def test_an_empty_environment(run):
    assert run(output_of("/usr/bin/env", env={})) == (0, b"")


@pytest.mark.parametrize("program", ["sh", b"sh", pathlib.Path("/bin/sh")])
def test_programs_of_every_type(run, program):
    assert run(output_of(program, "-c", b"echo $0 $1", pathlib.Path("zero"), "one")) == (0, b"zero one\n")


def test_executable_and_name(run):
    assert run(output_of("name", "-c", "echo $0", executable="/bin/sh")) == (0, b"name\n")


def test_folder(run, tmp_path):
    for folder in (tmp_path, str(tmp_path), os.fsencode(tmp_path)):
        assert run(output_of("pwd", cwd=folder)) == (0, os.fsencode(tmp_path) + b"\n")


def test_umask_session_and_group(run):
    source = "import os; print(oct(os.umask(0)), os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid())"

    def answer(**options):
        code, output = run(output_of(PYTHON, "-c", source, **options))
        assert code == 0
        return output.decode().split()

    assert answer(umask=0o27) == ["0o27", "False", "False"]
    assert answer(start_new_session=True)[1:] == ["True", "True"]
    assert answer(process_group=0)[1:] == ["False", "True"]


def test_user_and_groups(run):
    options = {"user": os.getuid(), "group": os.getgid()}
    if os.geteuid() == 0:
        options = {"user": 65534, "group": 65534, "extra_groups": [65533]}
    code, output = run(output_of("sh", "-c", "id -u; id -g; id -G", **options))
    assert code == 0
    user, group, groups = output.decode().splitlines()
    assert (int(user), int(group)) == (options["user"], options["group"])
    assert "extra_groups" not in options or "65533" in groups.split()


def test_the_size_of_the_pipes(run):
    async def main():
        process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1, pipesize=8192)
        pipe = process._transport.get_pipe_transport(1).get_extra_info("pipe")
        assert fcntl.fcntl(pipe.fileno(), F_GETPIPE_SZ) == 8192
        assert await process.communicate(b"x" * 100_000) == (b"x" * 100_000, None)

    run(main())


@pytest.mark.parametrize(
    "options",
    [
        {"startupinfo": object()},
        {"creationflags": 1},
        {"process_group": "x"},
        {"umask": "x"},
        {"user": -1},
        {"user": "no such user"},
        {"group": "no such group"},
        {"extra_groups": [-1]},
        {"extra_groups": "x"},
        {"pass_fds": [-1]},
        {"pipesize": "x"},
        {"env": {"A=": "b"}},
        {"cwd": "/nonexistent"},
        {"stdin": 1.5},
        {"stdout": 10**6},
        {"nonsense": 1},
    ],
    ids=str,
)
def test_what_popen_refuses(run, options):
    """It is refused with Popen's own error, and nothing is left."""
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, **options}
    with pytest.raises(Exception) as own:
        subprocess.Popen(["true"], bufsize=0, **options)
    with pytest.raises(type(own.value)) as caught:
        run(output_of("true", **options))
    assert str(caught.value) == str(own.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_preexec_fn(run):
    assert run(output_of("sh", "-c", "echo $A", preexec_fn=lambda: os.putenv("A", "set"))) == (0, b"set\n")
    no_core = functools.partial(resource.setrlimit, resource.RLIMIT_CORE, (0, 0))
    assert run(output_of("sh", "-c", "ulimit -c", preexec_fn=no_core)) == (0, b"0\n")


def fail():
    raise ValueError("on purpose")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_failing_preexec_fn(run):
    with pytest.raises(subprocess.SubprocessError, match="Exception occurred in preexec_fn"):
        run(output_of("true", preexec_fn=fail))


def test_descriptors_that_are_passed_or_closed(run):
    async def main():
        reading, writing = os.pipe()
        os.set_inheritable(writing, True)
        try:
            script = f"(echo here >/proc/self/fd/{writing}) 2>/dev/null"
            assert (await output_of("sh", "-c", script))[0] != 0
            assert (await output_of("sh", "-c", script, close_fds=False))[0] == 0
            assert (await output_of("sh", "-c", script, pass_fds=[writing]))[0] == 0
            assert os.read(reading, 100) == b"here\nhere\n"
        finally:
            os.close(reading)
            os.close(writing)

    run(main())


def test_files_as_standard_streams(run, tmp_path):
    (tmp_path / "in").write_bytes(b"from a file")

    async def main():
        with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as sink:
            process = await asyncio.create_subprocess_exec("cat", stdin=source, stdout=sink.fileno())
            assert process.stdin is None and process.stdout is None
            assert await process.wait() == 0
        assert (tmp_path / "out").read_bytes() == b"from a file"

    run(main())


def test_standard_error_into_standard_output(run):
    script = "echo out; echo error >&2"
    assert run(output_of("sh", "-c", script, stderr=subprocess.STDOUT)) == (0, b"out\nerror\n")
    assert run(output_of("sh", "-c", script, stderr=subprocess.DEVNULL)) == (0, b"out\n")


def test_signals_are_restored(run):
    # Python ignores SIGPIPE: the child must not, unless told.
    async def ignored(**options):
        code, output = await output_of("grep", "SigIgn", "/proc/self/status", **options)
        assert code == 0
        return int(output.split()[1], 16) & 1 << signal.SIGPIPE - 1

    assert not run(ignored())
    assert run(ignored(restore_signals=False))


@pytest.mark.parametrize(
    "option",
    [
        {"text": True},
        {"universal_newlines": True},
        {"encoding": "utf-8"},
        {"errors": "strict"},
        {"bufsize": 1},
        {"shell": True},
    ],
)
def test_text_is_refused(run, option):
    with pytest.raises(ValueError):
        run(asyncio.create_subprocess_exec("true", **option))


# ---------------------------------------------------------------- pipes


@pytest.mark.fastloop_only("on Python 3.11 the standard loop gives the child a socket")
def test_the_standard_streams_of_the_child_are_pipes(run):
    async def main():
        script = "cat /dev/stdin > /dev/stdout; echo done > /dev/stderr"
        process = await asyncio.create_subprocess_exec("sh", "-c", script, stdin=-1, stdout=-1, stderr=-1)
        assert await process.communicate(b"through") == (b"through", b"done\n")
        kinds = await output_of("sh", "-c", "readlink /proc/self/fd/0; readlink /proc/self/fd/1", data=b"")
        assert [line.partition(b":")[0] for line in kinds[1].splitlines()] == [b"pipe", b"pipe"]

    run(main())


@pytest.mark.left_out(sys.version_info < (3, 11, 7), reason="Debian 12 reports an exception never retrieved")
def test_a_child_that_does_not_read_holds_the_writer_up(run):
    async def main():
        process = await asyncio.create_subprocess_exec("sleep", "1000", stdin=subprocess.PIPE)
        process.stdin.write(b"x" * 1_000_000)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(process.stdin.drain(), 0.05)
        process.kill()
        assert await process.wait() == -signal.SIGKILL

    run(main())


def test_a_child_that_is_gone_does_not_harm_communicate(run):
    async def main():
        process = await asyncio.create_subprocess_exec("true", stdin=subprocess.PIPE)
        await process.communicate(b"x" * 1_000_000)
        assert process.returncode == 0
        # Python before 3.11.7 reports what nobody asks for.
        with contextlib.suppress(OSError):
            await process.stdin.wait_closed()

    run(main())


def test_a_grandchild_keeps_the_pipe_open_after_the_exit(run):
    async def main():
        # A child that has ended is there until it is waited for.
        script = "(while kill -0 $$ 2>/dev/null; do sleep 0.01; done; echo late) & echo early"
        process = await asyncio.create_subprocess_exec("sh", "-c", script, stdout=subprocess.PIPE)
        assert await process.wait() == 0
        assert await process.stdout.read() == b"early\nlate\n"

    run(main())


# ---------------------------------------------------------------- many, and from everywhere


def test_two_hundred_children_at_once(run):
    async def child(number):
        return await output_of("sh", "-c", f"cat; exit {number % 250}", data=b"%d" % number)

    async def main():
        answers = await asyncio.gather(*map(child, range(200)))
        assert answers == [(number, b"%d" % number) for number in range(200)]

    run(main())


@pytest.mark.timeout(180)
def test_a_thousand_children_leave_nothing(run):
    async def main():
        for _ in range(50):
            processes = [await asyncio.create_subprocess_exec("true", stdout=subprocess.PIPE) for _ in range(20)]
            codes = await asyncio.gather(*[process.wait() for process in processes])
            assert codes == [0] * 20
        # Each of them could leave one.
        assert len(os.listdir("/proc/self/fd")) < before + 100

    before = len(os.listdir("/proc/self/fd"))

    run(main())


@pytest.mark.timeout(120)
def test_several_loops_in_several_threads(loop_factory):
    failures = []

    async def children(thread):
        async def one(number):
            return await output_of("sh", "-c", f"cat; exit {number}", data=b"%d %d" % (thread, number))

        answers = await asyncio.gather(*map(one, range(20)))
        if answers != [(number, b"%d %d" % (thread, number)) for number in range(20)]:
            failures.append(answers)

    def work(thread):
        loop = loop_factory()
        try:
            for _ in range(3):
                loop.run_until_complete(children(thread))
        except BaseException as exc:
            failures.append(exc)
        finally:
            loop.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.fastloop_only("how fastloop reaps is its own affair")
def test_without_pidfds_a_thread_waits(run, monkeypatch):
    from fastloop import unix

    monkeypatch.setattr(unix, "_pidfd_works", lambda: False)

    async def main():
        assert await asyncio.gather(*[output_of("sh", "-c", f"exit {n}") for n in range(10)]) == [
            (n, b"") for n in range(10)
        ]

    run(main())


@pytest.mark.fastloop_only("up to Python 3.11 the standard loop waits for children in threads")
def test_a_child_reaped_by_somebody_else(run, guard):
    async def main():
        process = await asyncio.create_subprocess_exec("sleep", "0.05")
        # Waits for the child before the loop can.
        os.waitpid(process.pid, 0)
        assert await process.wait() == 255
        await until(lambda: any("already read" in text or "Unknown child" in text for text in guard.log.take()))

    run(main())


@pytest.fixture
def child_watcher():
    """A watcher of the program's own, which notes its children in `pids`."""

    class Watcher(asyncio.ThreadedChildWatcher):
        active = True

        def __init__(self):
            super().__init__()
            self.pids = []

        def add_child_handler(self, pid, callback, *args):
            self.pids.append(pid)
            super().add_child_handler(pid, callback, *args)

        def is_active(self):
            return self.active

    return Watcher()


@pytest.mark.left_out(sys.version_info >= (3, 14), reason="child watchers: gone since 3.14")
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_a_child_watcher_of_the_program_is_asked(run, child_watcher):
    async def main():
        asyncio.set_child_watcher(child_watcher)
        try:
            return await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
        finally:
            asyncio.set_child_watcher(None)

    async def main_that_waits():
        process = await main()
        assert await process.wait() == 3
        assert child_watcher.pids == [process.pid]

    run(main_that_waits())
    child_watcher.active = False
    with pytest.raises(RuntimeError, match="not activated, subprocess support is not installed"):
        run(main())


@pytest.mark.left_out(sys.version_info >= (3, 14), reason="child watchers: gone since 3.14")
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_a_child_watcher_of_a_policy_is_asked(run, child_watcher):
    class Policy(asyncio.DefaultEventLoopPolicy):
        def get_child_watcher(self):
            return child_watcher

    async def main():
        process = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
        assert await process.wait() == 3
        assert child_watcher.pids == [process.pid]

    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(Policy())
    try:
        run(main())
    finally:
        asyncio.set_event_loop_policy(before)


def test_popen_beside_the_loop_keeps_its_children(run):
    async def main():
        other = subprocess.Popen(["sh", "-c", "exit 3"])
        assert await output_of("sh", "-c", "exit 4") == (4, b"")
        await asyncio.sleep(0.05)
        assert other.wait() == 3

    run(main())


# ---------------------------------------------------------------- cancellation and ends


def test_a_spawn_that_is_cancelled_ends_its_child(run):
    async def main():
        task = asyncio.ensure_future(asyncio.create_subprocess_exec("sleep", "1000", stdin=-1, stdout=-1))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_signals_and_exit_status(run):
    async def main():
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", "trap 'exit 9' USR1; echo up; while :; do sleep 0.01; done", stdout=-1
        )
        await process.stdout.readline()
        process.send_signal(signal.SIGUSR1)
        assert await process.wait() == 9
        assert process.returncode == 9
        assert await asyncio.gather(process.wait(), process.wait()) == [9, 9]
        for method in (process.kill, process.terminate):
            with pytest.raises(ProcessLookupError):
                method()

    run(main())


@pytest.mark.fastloop_only("up to Python 3.11 the standard loop waits for children in threads")
def test_a_child_outlives_its_loop(python):
    output = python(
        """
        import gc
        async def main():
            process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
            return process
        loop = new_event_loop()
        asyncio.set_event_loop(loop)
        process = loop.run_until_complete(main())
        loop.close()
        os.kill(process.pid, 0)
        second = new_event_loop()
        asyncio.set_event_loop(second)
        async def again():
            other = await asyncio.create_subprocess_exec("true")
            return await other.wait()
        print(second.run_until_complete(again()))
        second.close()
        os.kill(process.pid, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]))
        """,
        stderr=None,
    )
    assert output == "0\n-9\n"
