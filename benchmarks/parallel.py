"""Loops in threads: how much more N loops in N threads do than one. python -m benchmarks.parallel --help

Each figure is operations per second of elapsed time, all loops together. `cpu` is how many times more processor time
one operation takes with N loops than with one; a busy machine hardly changes that. The last two figures of a line are
the loop's speed against that of the first kind, one against one and N against N. With a GIL the sum cannot exceed
that of one loop by much. Without one, N loops on N free cores can be N times as fast, as long as `cpu` stays near 1.
"""

import argparse
import asyncio
import statistics
import threading
import time

from fastloop._bench import loops as loops_module
from fastloop._bench import machine

BATCH = 100
CONNECTIONS = 10


class Echo(asyncio.Protocol):
    """Sends back what it is sent."""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class Pinger(asyncio.Protocol):
    """Sends a message again whenever it has come back whole."""

    def __init__(self, counts):
        self.counts = counts
        self.missing = 0

    def connection_made(self, transport):
        self.transport = transport
        self.send()

    def send(self):
        self.missing = 1024
        self.transport.write(bytes(1024))

    def data_received(self, data):
        self.missing -= len(data)
        if self.missing == 0:
            self.counts[0] += 1
            self.send()


async def tcp_echo(counts, is_over):
    """TCP, server and ten clients in the same loop: a message of 1 KiB there and back."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    transports = [(await loop.create_connection(lambda: Pinger(counts), *address))[0] for _ in range(CONNECTIONS)]
    while not is_over():
        await asyncio.sleep(0.01)
    for transport in transports:
        transport.abort()
    server.close()
    await asyncio.sleep(0.01)


async def tasks(counts, is_over):
    """Tasks: made, run through one sleep(0), awaited."""

    async def work():
        await asyncio.sleep(0)

    while not is_over():
        await asyncio.gather(*(work() for _ in range(BATCH)))
        counts[0] += BATCH


async def executor(counts, is_over):
    """Jobs of the default executor, ten at a time."""
    loop = asyncio.get_running_loop()
    while not is_over():
        await asyncio.gather(*(loop.run_in_executor(None, abs, -1) for _ in range(10)))
        counts[0] += 10


WORKLOADS = {"tcp": tcp_echo, "tasks": tasks, "executor": executor}


def measure(kind, workload, count, seconds):
    """Run the workload on `count` loops in as many threads; return operations per second and CPU seconds for one."""
    done, problems = [], []
    barrier = threading.Barrier(count + 1)

    def work():
        try:
            with asyncio.Runner(loop_factory=kind.new) as runner:
                counts = [0]
                # A tenth first, unmeasured.
                until = time.monotonic() + seconds / 10
                runner.run(workload(counts, lambda: time.monotonic() >= until))
                counts[0] = 0
                barrier.wait()
                start = time.monotonic()
                runner.run(workload(counts, lambda: time.monotonic() >= start + seconds))
                done.append(counts[0] / (time.monotonic() - start))
        except BaseException as exc:
            problems.append(exc)
            barrier.abort()

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        barrier.wait()
    except threading.BrokenBarrierError:
        pass
    cpu, start = time.process_time(), time.monotonic()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    return sum(done), (time.process_time() - cpu) / (sum(done) * (time.monotonic() - start))


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parallel", description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--loops", default="asyncio,fastloop", help="names, separated by commas (default: %(default)s)")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="some of %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="loops at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    options = parser.parse_args()
    kinds = {name: loops_module.find(name) for name in options.loops.split(",")}
    for key, value in machine.describe({name: kind.version() for name, kind in kinds.items()}).items():
        print(f"{key}: {value}")
    for name in options.workloads.split(","):
        print(f"\n{WORKLOADS[name].__doc__}")
        rounds = {kind: [] for kind in kinds}
        for _ in range(options.rounds):
            for kind, found in kinds.items():
                one, cpu = measure(found, WORKLOADS[name], 1, options.seconds)
                many, more_cpu = measure(found, WORKLOADS[name], options.threads, options.seconds)
                rounds[kind].append((one, many, many / one, more_cpu / cpu))
        first = next(iter(rounds))
        for kind, figures in rounds.items():
            one, many, ratio, cpu = map(statistics.median, zip(*figures, strict=True))
            least, most = (pick(figure[2] for figure in figures) for pick in (min, max))
            # Round by round: what slows the machine down slows both.
            pairs = [*zip(figures, rounds[first], strict=True)]
            alone, together = (statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1))
            print(
                f"  {kind:<10} one loop {one:>10,.0f}/s   {options.threads} loops {many:>10,.0f}/s"
                f"   {ratio:.2f}x ({least:.2f}..{most:.2f})   cpu {cpu:.2f}x"
                + (f"   {alone:.2f}x and {together:.2f}x {first}" if kind != first else "")
            )


if __name__ == "__main__":
    main()
