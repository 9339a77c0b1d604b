"""aiodns (c-ares) asks a name server of the test's own, over UDP."""

import asyncio
import socket
import struct

import pytest

aiodns = pytest.importorskip("aiodns")
# c-ares through pycares keeps one thread for the life of the process, which destroys channels.
pytestmark = pytest.mark.expects("threads")


class NameServer(asyncio.DatagramProtocol):
    """Knows the address of every name in .test, nothing of others; says nothing about 'silent.test'."""

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        name, end = self.name_in(data)
        if name.startswith("silent"):
            return
        known = name.endswith(".test") and struct.unpack("!H", data[end : end + 2]) == (1,)
        number = int(name.split(".")[0][1:]) if known else 0
        header = struct.pack("!2sHHHHH", data[:2], 0x8580 if known else 0x8583, 1, known, 0, 0)
        answer = struct.pack("!HHHIH4B", 0xC00C, 1, 1, 60, 4, 10, 0, number >> 8, number & 255) if known else b""
        self.transport.sendto(header + data[12 : end + 4] + answer, address)

    @staticmethod
    def name_in(data):
        labels, place = [], 12
        while length := data[place]:
            labels.append(data[place + 1 : place + 1 + length].decode())
            place += length + 1
        return ".".join(labels), place + 1


def test_queries(same):
    async def ask(resolver, name):
        try:
            found = await resolver.query_dns(name, "A")
            return [record.data.addr for record in found.answer]
        except aiodns.error.DNSError as exc:
            return exc.args

    async def program():
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(NameServer, ("127.0.0.1", 0), family=socket.AF_INET)
        port = transport.get_extra_info("sockname")[1]
        async with aiodns.DNSResolver(nameservers=[f"127.0.0.1:{port}"], timeout=2, tries=1) as resolver:
            names = [f"n{number}.test" for number in range(100)] + ["a.other", "silent.test"]
            answers = await asyncio.gather(*[ask(resolver, name) for name in names])
        transport.close()
        return answers

    *found, unknown, silent = same(program)
    assert found == [[f"10.0.{number >> 8}.{number & 255}"] for number in range(100)]
    assert unknown[0] == aiodns.error.ARES_ENOTFOUND and silent[0] == aiodns.error.ARES_ETIMEOUT
