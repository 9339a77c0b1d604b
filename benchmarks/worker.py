"""The measured process: python -P -m benchmarks.worker LOOP CASE N [--warm-up] [--fd FD | --address ADDRESS]

Runs one case on one loop once and prints one line of JSON: the metrics of a case that runs inside, {"ready": true} from
a server that then serves until it is killed, or {"cannot": "Type: message"}.
"""

import argparse
import asyncio
import inspect
import json
import resource
import socket
import ssl
import time

from benchmarks import native
from benchmarks.loops import LOOPS
from benchmarks.registry import load_workloads


def run_once(case, loop, n, extra):
    if inspect.iscoroutinefunction(case.run):
        return loop.run_until_complete(case.run(n, *extra))
    return case.run(loop, n, *extra)


def measure(case, kind, n, extra, is_warmed):
    """The case's metrics on a loop of this kind; times are nanoseconds per operation."""
    loop = kind if case.fresh else kind.new()
    if is_warmed:
        run_once(case, loop, max(1, n // 10), extra)
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    more = run_once(case, loop, n, extra)
    wall, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
    return {"wall": wall / n, "cpu": cpu / n} | (more or {})


def server_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(native.certificate())
    return context


def serve(case, kind, fd):
    """Start the server on the bound socket, say so, and go on until killed."""
    listener = socket.socket(fileno=fd)
    listener.setblocking(False)
    loop = kind.new()

    async def start():
        served = case.run(listener, server_context() if case.kind == "tls" else None)
        task = asyncio.ensure_future(served)
        # A server that serves in its own coroutine does not come back: it is ready when it waits.
        await asyncio.wait([task], timeout=0.2)
        if task.done():
            task.result()
        print(json.dumps({"ready": True}), flush=True)
        await task
        await loop.create_future()

    loop.run_until_complete(start())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("case")
    parser.add_argument("n", type=int)
    parser.add_argument("--warm-up", action="store_true")
    parser.add_argument("--fd", type=int)
    parser.add_argument("--address", type=json.loads)
    args = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    kind = LOOPS[args.loop]
    try:
        case = load_workloads()[args.case]
        if case.kind is not None:
            serve(case, kind, args.fd)
        else:
            extra = () if args.address is None else (args.address,)
            print(json.dumps(measure(case, kind, args.n, extra, args.warm_up)))
    except Exception as error:
        print(json.dumps({"cannot": f"{type(error).__name__}: {error}"}), flush=True)


main()
