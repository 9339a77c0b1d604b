"""call_later and call_at: never early, in order, exact, cancellable."""

import asyncio
import math
import random
import threading
import time
import weakref

import pytest


def run_until(loop, predicate):
    async def main():
        while not predicate():
            await asyncio.sleep(0.001)

    loop.run_until_complete(main())


# ---------------------------------------------------------------- when they fire


@pytest.mark.parametrize("delay", [0, 1e-9, 1e-6, 0.0004, 0.001, 0.0015, 0.01, 0.0501])
def test_a_timer_never_fires_early(loop, delay):
    early = []
    for _ in range(10):
        timer = loop.call_later(delay, lambda: (early.append(loop.time() < timer.when()), loop.stop()))
        loop.run_forever()
    # The standard loop may be early by the resolution of the clock, one nanosecond.
    assert early == [False] * 10


@pytest.mark.parametrize("spins", [True, False])
def test_timers_one_after_another_are_not_early_and_cost_one_turn_each(loop, loop_name, spins):
    """The system is asked to wake the loop a little before the time of a timer, by what waking takes lately."""
    dice = random.Random(1)
    early, count = [], 150
    if loop_name == "fastloop":
        loop._may_spin = spins
        turns = loop.metrics()["turns"]

    def fired(when):
        early.append(loop.time() < when - 1e-9)
        if len(early) == count:
            loop.stop()
        else:
            arm()

    def arm():
        when = loop.time() + dice.choice([0.00005, 0.0003, 0.001, 0.0025, 0.004])
        loop.call_at(when, fired, when)

    arm()
    loop.run_forever()
    assert early == [False] * count
    if loop_name == "fastloop":
        # Far ones have another turn, shortly before.
        assert loop.metrics()["turns"] - turns <= 3 * count


def test_other_threads_are_served_beside_timers(loop):
    """Also in the last moments before a timer, which the loop may spend spinning."""
    ran, early = [], []
    over = threading.Event()
    count = 1000

    def post():
        dice = random.Random(1)
        for number in range(count):
            loop.call_soon_threadsafe(ran.append, number)
            time.sleep(dice.random() * 0.0005)
        over.set()

    def fired(when):
        early.append(loop.time() < when - 1e-9)
        if over.is_set() and len(ran) == count:
            loop.stop()
        else:
            arm()

    def arm():
        when = loop.time() + 0.0004
        loop.call_at(when, fired, when)

    arm()
    thread = threading.Thread(target=post)
    thread.start()
    loop.run_forever()
    thread.join()
    assert ran == list(range(count))
    assert not any(early)


def test_timers_fire_in_the_order_of_their_times(loop):
    fired = []
    start = loop.time() + 0.02
    whens = [start + i * 0.0001 for i in range(200)]
    shuffled = whens[:]
    random.Random(1).shuffle(shuffled)
    for when in shuffled:
        loop.call_at(when, fired.append, when)
    run_until(loop, lambda: len(fired) == len(whens))
    assert fired == whens


def test_timers_of_the_past_run_in_the_order_of_their_times(loop):
    fired = []
    for when in (-1, -3, -2, 0, -1000):
        loop.call_at(when, fired.append, when)
    loop.call_at(loop.time(), loop.stop)
    loop.run_forever()
    assert fired == [-1000, -3, -2, -1, 0]


def test_timers_less_than_a_millisecond_apart_keep_their_order(loop):
    fired = []
    base = loop.time() + 0.01
    loop.call_at(base + 3e-6, fired.append, 3)
    loop.call_at(base + 1e-6, fired.append, 1)
    loop.call_at(base + 2e-6, fired.append, 2)
    loop.call_at(base + 1e-3, loop.stop)
    loop.run_forever()
    assert fired == [1, 2, 3]


@pytest.mark.parametrize("delay", [0, -1, -1e9, -math.inf], ids=str)
def test_zero_and_negative_delays_give_timers_that_fire_in_the_next_turns(loop, delay):
    fired = []
    timer = loop.call_later(delay, fired.append, "timer")
    assert isinstance(timer, asyncio.TimerHandle)
    loop.call_soon(fired.append, "soon")
    loop.run_until_complete(asyncio.sleep(0.001))
    # A timer that is due joins the queue after what was ready when the turn began.
    assert fired == ["soon", "timer"]


@pytest.mark.parametrize("delay", [1e9, 1e15, 1e300, math.inf], ids=str)
def test_a_huge_delay_is_accepted_and_never_fires(loop, delay):
    timer = loop.call_later(delay, pytest.fail, "fired")
    assert timer.when() > loop.time()
    loop.run_until_complete(asyncio.sleep(0.002))
    assert not timer.cancelled()
    timer.cancel()


def test_a_huge_delay_does_not_hold_up_a_short_one(loop):
    far = loop.call_later(math.inf, pytest.fail, "fired")
    also = loop.call_later(1e10, pytest.fail, "fired")
    loop.run_until_complete(asyncio.sleep(0.002))
    far.cancel()
    also.cancel()


@pytest.mark.parametrize("delay", [True, 0.25, 1, type("Float", (float,), {})(0.5)])
def test_when_is_the_float_that_was_asked_for(loop, delay):
    before = loop.time()
    timer = loop.call_later(delay, print)
    assert before + delay <= timer.when() <= loop.time() + delay
    timer.cancel()
    exact = loop.call_at(12345.678901234567, print)
    assert exact.when() == 12345.678901234567 == exact._when
    exact.cancel()


@pytest.mark.parametrize(
    "call, value, message",
    [
        ("call_later", None, "delay must not be None"),
        ("call_at", None, "when cannot be None"),
        ("call_later", "1", "unsupported operand"),
        ("call_later", [], "unsupported operand"),
    ],
)
def test_a_time_that_is_no_number_is_a_type_error(loop, call, value, message):
    with pytest.raises(TypeError, match=message):
        getattr(loop, call)(value, print)


def test_the_clock_is_time_monotonic(loop):
    before = time.monotonic()
    now = loop.time()
    assert before <= now <= time.monotonic()
    assert isinstance(now, float)


def test_a_clock_replaced_on_the_instance_moves_the_timers(loop):
    offset = [0.0]
    loop.time = lambda: time.monotonic() + offset[0]
    fired = []
    loop.call_later(1000, lambda: (fired.append("timer"), loop.stop()))
    loop.call_soon(lambda: offset.__setitem__(0, 1000.5))
    started = time.monotonic()
    loop.run_forever()
    assert fired == ["timer"]
    assert time.monotonic() - started < 100
    del loop.time
    assert abs(loop.time() - time.monotonic()) < 10


def test_a_clock_overridden_in_a_subclass_is_used(loop_factory):
    base = loop_factory()
    base.close()

    class Shifted(type(base)):
        def time(self):
            return super().time() + 5000

    loop = Shifted()
    try:
        timer = loop.call_later(0.001, loop.stop)
        assert timer.when() > time.monotonic() + 4000
        loop.run_forever()
    finally:
        loop.close()


# ---------------------------------------------------------------- cancelling


def test_a_cancelled_timer_does_not_fire_and_stays_readable(loop):
    timer = loop.call_later(0.001, pytest.fail, "fired")
    when = timer.when()
    timer.cancel()
    timer.cancel()
    assert timer.cancelled() and timer.when() == when
    loop.run_until_complete(asyncio.sleep(0.005))


def test_a_due_timer_can_be_cancelled_by_another_of_the_same_turn(loop):
    fired = []
    timers = []
    now = loop.time()
    loop.call_at(now, lambda: timers[0].cancel())
    timers.append(loop.call_at(now + 1e-9, fired.append, "cancelled"))
    time.sleep(0.001)
    loop.run_until_complete(asyncio.sleep(0.002))
    assert fired == []


def test_a_timer_can_cancel_itself_and_set_a_new_one(loop):
    count = []
    current = []

    def again():
        current[0].cancel()
        count.append(1)
        if len(count) < 100:
            current[0] = loop.call_later(0, again)
        else:
            loop.stop()

    current.append(loop.call_later(0, again))
    loop.run_forever()
    assert len(count) == 100


def test_thousands_of_timers_with_random_cancels(loop):
    generator = random.Random(2)
    fired, expected = [], []
    base = loop.time() + 0.02
    timers = []
    for i in range(20_000):
        when = base + generator.random() * 0.05
        timers.append((loop.call_at(when, fired.append, i), when, i))
    generator.shuffle(timers)
    for timer, _, _ in timers[:10_000]:
        timer.cancel()
    expected = [i for _, _, i in sorted(timers[10_000:], key=lambda entry: entry[1])]
    run_until(loop, lambda: len(fired) >= len(expected))
    assert fired == expected


def test_cancelled_timers_do_not_pile_up(loop):
    def many():
        for _ in range(10_000):
            loop.call_later(1000, print).cancel()

    loop.call_soon(many)
    loop.run_until_complete(asyncio.sleep(0.001))
    # The standard loop sweeps once half of more than 100 are cancelled.
    assert len(loop._scheduled) <= 100


def test_a_cancelled_timer_releases_its_callback_at_once(loop):
    class Thing:
        def __call__(self):
            pass

    thing = Thing()
    reference = weakref.ref(thing)
    timer = loop.call_later(1000, thing)
    del thing
    timer.cancel()
    assert reference() is None


# ---------------------------------------------------------------- comparing


def test_timers_compare_by_time(loop):
    early, late = loop.call_at(1e9, print), loop.call_at(2e9, print)
    twin = loop.call_at(1e9, print)
    assert early < late and late > early and early <= late and late >= early
    assert early <= twin and early >= twin and not early < twin and not early > twin
    # Two timers are equal when time, callback, arguments and state of cancellation are.
    assert early == twin and hash(early) == hash(twin) == hash(1e9)
    assert early != loop.call_at(1e9, repr) and early != late and early != 1e9
    twin.cancel()
    assert early != twin
    for comparison in ("__lt__", "__le__", "__gt__", "__ge__", "__eq__"):
        assert getattr(early, comparison)(1e9) is NotImplemented
    for timer in list(loop._scheduled):
        timer.cancel()


def test_timers_can_be_sorted_and_put_into_sets(loop):
    timers = [loop.call_at(1e9 + i, print, i) for i in (3, 1, 2)]
    assert [timer.when() - 1e9 for timer in sorted(timers)] == [1, 2, 3]
    assert len(set(timers)) == 3
    for timer in timers:
        timer.cancel()


# ---------------------------------------------------------------- sleep


def test_sleep_returns_its_result_and_takes_its_time(loop, run):
    start = time.monotonic()
    assert run(asyncio.sleep(0.05, "result")) == "result"
    assert time.monotonic() - start >= 0.05


@pytest.mark.parametrize("delay", [0, -1, -math.inf])
def test_sleep_of_nothing_gives_way_once(loop, run, delay):
    seen = []

    async def main():
        loop.call_soon(seen.append, "other")
        await asyncio.sleep(delay)
        seen.append("slept")

    run(main())
    assert seen == ["other", "slept"]


def test_a_thousand_sleepers_wake_in_order(run):
    woken = []

    async def sleeper(i):
        await asyncio.sleep(0.001 + i * 0.00005)
        woken.append(i)

    async def main():
        await asyncio.gather(*[sleeper(i) for i in range(1000)])

    run(main())
    assert sorted(woken) == list(range(1000))


def test_a_cancelled_sleep_leaves_no_timer(loop, run):
    async def main():
        task = asyncio.create_task(asyncio.sleep(1000))
        await asyncio.sleep(0)
        assert len([t for t in loop._scheduled if not t.cancelled()]) == 1
        task.cancel()
        await asyncio.wait([task])
        assert not [t for t in loop._scheduled if not t.cancelled()]
        assert task.cancelled()

    run(main())


def test_timeouts_cancel_what_takes_too_long(run):
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(1000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(1000), 0.001)
        assert await asyncio.wait_for(asyncio.sleep(0, "fast"), 1000) == "fast"

    run(main())
