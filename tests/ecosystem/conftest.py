"""Programs over libraries that nobody here wrote, run on both loops; and the servers that they talk to.

A test gives its program to `same`, which runs it on the loop under test and compares the answer with the stock
loop's. Servers are started for one file of tests, without privileges, in a folder of their own, on loopback.

What is missing (a library, a server) is a skip that names it; where CI or FASTLOOP_REQUIRE_ALL is set, any skip in
this folder is a failure. tools/setup_servers.sh installs the servers, the extra 'ecosystem' the libraries.
"""

import asyncio
import contextlib
import ctypes
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

import helpers

NOTHING_IS_SKIPPED = any(os.environ.get(name, "").lower() in ("1", "true") for name in ("CI", "FASTLOOP_REQUIRE_ALL"))
#: Names to try for the account that runs a server when the tests run as root, which PostgreSQL refuses.
UNPRIVILEGED = ("nobody", "daemon")


def refuse_skip(report):
    if NOTHING_IS_SKIPPED and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"{reason} (nothing may be skipped here)"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    refuse_skip(report)
    return report


# ---------------------------------------------------------------- two loops, one answer


@pytest.fixture(scope="session")
def stock_answers():
    """What the programs answered on the stock loop, by test."""
    return {}


@pytest.fixture
def same(request, loop_name, loop, stock_answers, guard):
    """Run a program on the loop under test, check that its answer is the stock loop's, and return the answer.

    `program` is a coroutine function of no arguments, and its answer must hold nothing that differs from run to run.
    """

    def compare(program):
        params = {name: value for name, value in request.node.callspec.params.items() if name != "loop_name"}
        key = (request.node.path, request.node.originalname, str(sorted(params.items())))
        if loop_name != "stock" and key not in stock_answers:
            stock_answers[key] = run_on_stock(program, guard)
        answer = loop.run_until_complete(ended(program))
        assert answer == stock_answers.setdefault(key, answer)
        return answer

    return compare


async def ended(program):
    """The answer of a program, a moment after: libraries do not wait for all that they close."""
    answer = await program()
    await asyncio.sleep(0.05)
    return answer


def run_on_stock(program, guard):
    loop = helpers.new_loop("stock")
    try:
        answer = loop.run_until_complete(ended(program))
        guard.problems += helpers.settle(loop)
        return answer
    finally:
        loop.close()


@pytest.fixture
def certificate(authority, tmp_path):
    """Files for a TLS server called localhost: .chain and .key; authority.certificate is what a client trusts."""
    return write_certificate(authority, tmp_path)


class Certificate:
    def __init__(self, chain, key):
        self.chain, self.key = str(chain), str(key)


def write_certificate(authority, folder):
    issued = authority.authority.issue_cert("localhost", "127.0.0.1")
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    key.chmod(0o600)
    return Certificate(chain, key)


# ---------------------------------------------------------------- an ASGI server


@pytest.fixture
def uvicorn_server():
    """`async with uvicorn_server(app, **options) as port`: uvicorn in the running loop."""
    uvicorn = pytest.importorskip("uvicorn")

    @contextlib.asynccontextmanager
    async def serve(app, **options):
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, **options))
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            await helpers.until(lambda: server.started or serving.done())
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving
            listener.close()

    return serve


# ---------------------------------------------------------------- servers


def find_program(name, *patterns):
    """The path of a server's program: from PATH, or the newest of those that match the patterns."""
    found = [path for pattern in patterns for path in glob.glob(pattern)]
    found.sort(key=lambda path: [int(part) if part.isdigit() else 0 for part in path.split("/")])
    path = found[-1] if found else shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: tools/setup_servers.sh installs it")
    return path


def unprivileged():
    """The account that servers run as, or None for the one that runs the tests."""
    if os.getuid() != 0:
        return None
    for name in UNPRIVILEGED:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip(f"servers do not run as root, and there is no user {' or '.join(UNPRIVILEGED)}")


LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def end_with_the_tests():
    """In a server's process, before it becomes the server: have the kernel stop it when the tests are killed."""
    if hasattr(LIBC, "prctl"):
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGINT)


class ServerFolder:
    """A folder that belongs to the account that servers run as; not below tmp_path, which is closed to others.

    `path` is short, so that Unix sockets fit in it.
    """

    def __init__(self):
        self.account = unprivileged()
        self.path = Path(tempfile.mkdtemp(prefix="fastloop-"))
        self.processes = []

    def hand_over(self):
        """Give everything in the folder to the account of the server."""
        if self.account is not None:
            for path in [self.path, *self.path.rglob("*")]:
                os.chown(path, self.account.pw_uid, self.account.pw_gid)

    def options(self):
        options = {"cwd": self.path, "stdin": subprocess.DEVNULL, "env": {**os.environ, "HOME": str(self.path)}}
        if self.account is not None:
            options.update(user=self.account.pw_uid, group=self.account.pw_gid, extra_groups=[])
        return options

    def run(self, *command):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **self.options())
        assert done.returncode == 0, done.stdout

    def start(self, is_ready, *command):
        """Start a server and wait until is_ready()."""
        with open(self.path / "log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=end_with_the_tests, **self.options())
        self.processes.append(process)
        deadline = time.monotonic() + 30
        while not is_ready():
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, f"{command[0]} did not start:\n{(self.path / 'log').read_text()}"
            time.sleep(0.01)

    def stop(self):
        """Stop what was started (by the signal that is PostgreSQL's fast shutdown) and remove the folder."""
        try:
            for process in self.processes:
                process.send_signal(signal.SIGINT)
                process.wait(20)
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
            shutil.rmtree(self.path)


class Endpoint:
    """Where a server listens: .port and .tls_port on 127.0.0.1, .folder of its Unix socket, .socket its path."""

    host = "127.0.0.1"

    def __init__(self, folder, port, tls_port=None, socket=None):
        self.folder, self.port, self.tls_port, self.socket = str(folder), port, tls_port, socket


@pytest.fixture(scope="module")
def postgres(authority):
    """A PostgreSQL server with TLS, user and database 'tester', no password."""
    initdb = find_program("initdb", "/usr/lib/postgresql/*/bin/initdb")
    folder = ServerFolder()
    try:
        certificate = write_certificate(authority, folder.path)
        folder.hand_over()
        data = folder.path / "data"
        folder.run(initdb, "-D", str(data), "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        port = helpers.free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": folder.path,
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "16MB",
            "max_connections": 30,
            "autovacuum": "off",
            "ssl": "on",
            "ssl_cert_file": certificate.chain,
            "ssl_key_file": certificate.key,
        }
        pid_file = data / "postmaster.pid"
        folder.start(
            lambda: pid_file.exists() and pid_file.read_text().split()[-1:] == ["ready"],
            str(Path(initdb).with_name("postgres")),
            *("-D", str(data)),
            *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
        )
        yield Endpoint(folder.path, port)
    finally:
        folder.stop()


@pytest.fixture(scope="module")
def redis_server(authority):
    """A Redis server that keeps nothing, on TCP, TLS and a Unix socket."""
    program = find_program("redis-server")
    folder = ServerFolder()
    try:
        certificate = write_certificate(authority, folder.path)
        shutil.copy(authority.certificate, folder.path / "authority.pem")
        folder.hand_over()
        endpoint = Endpoint(folder.path, helpers.free_port(), helpers.free_port(), str(folder.path / "redis.sock"))
        settings = {
            "bind": "127.0.0.1",
            "port": endpoint.port,
            "tls-port": endpoint.tls_port,
            "tls-cert-file": certificate.chain,
            "tls-key-file": certificate.key,
            "tls-ca-cert-file": folder.path / "authority.pem",
            "tls-auth-clients": "no",
            "unixsocket": endpoint.socket,
            "save": "",
            "appendonly": "no",
        }
        folder.start(
            lambda: "Ready to accept connections" in (folder.path / "log").read_text(),
            *(program, *(word for name, value in settings.items() for word in (f"--{name}", str(value)))),
        )
        yield endpoint
    finally:
        folder.stop()
