"""asyncssh: server and client, with commands, SFTP and a forwarded port."""

import asyncio
import contextlib

import pytest

asyncssh = pytest.importorskip("asyncssh")


class Server(asyncssh.SSHServer):
    def password_auth_supported(self):
        return True

    def validate_password(self, username, password):
        return (username, password) == ("tester", "secret")

    def connection_requested(self, *destination):
        return True


async def handle(process):
    """Upper-cases its input line by line, says its command on standard error, and exits with 3."""
    async for line in process.stdin:
        process.stdout.write(line.upper())
    process.stderr.write(process.command)
    process.exit(3)


def connect(server, password):
    return asyncssh.connect(
        "127.0.0.1",
        server.get_port(),
        username="tester",
        password=password,
        known_hosts=None,
        client_keys=None,
        config=None,
    )


@contextlib.asynccontextmanager
async def connected(key):
    """A server, and a client's connection to it."""
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Server, process_factory=handle, server_host_keys=[key], sftp_factory=True
    )
    try:
        async with connect(server, "secret") as connection:
            yield server, connection
    finally:
        server.close()
        await server.wait_closed()


@pytest.fixture(scope="module")
def key():
    return asyncssh.generate_private_key("ssh-ed25519")


def test_commands(same, key):
    async def program():
        async with connected(key) as (server, connection):
            runs = [connection.run(f"do {i}", input=f"line {i}\n" * 200) for i in range(10)]
            results = await asyncio.gather(*runs)
            try:
                await connect(server, "wrong")
            except asyncssh.PermissionDenied as exc:
                error = exc.reason
            return [(result.exit_status, result.stdout, result.stderr) for result in results], error

    results, error = same(program)
    assert results == [(3, f"LINE {i}\n" * 200, f"do {i}") for i in range(10)]
    assert "Permission denied" in error


def test_files_and_forwarding(same, key, tmp_path):
    async def echo(reader, writer):
        writer.write(await reader.read())
        writer.close()

    async def program():
        echoing = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with connected(key) as (_, connection):
            (tmp_path / "from").write_bytes(bytes(range(256)) * 4000)
            async with connection.start_sftp_client() as sftp:
                await sftp.put(str(tmp_path / "from"), str(tmp_path / "to"))
                names = sorted(name for name in await sftp.listdir(str(tmp_path)) if name[0] != ".")
            port = echoing.sockets[0].getsockname()[1]
            forwarded = await connection.forward_local_port("127.0.0.1", 0, "127.0.0.1", port)
            reader, writer = await asyncio.open_connection("127.0.0.1", forwarded.get_port())
            writer.write(b"through the tunnel" * 10_000)
            writer.write_eof()
            back = await reader.read()
            writer.close()
            await writer.wait_closed()
            forwarded.close()
            await forwarded.wait_closed()
        echoing.close()
        await echoing.wait_closed()
        return names, (tmp_path / "to").read_bytes(), back

    names, copied, back = same(program)
    assert (names, copied) == (["from", "to"], bytes(range(256)) * 4000)
    assert back == b"through the tunnel" * 10_000
