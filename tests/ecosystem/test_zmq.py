"""pyzmq's asyncio sockets, which wait for ZeroMQ's edge-triggered descriptor by add_reader."""

import asyncio

import pytest

pytest.importorskip("zmq")
zmq = pytest.importorskip("zmq.asyncio")
plain = pytest.importorskip("zmq")


def addresses(folder):
    return {"tcp": "tcp://127.0.0.1:*", "ipc": f"ipc://{folder}/z", "inproc": "inproc://here"}


@pytest.mark.parametrize("kind", ["tcp", "ipc", "inproc"])
def test_sockets(same, tmp_path, kind):
    async def reply(socket, count):
        for _ in range(count):
            parts = await socket.recv_multipart()
            await socket.send_multipart([parts[0].upper(), *parts[1:]])

    async def program():
        with zmq.Context() as context:
            sockets = [context.socket(kind) for kind in (plain.REP, plain.REQ, plain.PUSH, plain.PULL)]
            rep, req, push, pull = sockets
            for server, client in ((rep, req), (pull, push)):
                address = addresses(tmp_path)[kind] + ("push" if client is push and kind != "tcp" else "")
                server.bind(address)
                client.connect(server.last_endpoint)
            serving = asyncio.ensure_future(reply(rep, 200))
            answers = []
            for i in range(200):
                await req.send_multipart([b"question", b"%d" % i, b"x" * (i * 100)])
                answers.append(await req.recv_multipart())
            await serving

            async def send():
                for i in range(3000):
                    await push.send(b"%d" % i)

            sending = asyncio.ensure_future(send())
            pulled = [await pull.recv() for _ in range(3000)]
            await sending
            for socket in sockets:
                socket.close(0)
            return answers, pulled

    answers, pulled = same(program)
    assert answers == [[b"QUESTION", b"%d" % i, b"x" * (i * 100)] for i in range(200)]
    assert pulled == [b"%d" % i for i in range(3000)]


def test_publish_subscribe_and_poll(same):
    async def program():
        with zmq.Context() as context, context.socket(plain.XPUB) as publisher:
            port = publisher.bind_to_random_port("tcp://127.0.0.1")
            subscribers = []
            for topic in (b"a", b"b", b""):
                subscriber = context.socket(plain.SUB)
                subscriber.connect(f"tcp://127.0.0.1:{port}")
                subscriber.subscribe(topic)
                subscribers.append(subscriber)
            asked = sorted([await publisher.recv() for _ in subscribers])
            for i in range(100):
                await publisher.send_multipart([b"ab"[i % 2 : i % 2 + 1], b"%d" % i])
            counts = (50, 50, 100)
            got = [[await s.recv_multipart() for _ in range(n)] for s, n in zip(subscribers, counts, strict=True)]
            try:
                await asyncio.wait_for(subscribers[0].recv(), 0.01)
            except TimeoutError:
                got.append("timeout")
            got.append(await subscribers[0].poll(10))
            for subscriber in subscribers:
                subscriber.close(0)
            return asked, got

    asked, (first, second, both, *rest) = same(program)
    assert asked == [b"\1", b"\1a", b"\1b"] and rest == ["timeout", 0]
    assert [int(number) for _, number in first] == list(range(0, 100, 2))
    assert [int(number) for _, number in second] == list(range(1, 100, 2))
    assert [int(number) for _, number in both] == list(range(100))
