"""A chat server on streams, and 200 clients who each say one thing that all the others hear."""

import asyncio
import contextlib

CLIENTS = 200


class ChatRoom:
    """Passes on every line that a member sends to all the other members."""

    def __init__(self, capacity: int) -> None:
        self.members: dict[str, asyncio.StreamWriter] = {}
        self.capacity = capacity
        self.full = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Look after one connection: its first line is the member's name, the others are talk."""
        name = (await reader.readline()).decode().strip()
        self.members[name] = writer
        try:
            if len(self.members) == self.capacity:
                self.full.set()
            await self.full.wait()
            writer.write(b"welcome, %d are here\n" % len(self.members))
            async for line in reader:
                await self.tell_others(name, line)
        finally:
            del self.members[name]
            writer.close()
            await writer.wait_closed()

    async def tell_others(self, name: str, line: bytes) -> None:
        others = [writer for member, writer in self.members.items() if member != name]
        for writer in others:
            writer.write(name.encode() + b": " + line)
        for writer in others:
            with contextlib.suppress(ConnectionError):  # That member has left meanwhile.
                await writer.drain()


async def client(name: str, port: int) -> tuple[str, list[str]]:
    """Join, greet, listen until all the others have spoken, leave. Return the welcome and what was heard."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{name}\n".encode())
    welcome = await reader.readline()
    writer.write(f"hello from {name}\n".encode())
    heard = [await reader.readline() for _ in range(CLIENTS - 1)]
    writer.close()
    await writer.wait_closed()
    return welcome.decode().strip(), [line.decode().strip() for line in heard]


async def main() -> None:
    room = ChatRoom(CLIENTS)
    # All clients knock at once, before the first of them is let in.
    server = await asyncio.start_server(room.serve, "127.0.0.1", 0, backlog=CLIENTS)
    port = server.sockets[0].getsockname()[1]
    names = [f"guest-{number:03}" for number in range(CLIENTS)]
    async with server:
        visits = await asyncio.gather(*(client(name, port) for name in names))

    print(*{welcome for welcome, _ in visits})
    talk = {f"{name}: hello from {name}" for name in names}
    for name, (_, heard) in zip(names, visits, strict=True):
        if talk.difference(heard) != {f"{name}: hello from {name}"}:
            print(f"{name} heard something else: {heard}")
    heard_lines = sum(len(heard) for _, heard in visits)
    print(f"{heard_lines} lines heard, none of one's own")


if __name__ == "__main__":
    asyncio.run(main())
