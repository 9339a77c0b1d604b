"""Future and Task look, from every side, as asyncio's: identity, introspection, misuse, and base methods unbound."""

import asyncio
import collections.abc
import contextvars
import gc
import inspect
import io
import itertools
import pickle
import subprocess
import sys
import types
import weakref

import pytest

import fastloop

KINDS = {
    "asyncio": (asyncio.SelectorEventLoop, asyncio.Future, asyncio.Task),
    "fastloop": (fastloop.new_event_loop, fastloop.Future, fastloop.Task),
    "fastloop types on asyncio's loop": (asyncio.SelectorEventLoop, fastloop.Future, fastloop.Task),
    "asyncio's types on fastloop": (fastloop.new_event_loop, asyncio.Future, asyncio.Task),
}


class Kind:
    def __init__(self, make_loop, future, task):
        self.loop = make_loop()
        self.problems = []
        self.loop.set_exception_handler(lambda loop, context: self.problems.append(context))
        self.Future = future
        self.Task = task

    def future(self):
        return self.Future(loop=self.loop)

    def task(self, coro, **kwargs):
        return self.Task(coro, loop=self.loop, **kwargs)

    def run(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    def turn(self, count=1):
        for _ in range(count):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()


@pytest.fixture(params=KINDS, ids=list(KINDS))
def kind(request):
    kind = Kind(*KINDS[request.param])
    yield kind
    kind.loop.close()


async def nothing():
    pass


async def wait_for(future):
    return await future


def test_native():
    """The private structs were recognised: otherwise everything below tests the standard types twice."""
    from fastloop import _core

    assert _core.native_tasks
    assert fastloop.Future is not asyncio.Future
    assert fastloop.Task is not asyncio.Task


@pytest.mark.usefixtures("debug_off")
def test_import_leaves_no_tasks_behind():
    """The check of the structs uses standard tasks; none of them may outlive it, or be seen in a debugger."""
    code = (
        "import gc; gc.disable(); import asyncio, fastloop; loop = fastloop.new_event_loop();"
        "loop.run_until_complete(asyncio.sleep(0));"
        "print(sum(isinstance(obj, asyncio.Task) for obj in gc.get_objects())); loop.close()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "0" and run.stderr == ""


def test_subclass_relations():
    assert issubclass(fastloop.Future, asyncio.Future)
    assert issubclass(fastloop.Task, asyncio.Task)
    assert issubclass(fastloop.Task, fastloop.Future)
    assert fastloop.Task.__name__ == "Task"
    assert fastloop.Future.__name__ == "Future"


def test_loop_makes_native_ones():
    loop = fastloop.new_event_loop()
    try:
        assert type(loop.create_future()) is fastloop.Future
        task = loop.create_task(nothing())
        assert type(task) is fastloop.Task
        loop.run_until_complete(task)
    finally:
        loop.close()


def test_switched_off():
    loop = fastloop.new_event_loop()
    try:
        for value, future_type, task_type in (
            (False, asyncio.Future, asyncio.Task),
            (True, fastloop.Future, fastloop.Task),
            (0, asyncio.Future, asyncio.Task),
        ):
            loop._use_native_tasks = value
            assert loop._use_native_tasks is bool(value)
            assert type(loop.create_future()) is future_type
            task = loop.create_task(nothing())
            assert type(task) is task_type
            loop.run_until_complete(task)
    finally:
        loop.close()


def test_standard_types_replaced():
    """nest_asyncio and test-suites replace asyncio.tasks.Task: create_task() then makes what they want."""
    loop = fastloop.new_event_loop()
    saved = asyncio.tasks.Task, asyncio.futures.Future
    asyncio.tasks.Task, asyncio.futures.Future = asyncio.tasks._PyTask, asyncio.futures._PyFuture
    try:
        future = loop.create_future()
        task = loop.create_task(nothing())
        loop.run_until_complete(task)
    finally:
        asyncio.tasks.Task, asyncio.futures.Future = saved
        loop.close()
    assert type(future) is asyncio.futures._PyFuture
    assert type(task) is asyncio.tasks._PyTask


RAW_CALLS = [
    lambda raw: raw.result(),
    lambda raw: raw.exception(),
    lambda raw: raw.get_loop(),
    lambda raw: raw.__await__(),
    lambda raw: iter(raw),
    lambda raw: raw.add_done_callback(print),
    lambda raw: raw.remove_done_callback(print),
    lambda raw: raw.set_result(None),
    lambda raw: raw.set_exception(ValueError()),
    lambda raw: raw.cancelled(),
    lambda raw: raw.done(),
    lambda raw: raw._state,
    lambda raw: raw._callbacks,
]


def outcome(function, *args):
    """What a call returns, or the type and text of what it raises."""
    try:
        return function(*args)
    except Exception as exc:
        return type(exc), str(exc)


def test_uninitialised(kind):
    for ours, standard in ((kind.Future, asyncio.Future), (kind.Task, asyncio.Task)):
        for call in RAW_CALLS:
            assert outcome(call, ours.__new__(ours)) == outcome(call, standard.__new__(standard))
    gc.collect()


def init_twice_works():
    """Up to 3.14 __init__() starts a new life; later it is refused."""
    loop = asyncio.SelectorEventLoop()
    future = asyncio.Future(loop=loop)
    try:
        future.__init__(loop=loop)
    except RuntimeError:
        return False
    finally:
        loop.close()
    return True


def test_init_twice(kind):
    future = kind.future()
    future.set_result(1)
    task = kind.task(nothing())
    kind.run(task)
    if not init_twice_works():
        coro = nothing()
        for again in (lambda: future.__init__(loop=kind.loop), lambda: task.__init__(coro, loop=kind.loop)):
            with pytest.raises(RuntimeError, match="already initialized"):
                again()
        coro.close()
        assert future.result() == 1 and task.done()
        return
    future.__init__(loop=kind.loop)
    assert not future.done()
    kind.loop.call_soon(future.set_result, 2)
    task.__init__(wait_for(future), loop=kind.loop, name="again")
    assert kind.run(task) == 2
    assert task.get_name() == "again"


def test_not_a_coroutine(kind):
    for wrong in (None, 3, nothing, [nothing]):
        with pytest.raises(TypeError, match="a coroutine was expected, got"):
            kind.task(wrong)


def test_generic_alias(kind):
    assert kind.Future[int].__origin__ is kind.Future
    assert kind.Task[int].__args__ == (int,)


def test_weak_references_and_attributes(kind):
    future = kind.future()
    task = kind.task(wait_for(future))
    for obj in (future, task):
        gone = []
        reference = weakref.ref(obj, gone.append)
        obj.mark = "kept"
        assert reference() is obj
        assert obj.mark == "kept"
    future.set_result(None)
    kind.run(task)
    reference = weakref.ref(future)
    del future, task, obj
    gc.collect()
    assert reference() is None


def test_recycled_objects_are_fresh():
    """An object from a free list shows nothing of its former life."""
    loop = fastloop.new_event_loop()
    try:
        for round in range(50):
            future = loop.create_future()
            assert not future.done() and not future._callbacks and not hasattr(future, "mark")
            assert not future._log_traceback and not future._asyncio_future_blocking
            assert future._cancel_message is None and weakref.getweakrefcount(future) == 0
            if round % 5 == 0:
                future.mark = round
            elif round % 5 == 1:
                future.cancel("why")
            elif round % 5 == 2:
                future.set_exception(ValueError())
                future.exception()
            elif round % 5 == 3:
                reference = weakref.ref(future)
                future.set_result(round)
            del future
        del reference
        for round in range(20):
            task = loop.create_task(nothing(), name=f"n{round}")
            assert task.get_name() == f"n{round}" and not task.done() and task.cancelling() == 0
            assert task._fut_waiter is None and not task._must_cancel
            if round % 3 == 0:
                task.cancel("x")
            loop.run_until_complete(asyncio.wait([task]))
            del task
    finally:
        loop.close()


@pytest.mark.usefixtures("debug_off")
def test_looking_in(kind):
    future = kind.future()
    variable = contextvars.ContextVar("variable")
    context = contextvars.copy_context()
    context.run(variable.set, 5)
    task = kind.task(wait_for(future), name="looked at", context=context)
    assert task._fut_waiter is None
    kind.turn()
    assert task._fut_waiter is future
    assert task._state == "PENDING" and future._state == "PENDING"
    assert task._coro is task.get_coro()
    assert task._loop is kind.loop is task.get_loop()
    assert task.get_name() == "looked at"
    task.set_name(7)
    assert task.get_name() == "7"
    ((callback, callback_context),) = future._callbacks
    assert callable(callback) and callback_context is context
    assert callback.__self__ is task
    assert task._callbacks is None
    assert not task._must_cancel and task._log_destroy_pending
    assert repr(task).startswith("<Task pending name='7' coro=<wait_for() running at")
    assert "wait_for=<Future pending cb=[Task.task_wakeup()]>" in repr(task)
    assert len(task.get_stack()) == 1
    printed = io.StringIO()
    task.print_stack(file=printed)
    assert "wait_for" in printed.getvalue()
    if hasattr(task, "get_context"):
        assert task.get_context() is context
    future.set_result(3)
    assert future._result == 3 and future._exception is None
    kind.turn()
    assert task.result() == 3 and task._state == "FINISHED" and task._fut_waiter is None
    assert repr(task).startswith("<Task finished name='7' coro=<wait_for() done, defined at")
    assert repr(task).endswith("result=3>")
    assert task.get_stack() == []


def test_setters(kind):
    future = kind.future()
    with pytest.raises(ValueError, match="_log_traceback can only be set to False"):
        future._log_traceback = True
    future._log_traceback = False
    future._asyncio_future_blocking = True
    assert future._asyncio_future_blocking is True
    future._asyncio_future_blocking = False
    future._cancel_message = "m"
    assert future._cancel_message == "m"
    task = kind.task(nothing())
    for refused in ("_must_cancel", "_coro", "_fut_waiter", "_state", "_result"):
        with pytest.raises(AttributeError):
            setattr(task, refused, 1)
    with pytest.raises(RuntimeError, match="Task does not support set_result operation"):
        task.set_result(1)
    with pytest.raises(RuntimeError, match="Task does not support set_exception operation"):
        task.set_exception(ValueError())
    kind.run(task)


def test_pickle_and_copy_refused(kind):
    with pytest.raises(TypeError):
        pickle.dumps(kind.future())


def test_is_awaitable(kind):
    future = kind.future()
    assert inspect.isawaitable(future) and asyncio.isfuture(future)
    assert isinstance(future, asyncio.Future)
    assert isinstance(future, collections_awaitable())


def collections_awaitable():
    from collections.abc import Awaitable

    return Awaitable


def test_names_are_unique_and_like_asyncio(kind):
    tasks = [kind.task(nothing()) for _ in range(20)]
    tasks.append(kind.task(nothing(), name=None))
    names = [task.get_name() for task in tasks]
    assert len(set(names)) == len(names)
    numbers = [int(name.removeprefix("Task-")) for name in names]
    assert numbers == sorted(numbers)
    kind.run(asyncio.wait(tasks))


@pytest.mark.left_out(sys.version_info < (3, 12), reason="3.11 keeps its counter in a static variable")
def test_names_are_numbered_together_with_standard_tasks():
    loop = fastloop.new_event_loop()
    try:
        tasks = [(asyncio.Task if i % 2 else fastloop.Task)(nothing(), loop=loop) for i in range(10)]
        numbers = [int(task.get_name().removeprefix("Task-")) for task in tasks]
        assert numbers == list(range(numbers[0], numbers[0] + 10))
        loop.run_until_complete(asyncio.wait(tasks))
    finally:
        loop.close()


# ---- no method of the base types, bound or unbound, may crash on our objects ----


def objects_in_every_state(kind):
    """(description, object) for both types: raw, pending, started, waiting, cancelled, finished, failed, recycled."""
    loop = kind.loop
    yield "raw future", kind.Future.__new__(kind.Future)
    yield "pending future", kind.future()
    with_callbacks = kind.future()
    for _ in range(3):
        with_callbacks.add_done_callback(lambda _: None)
    yield "future with callbacks", with_callbacks
    cancelled = kind.future()
    cancelled.cancel("message")
    yield "cancelled future", cancelled
    finished = kind.future()
    finished.set_result([])
    yield "finished future", finished
    failed = kind.future()
    failed.set_exception(ValueError("failed"))
    yield "failed future", failed
    yield "raw task", kind.Task.__new__(kind.Task)
    yield "new task", kind.task(nothing())
    waiting = kind.task(wait_for(kind.future()))
    kind.turn()
    yield "waiting task", waiting
    cancelling = kind.task(wait_for(kind.future()))
    kind.turn()
    cancelling.cancel()
    yield "task being cancelled", cancelling
    must_cancel = kind.task(nothing())
    must_cancel.cancel("early")
    yield "new task to be cancelled", must_cancel
    done = kind.task(nothing())
    loop.run_until_complete(done)
    yield "finished task", done
    broken = kind.task(wait_for(failed))
    loop.run_until_complete(asyncio.wait([broken]))
    yield "failed task", broken


ARGUMENTS = [(), (None,), (1,), (print,), (ValueError("x"),), ("name", "value")]


# On 3.11 Future.__init__() without a loop has the policy make one, which is then the thread's.
@pytest.mark.expects("fds")
@pytest.mark.parametrize("make_loop", [fastloop.new_event_loop, asyncio.SelectorEventLoop])
@pytest.mark.parametrize("base", [asyncio.Future, asyncio.Task], ids=["Future", "Task"])
def test_every_method_unbound(make_loop, base):
    """Every attribute of the base types, called, read, set and deleted on our objects in every state: an exception or
    an answer, never a crash."""
    kind = Kind(make_loop, fastloop.Future, fastloop.Task)
    for name in sorted(set(dir(asyncio.Task)) | set(dir(asyncio.Future))):
        attribute = getattr(base, name, None)
        static = inspect.getattr_static(base, name, None)
        if attribute is None or name in ("__class__", "__new__", "__subclasshook__", "__init_subclass__"):
            continue
        for (_, obj), arguments in itertools.product(objects_in_every_state(kind), ARGUMENTS):
            quiet(attribute, obj, *arguments)
            quiet(getattr(type(obj), name, attribute), obj, *arguments)
            if hasattr(static, "__set__"):
                for value in (None, True, False, 5, "text", obj):
                    quiet(static.__get__, obj)
                    quiet(static.__set__, obj, value)
                quiet(static.__delete__, obj)
            quiet(repr, obj)
    kind.turn(4)
    gc.collect()
    kind.loop.close()


def quiet(function, *args):
    """Call it; whatever it raises is fine."""
    try:
        result = function(*args)
        if inspect.isgenerator(result) or hasattr(result, "throw"):
            result.close()
    except (Exception, asyncio.CancelledError):
        pass


def test_unbound_base_methods_answer(kind):
    future = kind.future()
    task = kind.task(wait_for(future), name="n")
    kind.turn()
    assert asyncio.Task.get_coro(task) is task.get_coro()
    assert asyncio.Task.get_name(task) == "n"
    assert asyncio.Future.done(task) is False
    asyncio.Future.set_result(future, 8)
    kind.turn()
    assert asyncio.Future.result(task) == 8


def test_unbound_cancel_and_exception_wake(kind):
    for finish, expected in (
        (lambda future: asyncio.Future.cancel(future, "why"), asyncio.CancelledError),
        (lambda future: asyncio.Future.set_exception(future, KeyError("k")), KeyError),
    ):
        future = kind.future()
        task = kind.task(wait_for(future))
        kind.turn()
        finish(future)
        with pytest.raises(expected):
            kind.run(task)


def test_base_init_unbound(kind):
    """A base's __init__ on our object drives it as the base would."""
    task = kind.Task.__new__(kind.Task)
    asyncio.Task.__init__(task, wait_for(asyncio.sleep(0, 4, **{})), loop=kind.loop)
    assert kind.run(task) == 4


def test_methods_show_their_parameters_and_a_docstring(kind):
    """Also where ours stand before asyncio's."""
    for ours, stock in ((kind.Future, asyncio.Future), (kind.Task, asyncio.Task)):
        for name in dir(stock):
            method = getattr(stock, name)
            if inspect.ismethoddescriptor(method) and not name.startswith("__"):
                assert getattr(ours, name).__text_signature__ == method.__text_signature__, name
                assert getattr(ours, name).__doc__ or not method.__doc__, name


def test_signature_errors(kind):
    with pytest.raises(TypeError):
        kind.Task()
    coro = nothing()
    with pytest.raises(TypeError):
        kind.Task(coro, kind.loop)
    with pytest.raises(TypeError):
        kind.Task(coro, loop=kind.loop, unknown=1)
    with pytest.raises(TypeError):
        kind.loop.create_task(coro, unknown=1)
    with pytest.raises(TypeError):
        kind.Future(kind.loop)
    coro.close()


def wrap_as_attribute(monkeypatch, wrapper):
    monkeypatch.setattr(asyncio.BaseEventLoop, "create_task", wrapper)


def wrap_in_the_code(monkeypatch, wrapper):
    """As ddtrace does: the function stays, and its code calls the wrapper, a constant of the code."""

    def template(self, coro, **kwargs):
        call = "the wrapper"
        return call(self, coro, **kwargs)

    code = template.__code__
    constants = tuple(wrapper if constant == "the wrapper" else constant for constant in code.co_consts)
    monkeypatch.setattr(asyncio.BaseEventLoop.create_task, "__code__", code.replace(co_consts=constants))


def wrap_in_the_code_by_a_method(monkeypatch, wrapper):
    wrap_in_the_code(monkeypatch, types.MethodType(lambda tracer, *args, **kwargs: wrapper(*args, **kwargs), object()))


def wrap_in_the_code_by_a_builtin(monkeypatch, wrapper):
    """Its first constant is a function in C, which is told what to call by the second."""

    def template(self, coro, **kwargs):
        run = "run"
        return run("the wrapper", self, coro, **kwargs)

    code = template.__code__
    given = {"run": contextvars.Context().run, "the wrapper": wrapper}
    constants = tuple(given.get(constant, constant) for constant in code.co_consts)
    monkeypatch.setattr(asyncio.BaseEventLoop.create_task, "__code__", code.replace(co_consts=constants))


@pytest.mark.parametrize(
    "wrap", [wrap_as_attribute, wrap_in_the_code, wrap_in_the_code_by_a_method, wrap_in_the_code_by_a_builtin]
)
def test_wrapped_create_task_of_the_base(monkeypatch, wrap):
    """Tracers wrap BaseEventLoop.create_task(): they see each task, as on the standard loop."""
    method = asyncio.BaseEventLoop.create_task
    original = types.FunctionType(method.__code__, method.__globals__)
    original.__kwdefaults__ = method.__kwdefaults__
    seen = []

    def wrapper(self, coro, **kwargs):
        seen.append(coro.__name__)
        return original(self, coro, **kwargs)

    loop = fastloop.new_event_loop()
    try:
        for wrapped in (False, True, False):
            with monkeypatch.context() as patch:
                if wrapped:
                    wrap(patch, wrapper)
                loop.run_until_complete(nothing())
        assert seen == ["nothing"]
        assert type(loop.create_task(nothing())) is fastloop.Task
        loop.run_until_complete(nothing())
    finally:
        loop.close()


def test_standard_ones_need_no_sorting_of_arguments(monkeypatch):
    """The keyword that they give to call_soon() is a string of their own; on the usual way it must do."""
    from fastloop import _arguments

    def sort(*args, **kwargs):
        raise AssertionError("sorted")

    for name in ("call_soon", "call_soon_threadsafe"):
        monkeypatch.setattr(_arguments, name, sort)
    loop = fastloop.new_event_loop()
    try:
        future = asyncio.Future(loop=loop)
        task = asyncio.Task(wait_for(future), loop=loop)
        loop.call_soon(future.set_result, 3)
        future.add_done_callback(lambda _: None)
        assert loop.run_until_complete(task) == 3
    finally:
        loop.close()


# ---- what rarely happens between tasks and futures ----


class Yields:
    """Awaits what it was made with, as it is."""

    def __init__(self, value):
        self.value = value

    def __await__(self):
        yield self.value


class FutureLike:
    """What a task may wait for although it is no asyncio.Future."""

    def __init__(self, loop, blocking):
        self.loop = loop
        self._asyncio_future_blocking = blocking

    def get_loop(self):
        return self.loop


async def wait_for_value(value):
    await Yields(value)


def test_future_likes_that_cannot_be_waited_for(kind):
    other = asyncio.SelectorEventLoop()
    other.close()
    with pytest.raises(RuntimeError, match="attached to a different loop"):
        kind.run(kind.task(wait_for_value(FutureLike(other, True))))
    with pytest.raises(RuntimeError, match="yield was used instead of yield from in task"):
        kind.run(kind.task(wait_for_value(FutureLike(kind.loop, False))))


def test_waiting_for_a_future_that_is_done(kind):
    future = kind.future()
    future.set_result("done")
    future._asyncio_future_blocking = True
    task = kind.task(wait_for_value(future))
    kind.turn()
    assert not task.done() and not future._asyncio_future_blocking
    kind.turn()
    assert task.done() and task.result() is None


def test_a_future_that_starts_anew_before_its_task_wakes(kind):
    if not init_twice_works():
        pytest.skip("refused on this Python")
    future = kind.future()
    task = kind.task(wait_for(future))
    kind.turn()
    future.set_result("lost")
    future.__init__(loop=kind.loop)
    with pytest.raises(asyncio.InvalidStateError, match="Result is not set."):
        kind.run(task)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_callbacks_that_cannot_be_scheduled(kind, count):
    """call_soon() of a subclass may refuse: the error reaches who completes the future."""
    future = kind.future()
    for number in range(count):
        future.add_done_callback(lambda future, number=number: seen.append(number))
    seen, asked = [], []

    def refuse(callback, *args, context=None):
        asked.append(callback)
        raise KeyError(len(asked))

    kind.loop.call_soon = refuse
    with pytest.raises(KeyError, match="1"):
        future.set_result(None)
    del kind.loop.call_soon
    assert future.done() and len(asked) == 1
    kind.turn()
    assert seen == []


@pytest.mark.parametrize("method", ["send", "throw"])
def test_a_coroutine_that_ends_by_a_subclass_of_stop_iteration(kind, method):
    class End(StopIteration):
        pass

    class Coroutine(collections.abc.Coroutine):
        def __await__(self):
            return self

        def send(self, value):
            if method == "send":
                raise End("sent")

        def throw(self, *exc):
            raise End("thrown")

        def close(self):
            pass

    task = kind.task(Coroutine())
    if method == "throw":
        kind.turn()
        task.cancel()
    assert kind.run(task) == ("sent" if method == "send" else "thrown")


def test_names_that_are_no_text(kind):
    class Name:
        def __str__(self):
            return "mine"

    class Nameless:
        def __str__(self):
            raise KeyError("none")

    task = kind.task(nothing(), name=Name())
    assert task.get_name() == "mine"
    kind.run(task)
    coroutine = nothing()
    with pytest.raises(KeyError, match="none"):
        kind.task(coroutine, name=Nameless())
    coroutine.close()
    kind.problems.clear()


@pytest.mark.left_out(not hasattr(asyncio, "eager_task_factory"), reason="eager tasks came with 3.12")
def test_eager_start(kind):
    """Where the loop runs; else it is a task like any other."""
    seen = []

    async def note(value):
        seen.append((value, asyncio.current_task().get_name()))
        return value

    async def main():
        assert kind.task(note(1), name="eager", eager_start=True).result() == 1
        task = kind.task(note(2), name="later", eager_start=False)
        assert not task.done()
        assert await task == 2
        assert await kind.task(wait_for(kind.task(note(3), name="child")), eager_start=True) == 3

    task = kind.task(main(), eager_start=True)
    assert not task.done()
    kind.run(task)
    assert seen == [(1, "eager"), (2, "later"), (3, "child")]


@pytest.mark.left_out(not hasattr(asyncio, "eager_task_factory"), reason="eager tasks came with 3.12")
@pytest.mark.parametrize("answer", [False, 1, None, KeyError("unknown")], ids=repr)
def test_eager_start_asks_the_loop_whether_it_runs(kind, answer):
    """Whether that is True itself."""

    def is_running():
        if isinstance(answer, Exception):
            raise answer
        return answer

    coroutine = nothing()

    async def main():
        kind.loop.is_running = is_running
        try:
            task = kind.task(coroutine, eager_start=True)
        finally:
            del kind.loop.is_running
        assert not task.done()
        await task

    if isinstance(answer, Exception):
        with pytest.raises(KeyError, match="unknown"):
            kind.run(main())
        coroutine.close()
        gc.collect()
        kind.problems.clear()
    else:
        kind.run(main())


def test_arguments_of_cancel(kind):
    future = kind.future()
    for call in (
        lambda: future.cancel("a", "b"),
        lambda: future.cancel(nonsense=1),
        lambda: future.cancel("a", msg="b"),
        lambda: future.cancel(msg="a", nonsense=1),
    ):
        with pytest.raises(TypeError):
            call()
    assert not future.cancelled()
    assert future.cancel(msg="why") and not future.cancel()


def test_tasks_are_listed_while_one_is_freed(kind):
    """Out of the callback of a weak reference, when the task is no more."""

    class Mine(kind.Task):
        def __del__(self):
            # Not that of the base, which would report it.
            pass

    seen = []
    coroutine = nothing()
    reference = weakref.ref(Mine(coroutine, loop=kind.loop), lambda _: seen.append(asyncio.all_tasks(kind.loop)))
    assert asyncio.all_tasks(kind.loop) == {reference()}
    # Its first step is forgotten.
    kind.loop.close()
    coroutine.close()
    assert reference() is None
    assert seen == [set()]
