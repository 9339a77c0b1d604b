"""Processes that a program starts find the program's own functions and classes."""

import multiprocessing

import pytest

PROGRAM = """\
    import asyncio, concurrent.futures, dataclasses, multiprocessing, os, sys
    if __name__ not in ("__main__", "__mp_main__"):
        print("imported as", __name__)
    @dataclasses.dataclass
    class Job:
        number: int
    def square(job):
        return Job(job.number ** 2), __name__, os.path.basename(__file__), os.path.basename(sys.argv[0])
    def fail(job):
        raise LookupError(job.number)
    def talk(pipe):
        pipe.send([__name__, sys.argv[1:]])
        pipe.close()
    async def in_a_child():
        await asyncio.sleep(0)
        return 42
    def run_a_loop(_):
        return asyncio.run(in_a_child())
    async def main(context):
        loop = asyncio.get_running_loop()
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            jobs = [loop.run_in_executor(pool, square, Job(number)) for number in range(3)]
            for result in await asyncio.gather(*jobs):
                print(result)
            try:
                await loop.run_in_executor(pool, fail, Job(5))
            except LookupError as error:
                print("failed", error)
            print(await loop.run_in_executor(pool, run_a_loop, None))
    if __name__ == "__main__":
        context = multiprocessing.get_context(sys.argv[1])
        ours, theirs = context.Pipe()
        process = context.Process(target=talk, args=(theirs,))
        process.start()
        theirs.close()
        print(ours.recv())
        process.join()
        print("exit code", process.exitcode)
        asyncio.run(main(context))
    """


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.parametrize("arguments", ["program.py", "./deep/program.py", "-m program", "-m deep.program"])
def test_processes_call_the_program_s_functions(programs, arguments, method):
    for name in ("program.py", "deep/program.py"):
        programs.write(name, PROGRAM)
    result = programs.same(*arguments.split(), method)
    assert (result.status, result.err) == (0, "")
    assert "Job(number=4)" in result.out and "failed 5" in result.out and result.out.endswith("42\n")


def test_a_forked_child_has_fastloop_too(programs):
    programs.write(
        "program.py",
        """\
        import asyncio, multiprocessing
        def tell():
            loop = asyncio.new_event_loop()
            print(type(loop).__module__, flush=True)
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
        process = multiprocessing.get_context("fork").Process(target=tell)
        process.start()
        process.join()
        print(process.exitcode)
        """,
    )
    result = programs.fast("program.py")
    assert (result.out, result.err) == ("fastloop.loop\n0\n", "")
