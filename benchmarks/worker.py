"""The measured process: python -P -m benchmarks.worker LOOP CASE N [--warm-up] [--fd FD | --address ADDRESS]

As fastloop._bench.worker, with two more kinds of case: a client of a C server, which gets its address, and a server,
which prints {"ready": true} and then serves until it is killed.
"""

import asyncio
import json
import socket
import ssl

from benchmarks import native
from benchmarks.workloads import MODULES
from fastloop._bench import worker
from fastloop._bench.registry import load_workloads


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
    parser = worker.parser()
    parser.add_argument("--fd", type=int)
    parser.add_argument("--address", type=json.loads)
    args = parser.parse_args()
    worker.allow_many_files()
    with worker.failures_are_told():
        case = load_workloads(MODULES)[args.case]
        if args.fd is not None:
            serve(case, args.loop, args.fd)
        else:
            extra = () if args.address is None else (args.address,)
            print(json.dumps(worker.measure(case, args.loop, args.n, args.warm_up, extra)))


main()
