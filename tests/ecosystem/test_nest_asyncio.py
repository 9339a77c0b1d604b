"""nest_asyncio: runs inside runs, in a script and as a notebook does it."""

import pytest

pytest.importorskip("nest_asyncio")

HEAD = """
import nest_asyncio

async def value(x, seconds=0.001):
    await asyncio.sleep(seconds)
    return x

"""


def test_asyncio_run_and_run_until_complete_inside_a_coroutine(python):
    output = python(
        HEAD
        + """
async def main():
    nest_asyncio.apply()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    print(loop.run_until_complete(value(5)), asyncio.run(value(6)))
    assert asyncio.current_task() is task and asyncio.get_running_loop() is loop
    await asyncio.sleep(0.001)
    return 7

loop = new_event_loop()
asyncio.set_event_loop(loop)
print(loop.run_until_complete(main()))
loop.close()
""",
        stderr=None,
    )
    assert output == "5 6\n7\n"


def test_other_tasks_go_on_while_a_nested_run_waits(python):
    output = python(
        HEAD
        + """
loop = new_event_loop()
asyncio.set_event_loop(loop)
nest_asyncio.apply(loop)

async def ticks(count):
    for number in range(count):
        print(number)
        await asyncio.sleep(0.01)

async def outer():
    ticking = asyncio.create_task(ticks(3))
    await asyncio.sleep(0)
    inner = loop.run_until_complete(value("inner", 0.005))
    loop.run_until_complete(ticking)
    async def deeper():
        return loop.run_until_complete(value(inner + " deeper"))
    return loop.run_until_complete(deeper())

print(loop.run_until_complete(outer()))
loop.close()
""",
        stderr=None,
    )
    assert output == "0\n1\n2\ninner deeper\n"


def test_from_a_callback_and_with_an_exception(python):
    output = python(
        HEAD
        + """
loop = new_event_loop()
asyncio.set_event_loop(loop)
nest_asyncio.apply(loop)

def callback(found):
    found.set_result(loop.run_until_complete(value(1)))

async def failing():
    await asyncio.sleep(0)
    raise KeyError("inner")

async def main():
    found = loop.create_future()
    loop.call_soon(callback, found)
    print(await found)
    try:
        loop.run_until_complete(failing())
    except KeyError as exc:
        print(repr(exc))

loop.run_until_complete(main())
loop.call_later(0.01, loop.stop)
loop.run_forever()
print(loop.run_until_complete(value(2)))
loop.close()
""",
        stderr=None,
    )
    assert output == "1\nKeyError('inner')\n2\n"


def test_a_stop_in_a_nested_run_is_an_error_of_that_run(python):
    output = python(
        HEAD
        + """
loop = new_event_loop()
asyncio.set_event_loop(loop)
nest_asyncio.apply(loop)

async def main():
    loop.call_soon(loop.stop)
    try:
        loop.run_until_complete(value(1, 1000))
    except RuntimeError as exc:
        return str(exc)

# On the standard loop the flag stays up and ends the outer run too.
try:
    print(loop.run_until_complete(main()))
except RuntimeError as exc:
    print(exc)
for task in asyncio.all_tasks(loop):
    task.cancel()
""",
        stderr=None,
    )
    assert output == "Event loop stopped before Future completed.\n"


@pytest.mark.fastloop_only("the standard loop calls protocols outside of its poll")
def test_a_protocol_cannot_run_the_loop_and_is_told_so(python):
    output = python(
        HEAD
        + """
import socket
loop = new_event_loop()
asyncio.set_event_loop(loop)
nest_asyncio.apply(loop)

class Nesting(asyncio.Protocol):
    def data_received(self, data):
        future = loop.create_future()
        try:
            loop.run_until_complete(future)
        except RuntimeError as exc:
            print(exc)

async def main():
    ours, theirs = socket.socketpair()
    transport, _ = await loop.create_unix_connection(Nesting, sock=ours)
    theirs.send(b"x")
    await asyncio.sleep(0.05)
    transport.close()
    theirs.close()

loop.run_until_complete(main())
loop.close()
""",
        stderr=None,
    )
    assert (
        output == "fastloop cannot run inside data_received() and the like, which its poll calls: start a task there\n"
    )


@pytest.mark.fastloop_only("a direct comparison")
def test_without_nest_asyncio_a_nested_run_is_refused(python):
    output = python("""
    async def main():
        pending = loop.create_future()
        try:
            loop.run_until_complete(pending)
        except RuntimeError as exc:
            print(exc)
    loop = new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    """)
    assert output == "This event loop is already running\n"
