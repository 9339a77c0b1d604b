"""Unix sockets: servers and clients by path and by abstract name, stale files, modes, errors."""

import asyncio
import errno
import os
import socket
import stat
import sys
import tempfile

import pytest

from helpers import Recorder, new_loop, socket_pair, turns, until


def echo_factory():
    return Recorder(data_received=lambda p: p.transport.write(p.data))


async def talk(loop, path):
    """Connect, exchange a message, close; return (sockname, peername)."""
    transport, protocol = await loop.create_unix_connection(Recorder, path)
    transport.write(b"hello")
    await until(lambda: protocol.data == b"hello")
    names = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
    transport.close()
    await until(lambda: protocol.lost)
    return names


class Text(str):
    pass


class Name:
    """Names a file by text of another class."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return Text(self.path)


@pytest.mark.parametrize("kind", ["str", "bytes", "path", "text", "name"])
def test_paths_of_every_type(loop, run, tmp_path, kind):
    path = tmp_path / "socket"
    given = {"str": str(path), "bytes": os.fsencode(path), "path": path, "text": Text(path), "name": Name(path)}[kind]

    async def main():
        server = await loop.create_unix_server(echo_factory, given)
        assert server.sockets[0].getsockname() == str(path)
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert await talk(loop, given) == ("", str(path))
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.parametrize("name", ["\0fastloop test %d", b"\0fastloop test %d bytes", "\0with\0zeros %d"])
def test_abstract_names(loop, run, name):
    name = name % os.getpid() if isinstance(name, str) else name % os.getpid()

    async def main():
        server = await loop.create_unix_server(echo_factory, name)
        expected = name.encode() if isinstance(name, str) else name
        assert server.sockets[0].getsockname() == expected
        assert (await talk(loop, name))[1] == expected
        server.close()
        await server.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await loop.create_unix_connection(Recorder, name)

    run(main())


def test_a_stale_socket_file_is_replaced(loop, run, tmp_path):
    path = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))

    async def main():
        server = await loop.create_unix_server(echo_factory, path)
        await talk(loop, str(path))
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.parametrize("what", ["file", "folder"])
def test_another_kind_of_file_is_not_replaced(loop, run, tmp_path, what):
    path = tmp_path / "taken"
    path.mkdir() if what == "folder" else path.write_text("precious")
    with pytest.raises(OSError) as caught:
        run(loop.create_unix_server(Recorder, path))
    assert caught.value.errno == errno.EADDRINUSE
    assert str(caught.value) == f"[Errno {errno.EADDRINUSE}] Address {str(path)!r} is already in use"
    assert what == "folder" or path.read_text() == "precious"


def test_the_file_has_the_mode_of_the_umask(loop, run, tmp_path):
    async def main():
        for umask, mode in ((0o077, 0o700), (0o000, 0o777), (0o022, 0o755)):
            old = os.umask(umask)
            try:
                server = await loop.create_unix_server(Recorder, tmp_path / f"{umask}")
            finally:
                os.umask(old)
            assert stat.S_IMODE((tmp_path / f"{umask}").stat().st_mode) == mode
            server.close()
            await server.wait_closed()

    run(main())


def test_the_file_is_removed_at_close_since_3_13(loop, run, tmp_path):
    removed = sys.version_info >= (3, 13)

    async def main():
        path = tmp_path / "socket"
        server = await loop.create_unix_server(Recorder, path)
        server.close()
        await server.wait_closed()
        assert path.exists() is not removed
        if removed:
            server = await loop.create_unix_server(Recorder, path, cleanup_socket=False)
            server.close()
            await server.wait_closed()
            assert path.exists()
            # A file that took the place of ours is not ours to remove.
            server = await loop.create_unix_server(Recorder, path)
            path.unlink()
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(str(path))
            server.close()
            await server.wait_closed()
            assert path.exists()

    run(main())


@pytest.mark.left_out(sys.version_info < (3, 13), reason="the file stays")
def test_the_file_is_removed_by_the_code_that_tools_know_to_do_so(loop, run, monkeypatch, tmp_path):
    # What looks for blocking calls in a running loop lets asyncio's own pass, by file and function.
    callers = {}

    def watch(name):
        function = getattr(os, name)

        def watched(path, *args, **kwargs):
            if str(path) == str(tmp_path / "socket"):
                code = sys._getframe(1).f_code
                callers[name] = (os.path.basename(code.co_filename), code.co_name)
            return function(path, *args, **kwargs)

        monkeypatch.setattr(os, name, watched)

    async def main():
        server = await loop.create_unix_server(Recorder, str(tmp_path / "socket"))
        watch("stat")
        watch("unlink")
        server.close()
        await server.wait_closed()
        monkeypatch.undo()

    run(main())
    assert callers == dict.fromkeys(["stat", "unlink"], ("unix_events.py", "_stop_serving"))


@pytest.mark.parametrize("length", [108, 120, 5000])
def test_a_path_that_is_too_long(loop, run, guard, length):
    path = "/tmp/" + "x" * length
    for attempt in (loop.create_unix_server, loop.create_unix_connection):
        with pytest.raises(OSError, match="AF_UNIX path too long"):
            run(attempt(Recorder, path))
    # Longer than any name of a file: the server cannot look for a stale socket.
    assert [text.split("'")[0] for text in guard.log.take()] == ["Unable to check or remove stale UNIX socket "] * (
        length == 5000
    )


def test_the_longest_path_that_fits(loop, run):
    async def main(path):
        server = await loop.create_unix_server(echo_factory, path)
        assert await talk(loop, path) == ("", path)
        server.close()
        await server.wait_closed()

    # Not tmp_path, which may be longer already.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        run(main(f"{folder}/".ljust(107, "x")))


@pytest.mark.left_out(not sys.platform.startswith("linux"), reason="elsewhere it is refused")
def test_a_server_that_has_no_room(loop, run, tmp_path):
    """Linux answers EAGAIN; the transport, made as if connected, ends with the first read."""

    async def main():
        path, clients = str(tmp_path / "full"), []
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen(0)
            with pytest.raises(BlockingIOError):
                while True:
                    clients.append(socket.socket(socket.AF_UNIX))
                    clients[-1].setblocking(False)
                    clients[-1].connect(path)
            transport, protocol = await loop.create_unix_connection(Recorder, path)
            assert transport.get_extra_info("peername") is None
            await until(lambda: protocol.lost)
            assert transport.is_closing() and protocol.data == b""
            assert type(protocol.error) is OSError and protocol.error.errno == errno.EINVAL
            for client in clients:
                client.close()

    run(main())


def test_missing_files_and_dead_sockets(loop, run, tmp_path):
    with pytest.raises(FileNotFoundError):
        run(loop.create_unix_connection(Recorder, str(tmp_path / "nothing")))
    with pytest.raises(FileNotFoundError):
        run(loop.create_unix_server(Recorder, tmp_path / "no folder" / "socket"))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "dead"))
    with pytest.raises(ConnectionRefusedError):
        run(loop.create_unix_connection(Recorder, str(tmp_path / "dead")))


@pytest.mark.fastloop_only("compares with the stock loop")
def test_errors_of_connecting_are_those_of_the_stock_loop(loop, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    paths = [
        "",
        b"",
        "nothing",
        b"nothing",
        tmp_path / "nothing",
        "file",
        "fi\0le",
        "x" * 107,
        "x" * 108,
        "\0" + "x" * 107,
    ]
    paths += ["\0" + "x" * 108, "\0nobody", b"\0nobody", "\ud800", "/", 5, bytearray(b"file")]

    async def answers(loop):
        found = []
        for path in paths:
            try:
                await loop.create_unix_connection(Recorder, path)
            except Exception as exc:
                found.append((type(exc), str(exc), exc.args))
        return found

    stock = new_loop("stock")
    expected = stock.run_until_complete(answers(stock))
    stock.close()
    assert len(expected) == len(paths)
    assert run(answers(loop)) == expected


def test_the_peer_has_the_name_that_the_server_was_bound_to(loop, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    async def main():
        server = await loop.create_unix_server(echo_factory, "socket")
        assert await talk(loop, tmp_path / "socket") == ("", "socket")
        server.close()
        await server.wait_closed()

    run(main())


def test_replaced_functions_are_called(loop, run, tmp_path, monkeypatch):
    path, seen = str(tmp_path / "socket"), []

    class Socket(socket.socket):
        def connect(self, address):
            seen.append(address)
            super().connect(address)

    async def main():
        server = await loop.create_unix_server(echo_factory, path)
        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", Socket)
            await talk(loop, path)
        assert seen == [path]
        server.close()
        await server.wait_closed()

    run(main())


def test_a_connection_that_is_given_up_at_once(loop, run, tmp_path):
    async def main():
        server = await loop.create_unix_server(echo_factory, tmp_path / "socket")
        task = loop.create_task(loop.create_unix_connection(Recorder, tmp_path / "socket"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await turns(5)
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.parametrize(
    "method, args, kwargs, error, message",
    [
        ("create_unix_server", (), {}, ValueError, "path was not specified, and no sock specified"),
        ("create_unix_connection", (), {}, ValueError, "no path and sock were specified"),
        (
            "create_unix_server",
            ("/x",),
            {"sock": "unix"},
            ValueError,
            "path and sock can not be specified at the same time",
        ),
        (
            "create_unix_connection",
            ("/x",),
            {"sock": "unix"},
            ValueError,
            "path and sock can not be specified at the same time",
        ),
        (
            "create_unix_server",
            (),
            {"sock": "tcp"},
            ValueError,
            "A UNIX Domain Stream Socket was expected, got <socket",
        ),
        (
            "create_unix_connection",
            (),
            {"sock": "tcp"},
            ValueError,
            "A UNIX Domain Stream Socket was expected, got <socket",
        ),
        (
            "create_unix_connection",
            (),
            {"sock": "datagram"},
            ValueError,
            "A UNIX Domain Stream Socket was expected, got <socket",
        ),
        ("create_unix_server", ("/x",), {"ssl": True}, TypeError, "ssl argument must be an SSLContext or None"),
        (
            "create_unix_connection",
            ("/x",),
            {"ssl": True},
            ValueError,
            "you have to pass server_hostname when using ssl",
        ),
        (
            "create_unix_connection",
            ("/x",),
            {"server_hostname": "x"},
            ValueError,
            "server_hostname is only meaningful with ssl",
        ),
        (
            "create_unix_server",
            ("/x",),
            {"ssl_handshake_timeout": 1},
            ValueError,
            "ssl_handshake_timeout is only meaningful with ssl",
        ),
        (
            "create_unix_connection",
            ("/x",),
            {"ssl_shutdown_timeout": 1},
            ValueError,
            "ssl_shutdown_timeout is only meaningful with ssl",
        ),
    ],
    ids=range(12),
)
def test_wrong_arguments(loop, run, method, args, kwargs, error, message):
    kinds = {"unix": (socket.AF_UNIX,), "tcp": (socket.AF_INET,), "datagram": (socket.AF_UNIX, socket.SOCK_DGRAM)}
    with socket.socket(*kinds[kwargs.get("sock", "unix")]) as sock:
        if "sock" in kwargs:
            kwargs = {**kwargs, "sock": sock}
        with pytest.raises(error) as caught:
            run(getattr(loop, method)(Recorder, *args, **kwargs))
    assert message in str(caught.value)


def test_sockets_of_ones_own(loop, run, tmp_path):
    async def main():
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "own"))
        server = await loop.create_unix_server(echo_factory, sock=listener)
        await talk(loop, str(tmp_path / "own"))
        server.close()
        await server.wait_closed()
        ours, theirs = socket_pair("unix")
        transport, protocol = await loop.create_unix_connection(Recorder, sock=ours)
        theirs.send(b"x")
        await until(lambda: protocol.data == b"x")
        theirs.close()
        await until(lambda: protocol.lost)

    run(main())


def test_a_burst_of_clients(loop, run, tmp_path):
    async def main():
        server = await loop.create_unix_server(echo_factory, tmp_path / "burst", backlog=200)
        await asyncio.gather(*[talk(loop, str(tmp_path / "burst")) for _ in range(100)])
        server.close()
        await server.wait_closed()
        await turns(3)

    run(main())


def test_unix_transports_report_a_broken_peer(loop, run, tmp_path):
    async def main():
        made = []
        server = await loop.create_unix_server(lambda: made.append(Recorder()) or made[-1], tmp_path / "s")
        transport, protocol = await loop.create_unix_connection(
            lambda: Recorder(eof_received=lambda p: True), str(tmp_path / "s")
        )
        await until(lambda: made and made[0].made)
        made[0].transport.abort()
        await until(lambda: "eof_received" in protocol.events)
        transport.write(b"into the void")
        transport.write(b"into the void")
        await until(lambda: protocol.lost)
        assert isinstance(protocol.error, (BrokenPipeError, ConnectionResetError))
        server.close()
        await server.wait_closed()

    run(main())
