"""What random calls do to connections is the same on both loops, from outside and from inside every callback.

As in test_scheduling.py, both loops take the same steps. A step is a few actions, all at once, of the program, of the
peer or set down for a callback of the protocol; then both loops run until nothing changes any more, and the stories
must be the same: the callbacks of each protocol in order, what data they brought, what each action answered or raised,
what reached the exception handler, and what the peer has received.

The second half is systematic: every action from every callback.
"""

import asyncio
import gc
import os
import socket
import time

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from helpers import FORGETS_A_PAUSE, new_loop, normalised

EXAMPLES = int(os.environ.get("FASTLOOP_EXAMPLES", "40"))
PHASES = (Phase.generate, Phase.shrink)
#: More than a socket pair holds, so that the transport must wait for its peer.
BIG = 2**20


class Broken(Exception):
    pass


class Tale:
    """A protocol that tells what happens to it; `script` has the actions for each callback, each done once."""

    def __init__(self, world, script=None):
        self.world = world
        self.script = dict(script or {})
        self.transport = None
        self.answer = None

    def tell(self, name, *facts):
        self.world.note(name, *facts)
        for action in self.script.pop(name, ()):
            self.world.perform(action, self.transport)

    def connection_made(self, transport):
        self.transport = transport
        self.tell("connection_made")

    def eof_received(self):
        self.tell("eof_received")
        return self.answer

    def pause_writing(self):
        self.tell("pause_writing")

    def resume_writing(self):
        self.tell("resume_writing")

    def connection_lost(self, exc):
        self.world.lost = True
        self.world.broken_off |= exc is not None
        self.tell("connection_lost", type(exc).__name__, normalised(exc))


class Plain(Tale, asyncio.Protocol):
    def data_received(self, data):
        self.world.received(data)
        self.tell("data_received")


class Buffered(Tale, asyncio.BufferedProtocol):
    def get_buffer(self, sizehint):
        self.buffer = bytearray(5000)
        for action in self.script.pop("get_buffer", ()):
            self.world.perform(action, self.transport)
        return self.buffer

    def buffer_updated(self, count):
        self.world.received(self.buffer[:count])
        self.tell("buffer_updated")


class World:
    """One loop with one connection, and its history."""

    def __init__(self, name, debug=False):
        self.loop = new_loop(name)
        self.loop.set_debug(debug)
        self.loop.set_exception_handler(self.report)
        self.history = []
        # Not among the other events: fastloop brings data before what is ready, the standard loop after it.
        self.scheduled = []
        self.peer_got = bytearray()
        self.written = bytearray()
        self.broken_off = False
        self.lost = False

    def connect(self, kind, script, answer=None):
        near, self.peer = socket.socketpair()
        near.setblocking(False)
        self.peer.setblocking(False)
        self.protocol = kind(self, script)
        self.protocol.answer = answer
        self.transport = self.loop._make_socket_transport(near, self.protocol)
        self.settle()

    def note(self, *event):
        self.history.append(event)

    def received(self, data):
        """Data may come in other pieces."""
        if self.history and self.history[-1][0] == "data":
            self.history[-1] = ("data", self.history[-1][1] + bytes(data))
        else:
            self.note("data", bytes(data))

    def report(self, loop, context):
        exc = context.get("exception")
        self.broken_off = True
        message = context["message"].split("(")[0].replace("_SelectorSocketTransport", "SocketTransport")
        self.note("reported", message, type(exc).__name__, normalised(exc))

    def perform(self, action, transport=None):
        name, a = action
        try:
            result = ACTIONS[name](self, self.transport if transport is None else transport, a)
        except (Broken, SystemExit, KeyboardInterrupt):
            self.note(name, "raises")
            raise
        except Exception as exc:
            self.note(name, type(exc).__name__, normalised(exc))
        else:
            self.note(name, result if result is None or isinstance(result, (bool, int, str)) else type(result).__name__)

    def do(self, action):
        """Perform it outside of every callback."""
        try:
            self.perform(action)
        except (Broken, SystemExit, KeyboardInterrupt) as exc:
            self.note("left by", type(exc).__name__)

    def settle(self):
        """Run until nothing changes any more."""
        quiet = 0
        while quiet < 4:
            before = len(self.history), self.transport.get_write_buffer_size(), len(self.loop._ready)
            try:
                self.loop.call_soon(self.loop.stop)
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as exc:
                self.note("left by", type(exc).__name__)
            after = len(self.history), self.transport.get_write_buffer_size(), len(self.loop._ready)
            quiet = quiet + 1 if before == after else 0
            # Longer than fastloop leaves out polls.
            time.sleep(0.00003)

    def peer_reads(self):
        """The peer reads all there is, and all that then follows."""
        while True:
            try:
                data = self.peer.recv(BIG)
            except BlockingIOError:
                before = len(self.peer_got)
                self.settle()
                try:
                    self.peer_got += self.peer.recv(BIG)
                except (BlockingIOError, OSError):
                    pass
                if len(self.peer_got) == before:
                    break
            except OSError as exc:
                self.note("peer's read", type(exc).__name__)
                break
            else:
                if not data:
                    self.note("peer's read", "end")
                    break
                self.peer_got += data
        # How much of it the kernel had taken when a connection was broken off is chance.
        self.note("peer has", "part" if self.broken_off else len(self.peer_got))
        self.note("peer has what was sent", self.written.startswith(self.peer_got))

    def finish(self):
        self.protocol.script.clear()
        self.peer_reads()
        self.note("closing", self.transport.is_closing())
        self.broken_off = True
        try:
            self.transport.abort()
        except AttributeError:
            # The stock loop's abort() trips over a transport that close() has emptied and closed.
            pass
        self.settle()
        self.peer_reads()
        self.peer.close()
        self.loop.close()


# ---------------------------------------------------------------- actions: (world, transport, number)


def sent(world, method, data):
    """Send it; what is refused has not been written, and after what is thrown away nothing comes."""
    if world.lost:
        # The stock loop still writes, and pauses the protocol or trips over what it has let go of.
        return None
    before = len(world.written)
    world.written += b"".join(data) if type(data) in (list, tuple) else data
    try:
        return method(data)
    except Exception:
        del world.written[before:]
        raise


def write(world, transport, a):
    return sent(world, transport.write, (b"", b"x", b"some data" * a, bytearray(b"array"), memoryview(b"view"))[a % 5])


def write_much(world, transport, a):
    return sent(world, transport.write, bytes([97 + a]) * BIG)


def write_nothing_of_the_kind(world, transport, a):
    return transport.write((None, "text", 5, [b"x"])[a % 4])


def writelines(world, transport, a):
    if transport.is_closing():
        # On some versions a TypeError of the standard transport.
        return None
    return sent(world, transport.writelines, ([b"one", b"two"], [], (b"x",), [b"a", bytearray(b"b")])[a % 4])


def write_eof(world, transport, a):
    return transport.write_eof()


def close(world, transport, a):
    return transport.close()


def abort(world, transport, a):
    if world.history and transport.is_closing():
        # The stock loop's abort() trips over a transport that close() has emptied and closed.
        return None
    world.broken_off = True
    return transport.abort()


def pause_reading(world, transport, a):
    return transport.pause_reading()


def resume_reading(world, transport, a):
    return transport.resume_reading()


def ask(world, transport, a):
    questions = (transport.is_reading, transport.is_closing, transport.can_write_eof)
    return questions[a % 3]()


def set_protocol(world, transport, a):
    protocol = (Plain, Buffered)[a % 2](world, world.protocol.script)
    protocol.transport = transport
    protocol.answer = (None, True)[a // 2 % 2]
    world.protocol = protocol
    return transport.set_protocol(protocol)


def set_no_protocol(world, transport, a):
    return transport.get_protocol() is world.protocol


def set_limits(world, transport, a):
    high, low = ((None, None), (0, 0), (10, 20), (-1, None), (100_000, 1), (2 * BIG, None), (None, 5), (0, None))[a]
    return transport.set_write_buffer_limits(high=high, low=low)


def get_limits(world, transport, a):
    return str(transport.get_write_buffer_limits())


def get_extra_info(world, transport, a):
    names = ("socket", "sockname", "peername", "nothing", "sslcontext")
    return type(transport.get_extra_info(names[a % 5])).__name__


def add_reader(world, transport, a):
    if transport.is_closing():
        return None
    fd = transport.get_extra_info("socket").fileno()
    call = (world.loop.add_reader, world.loop.add_writer)[a % 2]
    try:
        call(fd, int)
    except RuntimeError as exc:
        return type(exc).__name__


def remove_reader(world, transport, a):
    if transport.is_closing():
        return None
    fd = transport.get_extra_info("socket").fileno()
    try:
        return (world.loop.remove_reader, world.loop.remove_writer)[a % 2](fd)
    except RuntimeError as exc:
        return type(exc).__name__


def stop_loop(world, transport, a):
    return world.loop.stop()


def close_loop(world, transport, a):
    return world.loop.close() if world.loop.is_running() else None


def run_loop(world, transport, a):
    if not world.loop.is_running():
        return None
    # Not run_forever(): in Python 3.13.0, refusing makes the standard loop forget that it runs.
    return world.loop.run_until_complete(world.loop.create_future())


def ask_loop(world, transport, a):
    loop = world.loop
    return (loop.is_running, loop.is_closed, loop.get_debug)[a % 3]()


def make_things(world, transport, a):
    loop = world.loop
    made = (
        lambda: loop.call_soon(world.scheduled.append, "soon"),
        lambda: loop.call_later(0, world.scheduled.append, "later"),
        lambda: loop.call_later(1000, world.scheduled.append, "much later").cancel(),
        lambda: loop.create_future().cancel(),
        lambda: loop.create_task(asyncio.sleep(0)),
        lambda: loop.call_soon_threadsafe(world.scheduled.append, "soon, from any thread"),
        lambda: loop.call_exception_handler({"message": "own"}),
        lambda: loop.set_exception_handler(world.report),
    )[a]()
    return type(made).__name__ in ("NoneType", "bool")


def collect(world, transport, a):
    return gc.collect() < 0


def raise_error(world, transport, a):
    raise Broken("own")


def leave(world, transport, a):
    raise (SystemExit, KeyboardInterrupt)[a % 2]("leaving")


def peer_sends(world, transport, a):
    return world.peer.send(b"from the peer" * (a + 1))


def peer_reads(world, transport, a):
    return world.peer_reads() if not world.loop.is_running() else None


def peer_shuts_down(world, transport, a):
    return world.peer.shutdown(socket.SHUT_WR)


def peer_closes(world, transport, a):
    return world.peer.close()


OUTSIDE = {f.__name__: f for f in (peer_sends, peer_reads, peer_shuts_down, peer_closes)}
INSIDE = {
    function.__name__: function
    for function in (
        *(write, write_much, write_nothing_of_the_kind, writelines, write_eof, close, abort, pause_reading),
        *(resume_reading, ask, set_protocol, set_no_protocol, set_limits, get_limits, get_extra_info, add_reader),
        *(remove_reader, stop_loop, close_loop, run_loop, ask_loop, make_things),
    )
}
ENDS = {function.__name__: function for function in (raise_error, leave)}
# Slow, and of use at each place once.
RARE = {collect.__name__: collect}
ACTIONS = {**OUTSIDE, **INSIDE, **ENDS, **RARE}
CALLBACKS = [
    *("connection_made", "data_received", "buffer_updated", "eof_received"),
    *("pause_writing", "resume_writing", "connection_lost"),
]


# ---------------------------------------------------------------- the comparison


#: Closed in resume_writing(), the stock loop's transport calls its own end twice, and from then on goes its own way.
STOCK_TRIPS = [
    ("AttributeError", f"'NoneType' object has no attribute '{name}'") for name in ("close", "call_exception_handler")
] + [("AttributeError", "'NoneType' object has no attribute 'connection_lost'")]


def difference(stock, ours):
    """Where two histories differ, in words; None if they do not."""
    if stock == ours or any(event[0] == "reported" and event[2:] in STOCK_TRIPS for event in stock):
        return None
    where = next((i for i, pair in enumerate(zip(stock, ours)) if pair[0] != pair[1]), min(len(stock), len(ours)))
    before = "\n".join(str(event)[:200] for event in stock[max(0, where - 12) : where])
    return f"after\n{before}\nstock: {str(stock[where : where + 6])[:600]}\nours:  {str(ours[where : where + 6])[:600]}"


small = st.integers(0, 7)


def actions(names):
    return st.tuples(st.sampled_from(list(names)), small)


scripts = st.dictionaries(
    st.sampled_from(CALLBACKS), st.lists(actions([*INSIDE, *ENDS, "peer_sends"]), max_size=3).map(tuple), max_size=4
)


class Connections(RuleBasedStateMachine):
    """A connection on each of two loops, which take the same steps."""

    worlds = ()

    @initialize(kind=st.sampled_from([Plain, Buffered]), script=scripts, answer=st.booleans(), debug=st.booleans())
    def start(self, kind, script, answer, debug):
        self.worlds = [World(name, debug) for name in ("stock", "fastloop")]
        for world in self.worlds:
            world.connect(kind, script, answer)

    @rule(burst=st.lists(actions([*INSIDE, *OUTSIDE]), min_size=1, max_size=3))
    def act(self, burst):
        for world in self.worlds:
            for action in burst:
                world.do(action)
            world.settle()

    @rule(burst=st.lists(actions([*INSIDE, *ENDS, "peer_sends"]), min_size=1, max_size=3))
    def act_in_a_callback(self, burst):
        def run(world):
            for action in burst:
                world.perform(action)

        for world in self.worlds:
            world.loop.call_soon(run, world)
            world.settle()

    @rule(script=scripts)
    def set_script(self, script):
        for world in self.worlds:
            world.protocol.script.update(script)

    @invariant()
    def one_history(self):
        if self.worlds and (problem := difference(*(world.history + world.scheduled for world in self.worlds))):
            pytest.fail(problem)

    def teardown(self):
        for world in self.worlds:
            world.finish()
        self.one_history()
        self.worlds = ()


@pytest.mark.timeout(100 + EXAMPLES // 4, method="signal")
@pytest.mark.fastloop_only(reason="compares with the stock loop")
def test_one_history(loop_name, guard):
    run_state_machine_as_test(
        Connections,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=12,
            deadline=None,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
            database=None,
            derandomize=EXAMPLES < 1000,
        ),
    )
    guard.log.take()


# ---------------------------------------------------------------- every action from every callback


def life(name, debug, callback, actions):
    """The whole life of a connection whose `callback` does `actions`."""
    world = World(name, debug)
    try:
        kind = Buffered if callback in ("get_buffer", "buffer_updated") else Plain
        world.connect(kind, {callback: actions}, answer=True)
        for step in ("peer_sends", "write_much", "peer_reads", "peer_shuts_down", "close"):
            world.do((step, 0))
            world.settle()
    finally:
        world.finish()
    return world.history + world.scheduled


FOLLOWED_BY = {
    "alone": (),
    "and write": (("write", 2),),
    "and set_protocol": (("set_protocol", 0), ("set_protocol", 1)),
    "and close": (("close", 0), ("write", 2)),
    "and abort": (("abort", 0), ("pause_reading", 0), ("resume_reading", 0)),
    "and stop": (("stop_loop", 0), ("close_loop", 0)),
    "and raise": (("raise_error", 0),),
    "and exit": (("leave", 0),),
}


@pytest.mark.fastloop_only(reason="compares with the stock loop")
@pytest.mark.parametrize("after", FOLLOWED_BY)
# Not in the others: the stock loop itself does not come to rest after an exit in resume_writing().
@pytest.mark.parametrize("callback", CALLBACKS[:5])
def test_every_action_from_every_callback(loop_name, guard, callback, after):
    problems = []
    for action in [*INSIDE, *ENDS, *RARE]:
        if FORGETS_A_PAUSE and (action, callback) == ("pause_reading", "connection_made"):
            continue
        for number in (0,) if FOLLOWED_BY[after] else (0, 5):
            actions = ((action, number), *FOLLOWED_BY[after])
            stock, ours = (life(name, number % 2, callback, actions) for name in ("stock", "fastloop"))
            assert any(event[0] == action for event in ours), "the callback has not come"
            if problem := difference(stock, ours):
                problems.append(f"{actions}: {problem}")
    assert not problems, f"{len(problems)} differ, the first:\n{problems[0]}"
    guard.log.take()
