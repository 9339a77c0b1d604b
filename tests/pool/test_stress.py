"""Many hops from several loops at once: every job runs once, or was cancelled."""

import asyncio
import os
import random
import threading

import pytest

from .pools import pool_type

LOOPS = 4
#: `make stress` makes a million of them.
HOPS = 100_000 * int(os.environ.get("FASTLOOP_STRESS", "1"))


class Ledger:
    """What became of each job; every worker and loop writes to its own places."""

    def __init__(self, count):
        self.ran = [0] * count
        self.returned = [0] * count
        self.cancelled = [0] * count

    def job(self, number, fail):
        self.ran[number] += 1
        if fail:
            raise LookupError(number)
        return number

    async def hop(self, loop, pool, number, dice):
        fail = dice.random() < 0.1
        future = loop.run_in_executor(pool, self.job, number, fail)
        if dice.random() < 0.2:
            if dice.random() < 0.5:
                await asyncio.sleep(0)
            future.cancel()
        try:
            assert await future == number and not fail
        except asyncio.CancelledError:
            self.cancelled[number] = 1
            return
        except LookupError as exc:
            assert exc.args == (number,) and fail
        self.returned[number] = 1


@pytest.mark.timeout(240 + HOPS // 1000)
@pytest.mark.parametrize("shared", [True, False], ids=["one pool", "a pool each"])
def test_every_job_runs_once_or_was_cancelled(loop_factory, loop_name, shared):
    # The stock pool needs twenty times as long.
    hops = HOPS if loop_name == "fastloop" else HOPS // 10
    each = hops // LOOPS
    ledger = Ledger(hops)
    problems = []
    pool = pool_type(loop_name)(8) if shared else None

    async def main(first, seed):
        loop, dice = asyncio.get_running_loop(), random.Random(seed)
        numbers = iter(range(first, first + each))
        while batch := [number for _, number in zip(range(dice.choice((1, 3, 50, 200))), numbers)]:
            await asyncio.gather(*(ledger.hop(loop, pool, number, dice) for number in batch))
            if pool is None and dice.random() < 0.02:
                # A shutdown in the middle: the next hop makes a new default executor.
                loop._default_executor.shutdown(wait=False)
                loop._default_executor = None

    def work(index):
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(main(index * each, index))
        except BaseException as exc:
            problems.append(exc)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(LOOPS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if pool is not None:
        pool.shutdown()
    assert problems == []
    for number in range(hops):
        ran, returned, cancelled = ledger.ran[number], ledger.returned[number], ledger.cancelled[number]
        assert returned + cancelled == 1 and (ran == 1 if returned else ran <= 1), number
    assert 0 < sum(ledger.cancelled) < hops / 2


@pytest.mark.timeout(240)
def test_shutdown_beside_submitting_loops_loses_no_job(loop_factory, loop_name):
    """Jobs that were accepted run or are cancelled, those that were not raise; nothing hangs."""
    rounds = 40

    async def hop(loop, pool, ran):
        try:
            future = loop.run_in_executor(pool, ran.append, 1)
        except RuntimeError:
            return "refused"
        try:
            await future
        except asyncio.CancelledError:
            return "cancelled"
        return "ran"

    async def main(pool, ran, counts):
        loop = asyncio.get_running_loop()
        while True:
            outcomes = await asyncio.gather(*(hop(loop, pool, ran) for _ in range(20)))
            for outcome in outcomes:
                counts[outcome] += 1
            if "refused" in outcomes:
                return

    for number in range(rounds):
        pool, ran = pool_type(loop_name)(3), []
        counts = [{"ran": 0, "cancelled": 0, "refused": 0} for _ in range(2)]

        def work(index):
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(main(pool, ran, counts[index]))

        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        threading.Event().wait(0.005)
        pool.shutdown(cancel_futures=number % 2 == 0)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert sum(count["ran"] for count in counts) == len(ran)
