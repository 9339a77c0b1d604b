"""The end of the process, and fork(), with jobs in every state."""

import pytest


def test_exit_waits_for_jobs_as_the_standard_pool(python):
    output = python("""
        import atexit

        def job(number):
            ended.wait()
            os.write(1, b"job %d\\n" % number)

        async def main():
            loop = asyncio.get_running_loop()
            for number in range(3):
                loop.run_in_executor(None, job, number)

        atexit.register(print, "atexit")
        ended = threading.Event()
        loop = new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        print("end of main", flush=True)
        ended.set()
    """)
    lines = output.split("\n")
    assert lines[0] == "end of main" and sorted(lines[1:4]) == ["job 0", "job 1", "job 2"] and lines[4] == "atexit"


def test_a_runner_waits_for_running_jobs(python):
    assert (
        python("""
        def job():
            time.sleep(0.1)
            print("job ended")
        async def main():
            asyncio.get_running_loop().run_in_executor(None, job)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())
        print("main ended", flush=True)
        """)
        == "job ended\nmain ended\n"
    )


def test_a_job_that_blocks_holds_up_the_exit(python, tmp_path):
    # It reads from a fifo, which the test opens for writing once the main thread is at its end.
    import os

    os.mkfifo(tmp_path / "fifo")
    child = python.start("""
        loop = new_event_loop()
        def job():
            with open("fifo") as file:
                print(file.read(), flush=True)
        loop.run_in_executor(None, job)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        print("end of main", flush=True)
    """)
    assert child.stdout.readline() == "end of main\n"
    assert child.poll() is None
    (tmp_path / "fifo").write_text("the job's end")
    output, errors = child.communicate(timeout=30)
    assert (output, errors, child.returncode) == ("the job's end\n", "", 0)


def test_exit_with_an_open_loop_and_idle_workers(python):
    output = python("""
        loop = new_event_loop()
        print(loop.run_until_complete(loop.run_in_executor(None, abs, -1)))
    """)
    assert output == "1\n"


def test_exit_with_an_open_loop_and_jobs_under_way(python):
    output = python("""
        loop = new_event_loop()
        futures = [loop.run_in_executor(None, time.sleep, 0.01) for _ in range(100)]
        loop.run_until_complete(futures[0])
        print("end of main")
    """)
    assert output == "end of main\n"


def test_sys_exit_while_jobs_run(python):
    output = python("""
        async def main():
            asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.05)
            sys.exit(3)

        loop = new_event_loop()
        loop.run_until_complete(main())
    """, status=3, stderr=None)  # fmt: skip
    assert output == ""


@pytest.mark.parametrize("warm", [False, True])
def test_no_job_starts_after_the_end_of_the_main_thread(python, warm):
    # atexit functions run after the workers have been joined.
    source = f"""
        import atexit

        def late():
            try:
                loop.run_in_executor(None, print, "ran")
            except RuntimeError as exc:
                print(exc)

        atexit.register(late)
        loop = new_event_loop()
        if {warm}:
            loop.run_until_complete(loop.run_in_executor(None, abs, 1))
    """
    output = python(source)
    assert "shutdown" in output and output == type(python)("stock", python.folder)(source)


def test_a_job_that_starts_jobs_at_exit(python):
    output = python("""
        def job():
            while not threading._SHUTTING_DOWN:
                time.sleep(0.001)
            # The main thread says so a little before it closes the pool.
            try:
                while True:
                    loop.run_in_executor(None, time.sleep, 0)
                    time.sleep(0.01)
            except RuntimeError as exc:
                print(exc)

        loop = new_event_loop()
        loop.run_in_executor(None, job)
        loop.run_until_complete(asyncio.sleep(0))
    """)
    assert output == "cannot schedule new futures after interpreter shutdown\n"


def test_loops_in_daemon_threads_at_exit(python):
    # They are in a hop at any time when the interpreter ends.
    output = python("""
        async def main():
            loop = asyncio.get_running_loop()
            try:
                while True:
                    await asyncio.gather(*(loop.run_in_executor(None, abs, 1) for _ in range(10)))
                    started.set()
            except RuntimeError as exc:
                assert "shutdown" in str(exc), exc
                await asyncio.sleep(3600)

        def work():
            loop = new_event_loop()
            loop.run_until_complete(main())

        started = threading.Event()
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        started.wait(30)
        time.sleep(0.05)
        print("end of main")
    """)
    assert output == "end of main\n"


FORK = """
    def in_child(function):
        pid = os.fork()
        if pid == 0:
            try:
                function()
            except BaseException as exc:
                print("child:", repr(exc), flush=True)
                os._exit(1)
            os._exit(0)
        print("status", os.waitpid(pid, 0)[1], flush=True)

    def hop():
        loop = new_event_loop()
        async def main():
            return await asyncio.gather(*(asyncio.to_thread(abs, -i) for i in range(20)))
        print(sum(loop.run_until_complete(main())), flush=True)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_forked_child_hops_on_a_loop_of_its_own(python, state):
    python.watchdog = False
    output = python(
        FORK
        + f"""
    loop = new_event_loop()
    loop.run_until_complete(loop.run_in_executor(None, abs, -1))
    release = threading.Event()
    if {state == "busy"}:
        futures = [loop.run_in_executor(None, release.wait, 30) for _ in range(50)]
    in_child(hop)
    release.set()
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    """
    )
    assert output == "190\nstatus 0\n"


@pytest.mark.fastloop_only("on stock the child takes the parent's descriptors out of the epoll set that they share")
def test_a_forked_child_may_drop_what_it_inherited(python):
    python.watchdog = False
    output = python(
        FORK
        + """
    def drop():
        global loop, futures
        loop.close()
        del loop, futures
        hop()

    loop = new_event_loop()
    release = threading.Event()
    futures = [loop.run_in_executor(None, release.wait, 30) for _ in range(50)]
    in_child(drop)
    release.set()
    print(set(loop.run_until_complete(asyncio.wait_for(asyncio.gather(*futures), 30))))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    """
    )
    assert output == "190\nstatus 0\n{True}\n"


def test_fork_inside_a_job(python):
    python.watchdog = False
    output = python(
        FORK
        + """
    loop = new_event_loop()
    loop.run_until_complete(loop.run_in_executor(None, in_child, hop))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    """
    )
    assert output == "190\nstatus 0\n"


def test_fork_again_and_again_beside_running_hops(python):
    # The child must never inherit a lock that somebody holds.
    python.watchdog = False
    output = python(
        FORK
        + """
    def quick():
        fresh = new_event_loop()
        fresh.run_until_complete(asyncio.to_thread(abs, 1))
        fresh.run_until_complete(fresh.shutdown_default_executor())
        fresh.close()

    async def main():
        async def hops():
            while not done:
                await asyncio.gather(*(asyncio.to_thread(abs, 1) for _ in range(20)))
        done = []
        task = asyncio.ensure_future(hops())
        statuses = set()
        for _ in range(30):
            pid = await asyncio.to_thread(fork, quick)
            statuses.add(await asyncio.to_thread(lambda: os.waitpid(pid, 0)[1]))
        done.append(1)
        await task
        return statuses

    def fork(function):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            asyncio._set_running_loop(None)
            try:
                function()
                os._exit(0)
            finally:
                os._exit(1)
        return pid

    loop = new_event_loop()
    print(loop.run_until_complete(main()))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    """,
        stderr=None,
    )
    assert output == "{0}\n"


SUBINTERPRETERS = """
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    source = '''if True:
        import asyncio, threading
        {imports}
        async def main():
            results = await asyncio.gather(*(asyncio.to_thread(abs, -1) for _ in range(50)))
            name = await asyncio.to_thread(lambda: threading.current_thread().name)
            assert sum(results) == 50 and name.startswith("asyncio_"), (results, name)
        loop = {make}
        loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    '''

    def work():
        identity = interpreters.create("isolated") if modern else interpreters.create(isolated=False)
        problem = interpreters.run_string(identity, source)
        interpreters.destroy(identity)
        os.write(1, str(problem).encode() + b" ")

    # Before 3.13 an isolated one has no threads or does not survive plain asyncio, and 3.11 mixes up running loops.
    modern = interpreters.__name__ == "_interpreters"
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
        if not modern:
            thread.join()
    for thread in threads:
        thread.join()
    print("done")
"""


def test_a_subinterpreter_has_workers_of_its_own(python):
    stock = python.name == "stock"
    imports, make = ("", "asyncio.SelectorEventLoop()") if stock else ("import fastloop", "fastloop.new_event_loop()")
    assert python(SUBINTERPRETERS.format(imports=imports, make=make)) == "None None done\n"
