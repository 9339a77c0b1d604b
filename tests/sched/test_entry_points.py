"""The ways in: run, install and uninstall, policies, asyncio.run and Runner with a factory."""

import asyncio
import inspect
import sys
import textwrap

import pytest

POLICIES = sys.version_info < (3, 16)

pytestmark = pytest.mark.fastloop_only(reason="the public functions of fastloop")


@pytest.fixture
def program(python):
    """Run a program in which every DeprecationWarning that our own module causes is an error."""

    def run(source, **kwargs):
        if sys.version_info >= (3, 14):
            # There every use of policies warns, the test's own included.
            kwargs.setdefault("options", ("-W", "ignore::DeprecationWarning"))
        else:
            kwargs.setdefault("options", ("-W", "error::DeprecationWarning"))
        return python("import fastloop\n" + textwrap.dedent(source), **kwargs)

    return run


# ---------------------------------------------------------------- run


def test_run_has_the_signature_of_asyncio_run():
    import fastloop

    ours, stock = inspect.signature(fastloop.run), inspect.signature(asyncio.run)
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in stock.parameters.values()
    ]


@pytest.mark.usefixtures("loop_name")
def test_run_runs_on_a_fastloop_and_closes_it():
    import fastloop

    async def main():
        loop = asyncio.get_running_loop()
        assert type(loop) is fastloop.Loop
        return loop, loop.get_debug()

    for debug in (True, False):
        loop, seen = fastloop.run(main(), debug=debug)
        assert loop.is_closed() and seen is debug


def test_run_cancels_what_is_left_and_closes_generators(program):
    assert (
        program("""
        async def left():
            try:
                await asyncio.sleep(1000)
            finally:
                print("cancelled")
        async def generator():
            try:
                yield 1
            finally:
                print("closed")
        async def main():
            global kept
            asyncio.create_task(left())
            kept = generator()
            await kept.__anext__()
            await asyncio.to_thread(int)
            return "result"
        print(fastloop.run(main()))
        print(threading.active_count())
        """)
        == "cancelled\nclosed\nresult\n1\n"
    )


@pytest.mark.parametrize("wrong, error", [("None", "ValueError"), ("5", "ValueError"), ("main", "ValueError")])
def test_run_refuses_as_asyncio_run(program, wrong, error):
    source = f"""
        async def main(): pass
        def message(run):
            try:
                run({wrong})
            except Exception as exc:
                return type(exc).__name__, str(exc)
        print(message(fastloop.run) == message(asyncio.run), message(fastloop.run) is not None)
        """
    assert program(source) == "True True\n"


def test_run_inside_a_running_loop_is_refused(program):
    assert (
        program("""
        async def inner(): pass
        async def main():
            coroutine = inner()
            try:
                fastloop.run(coroutine)
            except RuntimeError as exc:
                print(exc)
            coroutine.close()
        fastloop.run(main())
        """)
        == "asyncio.run() cannot be called from a running event loop\n"
    )


def test_exceptions_come_out_of_run(program):
    assert (
        program("""
        async def main():
            raise LookupError("own")
        try:
            fastloop.run(main())
        except LookupError as exc:
            print("caught", exc)
        """)
        == "caught own\n"
    )


@pytest.mark.left_out(sys.version_info < (3, 12), reason="new in Python 3.12")
def test_asyncio_run_with_a_loop_factory(program):
    for factory in ("fastloop.new_event_loop", "fastloop.Loop"):
        assert (
            program(f"""
            async def main():
                return type(asyncio.get_running_loop())
            print(asyncio.run(main(), loop_factory={factory}) is fastloop.Loop)
            """)
            == "True\n"
        )


def test_a_runner_with_a_loop_factory(program):
    assert (
        program("""
        async def main(value):
            await asyncio.sleep(0)
            return type(asyncio.get_running_loop()) is fastloop.Loop, value
        with asyncio.Runner(loop_factory=fastloop.new_event_loop) as runner:
            print(runner.run(main(1)), runner.run(main(2)))
        """)
        == "(True, 1) (True, 2)\n"
    )


def test_new_event_loop_makes_a_new_open_loop_each_time(loop_name):
    import fastloop

    first, second = fastloop.new_event_loop(), fastloop.new_event_loop()
    assert first is not second and type(first) is type(second) is fastloop.Loop
    assert not first.is_closed() and not first.is_running()
    first.close()
    second.close()


# ---------------------------------------------------------------- importing, installing, policies


def test_importing_changes_nothing(program):
    assert (
        program("""
        loop = asyncio.new_event_loop()
        print(type(loop) is asyncio.SelectorEventLoop)
        loop.close()
        async def main():
            return type(asyncio.get_running_loop()) is asyncio.SelectorEventLoop
        print(asyncio.run(main()))
        """)
        == "True\nTrue\n"
    )


@pytest.mark.left_out(not POLICIES, reason="Python 3.16 has no policies")
def test_install_and_uninstall(program):
    assert (
        program("""
        async def main():
            return type(asyncio.get_running_loop()) is fastloop.Loop
        fastloop.install()
        print(asyncio.run(main()))
        loop = asyncio.new_event_loop()
        print(type(loop) is fastloop.Loop)
        loop.close()
        with asyncio.Runner() as runner:
            print(runner.run(main()))
        fastloop.uninstall()
        print(asyncio.run(main()))
        """)
        == "True\nTrue\nTrue\nFalse\n"
    )


@pytest.mark.left_out(not POLICIES, reason="Python 3.16 has no policies")
def test_uninstall_brings_back_the_policy_of_before(program):
    assert (
        program("""
        class Own(asyncio.DefaultEventLoopPolicy):
            pass
        own = Own()
        asyncio.set_event_loop_policy(own)
        fastloop.install()
        print(asyncio.get_event_loop_policy() is own)
        fastloop.uninstall()
        print(asyncio.get_event_loop_policy() is own)
        """)
        == "False\nTrue\n"
    )


@pytest.mark.left_out(not POLICIES, reason="Python 3.16 has no policies")
def test_installing_twice_and_uninstalling_without_install_are_harmless(program):
    assert (
        program("""
        async def main():
            return type(asyncio.get_running_loop()) is fastloop.Loop
        fastloop.uninstall()
        fastloop.install()
        fastloop.install()
        print(asyncio.run(main()))
        fastloop.uninstall()
        print(asyncio.run(main()))
        fastloop.uninstall()
        print(asyncio.run(main()))
        """)
        == "True\nFalse\nFalse\n"
    )


@pytest.mark.left_out(not POLICIES, reason="Python 3.16 has no policies")
def test_the_policy_set_by_hand(program):
    assert (
        program("""
        asyncio.set_event_loop_policy(fastloop.EventLoopPolicy())
        async def main():
            await asyncio.sleep(0)
            return type(asyncio.get_running_loop()) is fastloop.Loop
        print(asyncio.run(main()))
        policy = asyncio.get_event_loop_policy()
        print(isinstance(policy, asyncio.AbstractEventLoopPolicy))
        loop = policy.new_event_loop()
        policy.set_event_loop(loop)
        print(policy.get_event_loop() is loop)
        loop.close()
        """)
        == "True\nTrue\nTrue\n"
    )


@pytest.mark.left_out(not POLICIES, reason="Python 3.16 has no policies")
def test_get_event_loop_of_the_policy_is_as_the_default_one(program):
    # Whether it makes a loop, warns or refuses depends on the version of Python.
    assert (
        program("""
        import warnings
        def answer(policy):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    loop = policy.get_event_loop()
                except RuntimeError as exc:
                    return str(exc)
            loop.close()
            return [str(w.message) for w in caught]
        def in_thread(policy):
            found = []
            thread = threading.Thread(target=lambda: found.append(answer(policy)), name="T")
            thread.start()
            thread.join()
            return found
        print(answer(fastloop.EventLoopPolicy()) == answer(asyncio.DefaultEventLoopPolicy()))
        print(in_thread(fastloop.EventLoopPolicy()) == in_thread(asyncio.DefaultEventLoopPolicy()))
        """)
        == "True\nTrue\n"
    )


@pytest.mark.left_out(not (3, 12) <= sys.version_info < (3, 14), reason="child watchers: nothing to say before 3.12")
def test_subprocesses_under_the_installed_policy(program):
    assert (
        program("""
        fastloop.install()
        async def main():
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(5)")
            return await process.wait()
        print(asyncio.run(main()))
        """)
        == "5\n"
    )


def test_versions():
    import fastloop

    assert all(part.isdigit() for part in fastloop.__version__.split(".")[:2])
    major, minor = map(int, fastloop.libuv_version.split(".")[:2])
    assert (major, minor) >= (1, 44)
