"""The ground of the whole suite: which loops a test runs on, and what it may leave behind.

Every test that asks for `loop_factory`, `loop` or `run` is run once on the stock selector loop and once on
fastloop (`--loop stock` or `--loop fastloop` picks one). An autouse fixture fails each test that leaves a
descriptor, thread, child process, open loop, pending task, waiting callback or unreported exception behind;
what a test brings about on purpose it takes from `guard` (see helpers.Guard).
"""

import asyncio
import contextvars
import faulthandler
import socket
import ssl
import sys
import time
import weakref

import pytest

import helpers

#: Seconds that one test may take: pytest-timeout interrupts it.
TIMEOUT = 100
#: When even that does not reach the interpreter (a loop that is stuck in C), faulthandler prints every stack and ends
#: the process after so many seconds. Starting its thread is slow, so it is wound up only now and then.
WATCHDOG = 360
LOOPS = ("stock", "fastloop")
wound_up = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--loop", choices=(*LOOPS, "both"), default="both", help="the event loops to run on")


def pytest_configure(config):
    for line in (
        "fastloop_only(reason): a promise that the stock loop does not keep, or a direct comparison with it",
        "left_out(condition, reason): not collected where the condition holds, since there is nothing to test: another "
        "version of Python, a part that is switched off; it may be a function of the parameters of the test",
        "expects(*kinds): the test leaves 'fds', 'threads' or 'children' behind on purpose",
    ):
        config.addinivalue_line("markers", line)
    for line in (
        "error::ResourceWarning",
        "error::RuntimeWarning",
        "error:.*:DeprecationWarning:fastloop",
        "error::pytest.PytestUnraisableExceptionWarning",
        "error::pytest.PytestUnhandledThreadExceptionWarning",
    ):
        config.addinivalue_line("filterwarnings", line)
    if not config.pluginmanager.hasplugin("timeout"):
        raise pytest.UsageError("the tests need the package pytest-timeout")


def is_left_out(item, chosen):
    if chosen == "stock" and item.get_closest_marker("fastloop_only"):
        return True
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    conditions = [mark.args[0] for mark in item.iter_markers("left_out")]
    return any(condition(**parameters) if callable(condition) else condition for condition in conditions)


def pytest_collection_modifyitems(config, items):
    chosen = config.getoption("--loop")
    left_out = {item for item in items if is_left_out(item, chosen)}
    if left_out:
        config.hook.pytest_deselected(items=[*left_out])
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT, method="signal"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run it in an empty context, as programs begin; what pytest imports leaves a variable in that of the thread."""
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    contextvars.Context().run(pyfuncitem.obj, **arguments)
    return True


def pytest_unconfigure(config):
    faulthandler.cancel_dump_traceback_later()


def pytest_generate_tests(metafunc):
    if "loop_name" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--loop")
        names = LOOPS if chosen == "both" else (chosen,)
        if metafunc.definition.get_closest_marker("fastloop_only"):
            names = tuple(name for name in names if name != "stock")
        metafunc.parametrize("loop_name", names, scope="session")


def makes_loops(item):
    return "loop_name" in getattr(item, "fixturenames", ()) or hasattr(getattr(item, "module", None), "fastloop")


@pytest.fixture(scope="session", autouse=True)
def warmed_up(request):
    """Open once what Python and fastloop keep for the life of the process, so that no test is blamed for it."""
    wanted = request.config.getoption("--loop")
    for name in LOOPS if wanted == "both" else (wanted,):
        if any(makes_loops(item) for item in request.session.items):
            loop = helpers.new_loop(name)
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
    ssl.create_default_context()
    socket.getaddrinfo("localhost", 1)
    helpers.keep_for_the_session()


def watchdog_seconds(item):
    """The WATCHDOG must not end a test that pytest-timeout still gives its time, as `make interpreters` does."""
    limit = item.get_closest_marker("timeout")
    return max(WATCHDOG, limit.args[0] + TIMEOUT if limit.args else 0)


@pytest.fixture(autouse=True)
def guard(request):
    """Fail the test when it leaves something behind; see helpers.Guard for what may be declared."""
    patience = watchdog_seconds(request.node)
    if time.monotonic() - request.config.stash.get(wound_up, -WATCHDOG) > WATCHDOG / 6 or patience > WATCHDOG:
        faulthandler.dump_traceback_later(patience, exit=True, file=sys.__stderr__)
        # The next test must not go on with the time of one that is allowed long.
        request.config.stash[wound_up] = time.monotonic() if patience == WATCHDOG else -WATCHDOG
    allowed = {kind for mark in request.node.iter_markers("expects") for kind in mark.args}
    with helpers.Guard(allowed) as watch:
        yield watch
    if problems := watch.leftovers():
        pytest.fail("left behind:\n  " + "\n  ".join(problems), pytrace=False)


@pytest.fixture
def debug_off(monkeypatch):
    """For what debug mode refuses or prints: loops are made without, however Python was started; children too."""
    monkeypatch.setattr(asyncio.coroutines, "_is_debug_mode", lambda: False)
    for name in ("PYTHONASYNCIODEBUG", "PYTHONDEVMODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def loop_factory(loop_name, guard):
    """A function that makes loops of the kind under test; each of them must be closed or gone at the end."""

    def factory():
        loop = helpers.new_loop(loop_name)
        guard.loops.append(weakref.ref(loop))
        return loop

    return factory


@pytest.fixture
def loop(loop_factory, guard):
    """An open loop, which must be idle when the test ends; it is closed then."""
    loop = loop_factory()
    yield loop
    if not loop.is_closed():
        guard.problems += helpers.settle(loop)
        loop.close()


@pytest.fixture
def run(loop):
    """Run a coroutine on `loop` and return its result."""
    return loop.run_until_complete


@pytest.fixture
def contexts(loop, guard):
    """The contexts that `loop` gave to its exception handler; what the test does not take() fails it."""
    found = helpers.Taken()
    loop.set_exception_handler(lambda _loop, context: found.append(context))
    yield found
    guard.problems += [f"exception handler called: {context}" for context in found]


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """TLS contexts of one session: .client and .server trust each other, .untrusted is signed by nobody known."""
    made = helpers.Authority(tmp_path_factory.mktemp("tls"))
    helpers.keep_for_the_session()
    return made


@pytest.fixture
def python(loop_name, tmp_path, guard):
    """Run Python source in a child process whose `new_event_loop` makes loops of the kind under test."""
    child_python = helpers.ChildPython(loop_name, tmp_path)
    yield child_python
    child_python.finish()
