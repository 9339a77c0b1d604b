"""Servers of others on loopback, for cases that measure a client: Redis and PostgreSQL, each in a folder of its own."""

import contextlib
import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from fastloop._bench.process import CannotError

START_SECONDS = 30
ACCOUNTS = ("postgres", "redis", "nobody")


def find(name, pattern=None):
    found = shutil.which(name) or next(iter(sorted(glob.glob(pattern or ""), reverse=True)), None)
    if found is None:
        raise CannotError(f"{name} is not installed")
    return found


def account():
    """Options of subprocess for another account: these servers do not want to be root. And the account, or None."""
    if os.geteuid() != 0:
        return {}, None
    for name in ACCOUNTS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}, entry
    raise CannotError("there is no account for a server")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def redis(folder, options):
    port = free_port()
    return [find("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"], port


def postgres(folder, options):
    initdb = find("initdb", "/usr/lib/postgresql/*/bin/initdb")
    data, port = folder / "data", free_port()
    subprocess.run(
        [initdb, "-D", data, "-U", "bench", "-A", "trust", "--no-sync"], check=True, capture_output=True, **options
    )
    settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return [str(Path(initdb).with_name("postgres")), "-D", str(data), *words], port


KINDS = {"redis": redis, "postgres": postgres}


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def serving(kind, prefix):
    """The address of a server, ("127.0.0.1", port), for the time of one run; prefix is a command that runs it."""
    changes, entry = account()
    with tempfile.TemporaryDirectory(prefix="fastloop-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if entry is not None:
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        options = {"cwd": folder, "stdin": subprocess.DEVNULL, **changes}
        command, port = KINDS[kind](folder, options)
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([*prefix, *command], **silent, **options) as server:
            try:
                deadline = time.monotonic() + START_SECONDS
                while not answers(port):
                    if server.poll() is not None or time.monotonic() > deadline:
                        raise CannotError(f"{kind} did not start")
                    time.sleep(0.05)
                yield "127.0.0.1", port
            finally:
                server.kill() if kind == "redis" else server.terminate()
