"""Every way in which a program gets a loop gives it a fastloop, without a warning."""

import re

import pytest

WAYS = """\
    import asyncio, unittest
    def kind(loop):
        print(type(loop).__module__, type(loop).__qualname__)
        return loop
    async def main():
        kind(asyncio.get_running_loop())
        kind(asyncio.get_event_loop())
    asyncio.run(main())
    asyncio.run(main(), debug=True)
    with asyncio.Runner() as runner:
        runner.run(main())
        kind(runner.get_loop())
    kind(asyncio.new_event_loop()).close()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    kind(asyncio.get_event_loop()).run_until_complete(main())
    asyncio.set_event_loop(None)
    loop.close()
    class Case(unittest.IsolatedAsyncioTestCase):
        async def test(self):
            await main()
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    assert result.testsRun == 1 and result.wasSuccessful(), result
    import threading
    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join()
    """


@pytest.mark.parametrize("options", [(), ("-W", "error"), ("-X", "dev")], ids=" ".join)
def test_every_way_to_a_loop(programs, options):
    programs.write("ways.py", WAYS)
    stock = programs.stock("ways.py")
    result = programs.fast("ways.py", options=options)
    # Debug mode tells of slow callbacks, and on a busy machine anything may be slow.
    told = re.sub(r"^Executing <.* took \d+\.\d+ seconds\n", "", result.err, flags=re.MULTILINE)
    assert (result.status, told) == (0, "" if "dev" not in options else told)
    assert "Warning" not in result.err
    lines = result.out.splitlines()
    assert set(lines) == {"fastloop.loop Loop"}
    assert len(lines) == len(stock.out.splitlines()) == 15


def test_get_event_loop_without_a_loop(programs):
    """It makes one, makes one with a warning, or refuses: as this version of Python does."""
    programs.write(
        "program.py",
        """\
        import asyncio, warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                loop = asyncio.get_event_loop()
            except RuntimeError as error:
                print("refused", error)
            else:
                print("made", loop.is_closed())
                loop.close()
        print([(each.category.__name__, str(each.message), each.filename) for each in caught])
        """,
    )
    assert programs.same("program.py").status == 0


def test_a_loop_that_the_program_chose_itself_is_respected(programs):
    programs.write(
        "program.py",
        """\
        import asyncio
        async def main():
            print(type(asyncio.get_running_loop()).__module__)
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(main())
        """,
    )
    assert programs.fast("program.py").out == "asyncio.unix_events\n"


def test_asyncio_s_own_prompt(programs):
    typed = "import asyncio\nawait asyncio.sleep(0)\nprint('on', type(asyncio.get_running_loop()).__module__)\n"
    result = programs.fast("-m", "asyncio", input=typed)
    assert result.status == 0
    assert "on fastloop.loop" in result.out
