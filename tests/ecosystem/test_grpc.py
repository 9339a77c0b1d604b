"""grpc.aio: server and client over TLS, with each of the four kinds of calls, deadlines and cancellation.

gRPC keeps a thread and descriptors for the life of the process, and remembers loops: it gets a process of its own.
"""

import json

import pytest

pytest.importorskip("grpc.aio")

PROGRAM = """
os.environ["GRPC_VERBOSITY"] = "NONE"
import grpc, json

class Service(grpc.GenericRpcHandler):
    def service(self, details):
        kind = details.method.split("/")[-1]
        if hasattr(self, kind):
            make = getattr(grpc, kind + "_rpc_method_handler", grpc.unary_unary_rpc_method_handler)
            return make(getattr(self, kind))

    async def unary_unary(self, request, context):
        await context.send_initial_metadata([("x-initial", "1")])
        context.set_trailing_metadata([("x-trailing", "2")])
        return request.upper()

    async def unary_stream(self, request, context):
        for number in range(int(request)):
            yield b"%d" % number * 100

    async def stream_unary(self, requests, context):
        return b",".join([request async for request in requests])

    async def stream_stream(self, requests, context):
        async for request in requests:
            yield request[::-1]

    async def fails(self, request, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: " + request.decode())

    async def raises(self, request, context):
        raise ValueError("on purpose")

    async def sleeps(self, request, context):
        begun.append(request.decode())
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(request.decode())

begun, ended = [], []

async def numbers(count):
    for number in range(count):
        yield b"%d" % number

async def error_of(call):
    try:
        await call
    except grpc.aio.AioRpcError as exc:
        return [exc.code().name, exc.details()]
    except asyncio.CancelledError:
        return "cancelled"

async def until(predicate):
    while not predicate():
        await asyncio.sleep(0.001)

async def main():
    chain, key, authority = (open(path, "rb").read() for path in {paths!r})
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Service()])
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([(key, chain)]))
    await server.start()
    credentials = grpc.ssl_channel_credentials(authority)
    async with grpc.aio.secure_channel(f"localhost:{{port}}", credentials) as channel:
        def method(kind, name=None):
            return getattr(channel, kind)(f"/s/{{name or kind}}")

        call = method("unary_unary")(b"hello")
        answers = [await call, (await call.initial_metadata())["x-initial"],
                   (await call.trailing_metadata())["x-trailing"]]
        answers.append([part async for part in method("unary_stream")(b"300")])
        answers.append(await method("stream_unary")(numbers(300)))
        answers.append([part async for part in method("stream_stream")(numbers(300))])
        answers.append(await asyncio.gather(*[method("unary_unary")(b"n%d" % i * 1000) for i in range(200)]))
        for name in ("fails", "raises", "missing"):
            answers.append(await error_of(method("unary_unary", name)(b"x")))
        answers.append(await error_of(method("unary_unary", "sleeps")(b"deadline", timeout=2)))
        cancelled = method("unary_unary", "sleeps")(b"cancel")
        await until(lambda: "cancel" in begun)
        cancelled.cancel()
        answers.append(await error_of(cancelled))
        await until(lambda: len(ended) == 2)
        answers.append(sorted(ended))
    await server.stop(None)
    print(json.dumps(answers, default=bytes.decode))

import logging
logging.getLogger("grpc").setLevel(logging.CRITICAL)
with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


def test_calls(python, authority, certificate, stock_answers):
    output = python(PROGRAM.format(paths=[certificate.chain, certificate.key, str(authority.certificate)]))
    answers = json.loads(output)
    assert answers == stock_answers.setdefault("grpc", answers)
    upper, initial, trailing, parts, joined, reversed_, many, *errors = answers
    assert (upper, initial, trailing) == ("HELLO", "1", "2")
    assert parts == [str(i) * 100 for i in range(300)] and joined == ",".join(map(str, range(300)))
    assert reversed_ == [str(i)[::-1] for i in range(300)] and many == [f"N{i}" * 1000 for i in range(200)]
    assert errors[0] == ["NOT_FOUND", "no such thing: x"] and errors[1][0] == "UNKNOWN"
    assert [error[0] for error in errors[2:4]] == ["UNIMPLEMENTED", "DEADLINE_EXCEEDED"]
    assert errors[4:] == ["cancelled", ["cancel", "deadline"]]
