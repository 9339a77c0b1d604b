"""The check of asyncio's private structs at import: one word read wrongly, and the standard types serve instead."""

import asyncio
import json
import subprocess
import sys
import sysconfig

import pytest

pytestmark = pytest.mark.usefixtures("debug_off")

#: Makes fastloop._coro the module that fastloop._core will find, with a chance to change it before.
PREPARED = """
import asyncio, importlib.util, json, os, sys

spec = importlib.util.find_spec("fastloop")
path = os.path.join(spec.submodule_search_locations[0], "_coro.py")
spec = importlib.util.spec_from_file_location("fastloop._coro", path)
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
sys.modules["fastloop._coro"] = helpers
layout_is_known = helpers.layout_is_known
"""

EACH_WORD = (
    PREPARED
    + """
caught, missed, true_answer = [], [], None


def try_each_word(words_of):
    global true_answer
    future, coroutine = asyncio.Future(loop=helpers.ProbeLoop()), helpers.nothing()
    task = asyncio.Task(coroutine, loop=helpers.ProbeLoop(keep=False))
    task._log_destroy_pending = False
    coroutine.close()
    for kind in (future, task):
        for name in words_of(kind):

            def lie(obj):
                words = words_of(obj)
                if type(obj) is type(kind):
                    words[name] = 0 if words[name] else 1
                return words

            (missed if layout_is_known(lie) else caught).append(f"{type(kind).__name__}.{name}")
    true_answer = layout_is_known(words_of)
    return true_answer


helpers.layout_is_known = try_each_word
import fastloop

print(json.dumps([caught, missed, true_answer, fastloop._core.native_tasks]))
"""
)

OTHER_STRUCT = (
    PREPARED
    + """
def with_two_fields_swapped(words_of):
    def swapped(obj):
        words = words_of(obj)
        words["result"], words["exception"] = words["exception"], words["result"]
        return words

    return layout_is_known(swapped)


helpers.layout_is_known = with_two_fields_swapped
import fastloop


async def answer(value):
    await asyncio.sleep(0)
    return value


async def main():
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.set_result, 1)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(number)) for number in range(3)]
    cancelled = loop.create_task(asyncio.sleep(3600))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    types = {type(future).__module__, type(tasks[0]).__module__}
    return [await future, *(task.result() for task in tasks), await asyncio.to_thread(abs, -7)], sorted(types)


with asyncio.Runner(loop_factory=fastloop.new_event_loop) as runner:
    result = runner.run(main())
same = fastloop.Task is asyncio.Task and fastloop.Future is asyncio.Future
print(json.dumps([*result, fastloop._core.native_tasks, same]))
"""
)


def run(code, *arguments):
    """What the code prints, in a process that has not imported fastloop yet."""
    child = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert child.returncode == 0 and child.stderr == "", child.stderr
    return json.loads(child.stdout)


def test_each_word_counts():
    """Whatever single word of the description is wrong, it is noticed; the true one is recognised."""
    caught, missed, true_answer, native = run(EACH_WORD)
    assert missed == []
    assert len(caught) >= 30 and "Future.callbacks" in caught and "Task.must_cancel" in caught
    assert true_answer is True and native is True


def test_standard_types_serve_where_the_struct_is_another():
    answers, modules, native, same = run(OTHER_STRUCT)
    assert answers == [1, 0, 1, 2, 7]
    assert modules == ["_asyncio"]
    assert native is False and same is True


#: Counts the calls of asyncio's function that replaces the running task; argv[1] says whether it lies at the import.
SWAPS = """
import _asyncio, asyncio, json, sys

swap, calls = _asyncio._swap_current_task, []


def counted(loop, task):
    calls.append(task)
    previous = swap(loop, task)
    return None if previous is loop and sys.argv[1] == "lies" else previous


_asyncio._swap_current_task = counted
import fastloop

at_import = len(calls)


async def child(number):
    seen = [asyncio.current_task().get_name()]
    asyncio.get_running_loop().call_soon(lambda: seen.append(asyncio.current_task()))
    await asyncio.sleep(0)
    return [*seen, asyncio.current_task().get_name()]


async def main():
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(child(number), name=f"child {number}") for number in range(3)]
        names = sorted(task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task())
    return [task.result() for task in tasks], names, len(asyncio.all_tasks())


result = fastloop.run(main())
print(json.dumps([result, at_import, len(calls) - at_import]))
"""

IMPORT_IN_A_TASK = """
import asyncio, json


async def main():
    before = asyncio.get_running_loop(), asyncio.current_task(), asyncio.all_tasks()
    import fastloop
    same = before == (asyncio.get_running_loop(), asyncio.current_task(), asyncio.all_tasks())
    await asyncio.sleep(0)
    return same


print(json.dumps(asyncio.run(main())))
"""


@pytest.mark.left_out(not hasattr(asyncio, "capture_call_graph"), reason="the thread state knows the task since 3.14")
@pytest.mark.left_out(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="other threads look there")
def test_the_running_task_is_kept_where_asyncio_keeps_it():
    """By a store in the thread state; and by asyncio's function where that place is not found."""
    expected = [[[[f"child {i}", None, f"child {i}"] for i in range(3)], [f"child {i}" for i in range(3)], 1]]
    for honesty, calls_it in (("honest", False), ("lies", True)):
        result, at_import, calls = run(SWAPS, honesty)
        assert [result] == expected and at_import == 2 and (calls > 0) is calls_it, honesty


def test_importing_inside_a_task_leaves_it_the_running_one():
    assert run(IMPORT_IN_A_TASK) is True


#: argv[1] is what stands in the place of asyncio's types while fastloop is imported.
OTHER_TYPES = """
import asyncio, json, sys
import _asyncio

types = _asyncio.Future, _asyncio.Task
_asyncio.Future, _asyncio.Task = eval(sys.argv[1])
import fastloop

_asyncio.Future, _asyncio.Task = types


async def answer(value):
    await asyncio.sleep(0)
    return value


async def main():
    future = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(answer(1))
    asyncio.get_running_loop().call_soon(future.set_result, 2)
    return [await task, await future, await asyncio.to_thread(abs, -3)]


print(json.dumps([fastloop.run(main()), fastloop._core.native_tasks]))
"""


@pytest.mark.parametrize(
    "types", ["asyncio.futures._PyFuture, asyncio.tasks._PyTask", "object(), object()", "int, int", "object, object"]
)
def test_types_of_another_make(types):
    """Whatever stands there, such as the types that are written in Python, is not taken for what we know."""
    assert run(OTHER_TYPES, types) == [[1, 2, 3], False]


#: The source of automatic names is found out with tasks of asyncio, which argv[1] makes.
NAMES = (
    PREPARED
    + """
make_task = helpers.make_task


def beside_another_thread():
    make_task()
    return make_task()


def without_a_number():
    task = make_task()
    task.set_name("nothing")
    return task


helpers.make_task = globals()[sys.argv[1]]
import fastloop


async def nothing():
    pass


async def main():
    tasks = [asyncio.create_task(nothing()) for _ in range(5)]
    numbers = [int(task.get_name().removeprefix("Task-")) for task in tasks]
    return [after - before for before, after in zip(numbers, numbers[1:])]


print(json.dumps(fastloop.run(main())))
"""
)


@pytest.mark.parametrize("made", ["make_task", "beside_another_thread", "without_a_number"])
def test_automatic_names_are_in_a_row(made):
    """Also where asyncio's own counter cannot be found."""
    assert run(NAMES, made) == [1] * 4
