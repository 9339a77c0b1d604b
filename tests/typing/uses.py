"""Programs as users write them: `make lint` has mypy check them strictly. Nothing here runs."""

import asyncio
import sys
from typing import Any, assert_type

import fastloop
from fastloop import observe
from fastloop.observe import otel

assert_type(fastloop.__version__, str)
assert_type(fastloop.libuv_version, str)


async def answer() -> int:
    return 42


def ways_to_run() -> None:
    assert_type(fastloop.run(answer()), int)
    assert_type(fastloop.run(answer(), debug=True), int)
    with asyncio.Runner(loop_factory=fastloop.new_event_loop) as runner:
        assert_type(runner.run(answer()), int)
    if sys.version_info >= (3, 12):
        assert_type(asyncio.run(answer(), loop_factory=fastloop.new_event_loop), int)
        assert_type(fastloop.run(answer(), loop_factory=fastloop.Loop), int)
    fastloop.install()
    fastloop.uninstall()
    asyncio.set_event_loop_policy(fastloop.EventLoopPolicy())


def a_loop_by_hand() -> None:
    loop = fastloop.new_event_loop()
    assert_type(loop.run_until_complete(answer()), int)
    assert_type(loop.call_soon(print, "x"), asyncio.Handle)
    assert_type(loop.call_later(1, print, "x"), asyncio.TimerHandle)
    assert_type(loop.create_task(answer()), asyncio.Task[int])
    loop.close()


class MyLoop(fastloop.Loop):
    def call_exception_handler(self, context: dict[str, Any]) -> None:
        print(context["message"])


def what_a_loop_has_done(loop: fastloop.Loop) -> None:
    assert_type(loop.metrics(), dict[str, Any])
    loop.set_metrics(True)
    loop.set_slow_callback_hook(slow, 0.2)
    loop.set_slow_callback_hook(None)
    assert_type(observe.prometheus_text(loop, MyLoop(), labels={"app": "shop"}), str)
    observe.serve(loop, "/run/loop.sock")
    assert_type(observe.fetch("/run/loop.sock"), dict[str, Any])
    observe.stop_serving(loop)
    otel.instrument(loop, attributes={"name": "worker"})


def slow(call: observe.SlowCallback) -> None:
    assert_type(call.seconds, float)
    assert_type(call.task, asyncio.Task[Any] | None)
    print(call.call_graph())


async def types_of_tasks() -> None:
    task: fastloop.Task[int] = fastloop.Task(answer(), loop=asyncio.get_running_loop())
    assert_type(await task, int)
    future: fastloop.Future[str] = fastloop.Future()
    future.set_result("done")
    assert_type(await future, str)


async def a_pool() -> None:
    loop = asyncio.get_running_loop()
    with fastloop.ThreadPool(4, "worker") as pool:
        assert_type(await loop.run_in_executor(pool, len, "four"), int)
        loop.set_default_executor(pool)
