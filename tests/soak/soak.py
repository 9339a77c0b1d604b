"""Mixed work for minutes or hours, beside clients that misbehave: every message is accounted for, and nothing grows.

    make soak [SOAK_SECONDS=3600] [PYTHON=...]

TCP, TLS, UDP, child processes, the executor and timers work at the same time; what comes back is compared with what was
sent, and counted. After a third of the time and at the end the work is held up until all is idle; memory, descriptors,
threads, timers, tasks and objects of these two moments are compared. `--loop stock` runs the same on the standard loop.
"""

import argparse
import asyncio
import collections
import contextlib
import gc
import math
import os
import pathlib
import random
import socket
import ssl
import sys
import tempfile
import threading
import time

from helpers import Authority, new_loop, resident_bytes

#: Clients of each kind at the same time.
CLIENTS = {"tcp": 8, "tls": 6, "udp": 4, "child": 1, "executor": 4, "timer": 4, "hostile": 8}
#: Seconds that one exchange may take; a message that is later is lost. How long a whole piece of work takes depends on
#: how busy the machine is.
PATIENCE = 60
#: What may be added between the two moments: memory of the allocator, objects of caches.
GROWTH = {"descriptors": 0, "threads": 0, "timers": 0, "tasks": 0, "objects": 2000, "kilobytes": 16384}


class Latencies:
    """A histogram with steps of five per cent, so that an hour takes no more room than a minute."""

    def __init__(self):
        self.counts = collections.Counter()

    def add(self, seconds):
        self.counts[round(math.log(max(seconds, 1e-7)) / math.log(1.05))] += 1

    def percentiles(self):
        total, seen, found = self.counts.total(), 0, {}
        for step in sorted(self.counts):
            seen += self.counts[step]
            for percent in (50, 90, 99, 99.9, 100):
                if percent not in found and seen >= total * percent / 100:
                    found[percent] = 1000 * 1.05**step
        return "  ".join(f"p{percent:g} {value:.2f}" for percent, value in found.items())


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)

    def pause_writing(self):
        self.transport.pause_reading()

    def resume_writing(self):
        self.transport.resume_reading()


class EchoDatagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(data, address)


class Answers(asyncio.DatagramProtocol):
    def __init__(self):
        self.waiters = {}
        self.strays = 0

    def datagram_received(self, data, address):
        waiter = self.waiters.pop(data, None)
        if waiter is None:
            self.strays += 1
        elif not waiter.done():
            waiter.set_result(None)


async def echo_stream(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


class Soak:
    def __init__(self, authority, seed):
        self.authority = authority
        self.dice = random.Random(seed)
        self.sent = collections.Counter()
        self.received = collections.Counter()
        self.wrong = []
        self.hostilities = collections.Counter()
        self.latencies = collections.defaultdict(Latencies)
        self.gate = asyncio.Event()
        self.busy = 0
        self.stopping = False

    async def start(self):
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self.report)
        tcp = await loop.create_server(Echo, "127.0.0.1", 0, backlog=200)
        tls = await asyncio.start_server(echo_stream, "127.0.0.1", 0, ssl=self.authority.server, backlog=200)
        udp, _ = await loop.create_datagram_endpoint(EchoDatagrams, ("127.0.0.1", 0))
        self.servers = [tcp, tls]
        self.tcp, self.tls = (server.sockets[0].getsockname() for server in self.servers)
        self.datagrams, self.udp = udp, udp.get_extra_info("sockname")
        # All the threads of the default executor: when else another one begins is chance.
        await loop.run_in_executor(None, int)
        most = loop._default_executor._max_workers
        together = threading.Barrier(most)
        await asyncio.gather(*(loop.run_in_executor(None, together.wait, PATIENCE) for _ in range(most)))

    def report(self, loop, context):
        exc = context.get("exception")
        # What a client that breaks off brings about is told to its protocol, or logged where there is none.
        if not isinstance(exc, (OSError, ssl.SSLError)):
            self.wrong.append(f"reported: {context}")

    def account(self, kind, sent, received, since, count=1):
        if sent == received:
            self.received[kind] += count
        else:
            self.wrong.append(f"{kind}: {sent[:40]!r} came back as {received[:40]!r}")
        self.latencies[kind].add(time.perf_counter() - since)

    def payload(self):
        return self.dice.randbytes(self.dice.choice((1, 50, 200, 1000, 1000, 20_000)))

    # -- good clients --------------------------------------------------------------------------------------------

    async def do_stream(self, kind, **options):
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(*(self.tcp if kind == "tcp" else self.tls)[:2], **options)
        try:
            for _ in range(self.dice.randrange(1, 60)):
                batch = [self.payload() for _ in range(self.dice.choice((1, 1, 10)))]
                data = b"".join(batch)
                self.sent[kind] += len(batch)
                async with asyncio.timeout(PATIENCE):
                    since = time.perf_counter()
                    for message in batch:
                        writer.write(message)
                    self.account(kind, data, await reader.readexactly(len(data)), since, len(batch))
            writer.close()
            async with asyncio.timeout(PATIENCE):
                with contextlib.suppress(ssl.SSLError):
                    await writer.wait_closed()
        finally:
            writer.transport.abort()

    async def do_tcp(self):
        await self.do_stream("tcp")

    async def do_tls(self):
        await self.do_stream("tls", ssl=self.authority.client, server_hostname="localhost")

    async def do_udp(self):
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(Answers, remote_addr=self.udp)
        try:
            for number in range(self.dice.randrange(1, 100)):
                message = b"%d:" % number + self.dice.randbytes(20)
                waiter = protocol.waiters[message] = loop.create_future()
                self.sent["udp"] += 1
                async with asyncio.timeout(PATIENCE):
                    since = time.perf_counter()
                    transport.sendto(message)
                    await waiter
                self.account("udp", message, message, since)
        finally:
            transport.close()
        if protocol.strays:
            self.wrong.append(f"udp: {protocol.strays} datagrams that nobody sent")

    async def do_child(self):
        since, message = time.perf_counter(), self.payload()
        pipe = asyncio.subprocess.PIPE
        self.sent["child"] += 1
        async with asyncio.timeout(PATIENCE):
            child = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe)
            output, _ = await child.communicate(message)
        self.account("child", message, output, since)
        await asyncio.sleep(0.05)

    async def do_executor(self):
        loop = asyncio.get_running_loop()
        for _ in range(50):
            since, message = time.perf_counter(), self.payload()
            self.sent["executor"] += 1
            async with asyncio.timeout(PATIENCE):
                self.account("executor", message, await loop.run_in_executor(None, bytes, message), since)
        await asyncio.sleep(0.01)

    async def do_timer(self):
        """Timers, every third cancelled: the others fire, each once and in order."""
        loop = asyncio.get_running_loop()
        fired, due = [], []
        for number in range(60):
            delay = self.dice.random() * 0.05
            timer = loop.call_later(delay, fired.append, number)
            if number % 3:
                due.append((timer.when(), number))
            else:
                timer.cancel()
        last = max(due)[0]
        await asyncio.sleep(0.051)
        async with asyncio.timeout(PATIENCE):
            while loop.time() < last or len(fired) < len(due):
                await asyncio.sleep(0.001)
        self.sent["timer"] += len(due)
        self.received["timer"] += len(fired)
        if fired != [number for _, number in sorted(due)]:
            self.wrong.append(f"timer: {fired}")
        self.latencies["timer"].add(loop.time() - last)

    # -- bad clients ---------------------------------------------------------------------------------------------

    async def do_hostile(self):
        act = self.dice.choice((self.reset, self.stall, self.half_close, self.send_garbage, self.be_cancelled))
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(OSError, TimeoutError):
                await act()
        self.hostilities[act.__name__] += 1
        await asyncio.sleep(self.dice.random() * 0.02)

    @contextlib.contextmanager
    def plain_socket(self):
        with socket.create_connection(self.dice.choice((self.tcp, self.tls))[:2]) as sock:
            sock.setblocking(False)
            yield sock

    async def reset(self):
        with self.plain_socket() as sock:
            sock.send(b"B" * 1000)
            await asyncio.sleep(self.dice.random() * 0.01)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async def stall(self):
        with socket.create_connection(self.tcp[:2]) as sock:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(50):
                    sock.send(b"B" * 100_000)
                    await asyncio.sleep(0)
            await asyncio.sleep(self.dice.random() * 0.2)

    async def half_close(self):
        with self.plain_socket() as sock:
            sock.send(b"B" * self.dice.choice((1, 1000, 50_000)))
            sock.shutdown(socket.SHUT_WR)
            await asyncio.sleep(self.dice.random() * 0.02)

    async def send_garbage(self):
        with socket.create_connection(self.tls[:2]) as sock:
            sock.setblocking(False)
            sock.send(b"\xff" + self.dice.randbytes(500))
            await asyncio.sleep(self.dice.random() * 0.02)

    async def be_cancelled(self):
        async with asyncio.timeout(self.dice.random() * 0.02):
            options = self.dice.choice(({}, {"ssl": self.authority.client, "server_hostname": "localhost"}))
            reader, writer = await asyncio.open_connection(*(self.tls if options else self.tcp)[:2], **options)
            try:
                while True:
                    writer.write(b"B" * 10_000)
                    await reader.readexactly(10_000)
            finally:
                writer.transport.abort()

    # -- the run -------------------------------------------------------------------------------------------------

    async def work(self, kind):
        """Do one piece of work of a kind after the other, while the gate is open."""
        do = getattr(self, "do_" + kind)
        while True:
            await self.gate.wait()
            if self.stopping:
                return
            self.busy += 1
            try:
                await do()
            except Exception as exc:
                self.wrong.append(f"{kind}: {exc!r}")
                await asyncio.sleep(0.1)
            finally:
                self.busy -= 1

    async def measure(self):
        """Hold the work up until nothing is under way, and say what is there."""
        self.gate.clear()
        deadline = time.monotonic() + 2 * PATIENCE
        settled = None
        while time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            gc.collect()
            loop = asyncio.get_running_loop()
            found = {
                "descriptors": len(os.listdir("/proc/self/fd")),
                "threads": threading.active_count(),
                "timers": len(loop._scheduled),
                "tasks": len(asyncio.all_tasks()),
                "objects": len(gc.get_objects()),
                "kilobytes": resident_bytes() // 1024,
            }
            if not self.busy and settled == [found[name] for name in ("descriptors", "timers", "tasks")]:
                return found
            settled = None if self.busy else [found[name] for name in ("descriptors", "timers", "tasks")]
        self.wrong.append(f"{self.busy} pieces of work do not end")
        return found

    async def run(self, seconds):
        await self.start()
        workers = [asyncio.ensure_future(self.work(kind)) for kind in CLIENTS for _ in range(CLIENTS[kind])]
        self.gate.set()
        await asyncio.sleep(seconds / 3)
        first = await self.measure()
        self.gate.set()
        await asyncio.sleep(seconds * 2 / 3)
        last = await self.measure()
        self.stopping = True
        self.gate.set()
        await asyncio.wait(workers, timeout=2 * PATIENCE)
        for server in self.servers:
            server.close()
            await server.wait_closed()
        self.datagrams.close()
        await asyncio.sleep(0)
        return first, last


def findings(soak, first, last):
    """What is not as it must be, in words."""
    found = list(soak.wrong)
    found += [f"{kind}: {soak.sent[kind]} sent, {soak.received[kind]} received" for kind in soak.sent - soak.received]
    found += [f"{kind}: nothing was done" for kind in CLIENTS if kind != "hostile" and not soak.received[kind]]
    found += [
        f"{name}: {first[name]} became {last[name]}" for name in GROWTH if last[name] > first[name] + GROWTH[name]
    ]
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--loop", choices=("fastloop", "stock"), default="fastloop")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(pathlib.Path(folder))
    soak = Soak(authority, options.seed)
    with asyncio.Runner(loop_factory=lambda: new_loop(options.loop)) as runner:
        first, last = runner.run(soak.run(options.seconds))
    for kind in soak.latencies:
        print(f"{kind:9}{soak.received[kind]:>10} of {soak.sent[kind]:>10}  ms: {soak.latencies[kind].percentiles()}")
    print("hostile  ", dict(soak.hostilities))
    print("after a third", first)
    print("at the end   ", last)
    problems = findings(soak, first, last)
    print(f"{soak.received.total()} messages accounted for" if not problems else "\n".join(problems[:50]))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
