"""get_extra_info: names and values, during the connection and after it."""

import asyncio
import socket
import ssl

import pytest

from helpers import Connector, socket_pair, turns, until

PLAIN = [name for name in Connector.ENDPOINTS if not name.startswith("tls")]
plain = pytest.mark.parametrize("connect", PLAIN, indirect=True)
tls = pytest.mark.parametrize("connect", ["tls-client", "tls-server"], indirect=True)


@plain
def test_names_of_the_socket_are_known_and_stay_after_close(connect, run):
    async def main():
        transport, protocol, peer = await connect()
        names = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        assert names == (peer.sock.getpeername(), peer.sock.getsockname())
        transport.close()
        await peer.leave()
        await until(lambda: protocol.lost)
        await turns(3)
        assert (transport.get_extra_info("sockname"), transport.get_extra_info("peername")) == names

    run(main())


def test_unknown_names_give_the_default(connect, run):
    async def main():
        transport, *_ = await connect()
        marker = object()
        assert transport.get_extra_info("nothing") is None
        assert transport.get_extra_info("nothing", marker) is marker
        assert transport.get_extra_info(5, marker) is marker
        assert transport.get_extra_info(name="nothing", default=marker) is marker

    run(main())


def test_the_socket_is_a_transport_socket(connect, run):
    async def main():
        transport, _, peer = await connect()
        sock = transport.get_extra_info("socket")
        assert isinstance(sock, asyncio.trsock.TransportSocket)
        assert sock is transport.get_extra_info("socket")
        assert sock.family == peer.sock.family and sock.type == socket.SOCK_STREAM
        assert sock.getsockname() == transport.get_extra_info("sockname")
        assert sock.fileno() > 0 and sock.gettimeout() == 0
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        with pytest.raises(ValueError, match="settimeout"):
            sock.settimeout(5)
        # A duplicate outlives the transport.
        copy = sock.dup()
        transport.close()
        await peer.leave() if connect.tls else await turns(3)
        assert copy.fileno() > 0
        copy.close()

    run(main())


@plain
def test_plain_connections_know_nothing_of_tls(connect, run):
    async def main():
        transport, *_ = await connect()
        for name in ("sslcontext", "ssl_object", "peercert", "cipher", "compression"):
            assert transport.get_extra_info(name, "default") == "default"

    run(main())


@tls
def test_tls_connections_tell_of_certificate_cipher_and_context(connect, run):
    async def main():
        transport, protocol, peer = await connect()
        context = connect.authority.client if connect.side == "client" else connect.authority.server
        assert transport.get_extra_info("sslcontext") is context
        ssl_object = transport.get_extra_info("ssl_object")
        assert isinstance(ssl_object, ssl.SSLObject)
        assert transport.get_extra_info("cipher") == ssl_object.cipher()
        assert transport.get_extra_info("compression", "default") is None
        certificate = transport.get_extra_info("peercert")
        if connect.side == "client":
            assert ("DNS", "localhost") in certificate["subjectAltName"]
        else:
            assert not certificate
        transport.close()
        await peer.leave()
        await until(lambda: protocol.lost)
        assert transport.get_extra_info("sslcontext") is context
        assert transport.get_extra_info("cipher")

    run(main())


def test_ipv6_names_have_four_parts(loop, run):
    async def main():
        try:
            server = await loop.create_server(asyncio.Protocol, "::1", 0)
        except OSError:
            pytest.skip("no IPv6 here")
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname()[:2])
        assert transport.get_extra_info("peername") == server.sockets[0].getsockname()
        assert len(transport.get_extra_info("sockname")) == 4
        transport.close()
        await turns(3)
        server.close()
        await server.wait_closed()

    run(main())


def test_a_socket_whose_peer_is_gone_has_no_peername(loop, run):
    async def main():
        ours, theirs = socket_pair("tcp")
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        assert transport.get_extra_info("peername", "default") is None
        assert transport.get_extra_info("sockname")[0] == "127.0.0.1"
        transport.close()
        await turns(5)

    run(main())
