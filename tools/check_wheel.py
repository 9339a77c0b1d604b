"""Run by check_wheel.sh inside a system root that lacks nearly everything: the installed fastloop has to work there."""

import asyncio
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

import fastloop

MAXIMUM_BYTES = 1_500_000
CLIENTS = 20


def raise_loopback():
    """Switch the loopback interface on: in a fresh network namespace it is off."""
    siocsifflags, iff_up = 0x8914, 1
    with socket.socket() as control:
        fcntl.ioctl(control, siocsifflags, struct.pack("16sh14x", b"lo", iff_up))


def strangers():
    """What must not be here for the check to mean anything: compilers, and a libuv outside the installed package."""
    found = [tool for tool in ("cc", "gcc", "clang", "ld", "pkg-config", "sh") if shutil.which(tool)]
    venv = Path(sys.prefix)
    for folder, _, names in os.walk("/"):
        if not folder.startswith(("/proc", "/dev")) and venv not in (Path(folder), *Path(folder).parents):
            found += [f"{folder}/{name}" for name in names if name.startswith("libuv")]
    return found


async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()


async def client(port, number):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello %d\n" % number)
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer


async def main():
    assert isinstance(asyncio.get_running_loop(), fastloop.Loop)
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, asyncio.timeout(30), asyncio.TaskGroup() as group:
        tasks = [group.create_task(client(port, number)) for number in range(CLIENTS)]
        thread = group.create_task(asyncio.to_thread(sum, range(1000)))
        await asyncio.sleep(0.01)
    assert [task.result() for task in tasks] == [b"HELLO %d\n" % number for number in range(CLIENTS)]
    assert thread.result() == 499500


raise_loopback()
assert strangers() == [], strangers()
fastloop.run(main())
site = Path(sysconfig.get_path("platlib"))
size = sum(path.stat().st_size for path in site.glob("fastloop*/**/*") if path.is_file() and path.suffix != ".pyc")
assert size < MAXIMUM_BYTES, size
licences = [path.name for path in site.glob("fastloop-*.dist-info/**/LICENSE*")]
assert sorted(licences) == ["LICENSE", "LICENSE.libuv"], licences
(bill,) = (json.loads(path.read_text()) for path in site.glob("fastloop-*.dist-info/sboms/fastloop.cdx.json"))
carried = [(part["name"], part["version"]) for part in bill["components"]]
assert carried == [("libuv", fastloop.libuv_version)], carried
# The benchmarks need nothing else, either: a table, and no chart.
bench = [sys.executable, "-I", "-m", "fastloop", "bench", "--rounds", "1", "--part", "0.01", "--case", "call_soon/*"]
table = subprocess.run(bench, check=True, capture_output=True, text=True).stdout
assert "fastloop against asyncio" in table, table
print(f"fastloop {fastloop.__version__} with libuv {fastloop.libuv_version} works on Python {sys.version.split()[0]} "
      f"without anything else; {size / 1e6:.2f} MB installed")  # fmt: skip
