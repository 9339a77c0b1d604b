"""connect_read_pipe and connect_write_pipe, and the basics of subprocesses."""

import asyncio
import gc
import os
import pty
import signal
import subprocess
import sys
import tempfile
from asyncio import unix_events

import pytest

from helpers import Recorder, socket_pair, turns, until

MIB = 1024 * 1024
PYTHON = sys.executable


class Ends(Recorder):
    """Of a write pipe's protocol only connection and flow are told."""


async def reading(loop, file):
    transport, protocol = await loop.connect_read_pipe(Recorder, file)
    return transport, protocol


def pipe():
    r, w = os.pipe()
    return os.fdopen(r, "rb", 0), os.fdopen(w, "wb", 0)


# ---------------------------------------------------------------- pipes


def test_reading_a_pipe_to_its_end(loop, run):
    async def main():
        r, w = pipe()
        transport, protocol = await reading(loop, r)
        assert isinstance(transport, asyncio.ReadTransport)
        assert transport.get_extra_info("pipe") is r
        w.write(b"one")
        await until(lambda: protocol.data == b"one")
        w.write(b"two")
        w.close()
        await until(lambda: protocol.lost)
        assert protocol.data == b"onetwo" and protocol.error is None
        assert protocol.story == ["connection_made", "data_received", "eof_received", "connection_lost"]
        assert r.closed and transport.is_closing()

    run(main())


def test_a_pipe_that_the_end_of_the_loop_drops(loop, run):
    r, w = pipe()

    async def main():
        await loop.connect_read_pipe(asyncio.Protocol, r)

    run(main())
    with pytest.warns(ResourceWarning, match="^unclosed transport <.*ReadPipeTransport fd=[0-9]+ idle>$"):
        loop.close()
        gc.collect()
    assert r.closed
    w.close()


def test_pausing_a_read_pipe(loop, run):
    async def main():
        r, w = pipe()
        transport, protocol = await reading(loop, r)
        transport.pause_reading()
        w.write(b"held")
        await asyncio.sleep(0.01)
        assert protocol.data == b""
        # That of Debian 12 cannot tell.
        assert "is_reading" not in vars(unix_events._UnixReadPipeTransport) or not transport.is_reading()
        transport.resume_reading()
        await until(lambda: protocol.data == b"held")
        transport.close()
        await until(lambda: protocol.lost)
        w.close()

    run(main())


def test_writing_to_a_pipe(loop, run):
    async def main():
        r, w = pipe()
        transport, protocol = await loop.connect_write_pipe(Ends, w)
        assert isinstance(transport, asyncio.WriteTransport)
        assert transport.get_extra_info("pipe") is w
        data = os.urandom(MIB)
        transport.write(data[:10])
        transport.write(bytearray(data[10:]))
        assert transport.get_write_buffer_size() > 0 and transport.can_write_eof()
        transport.write_eof()
        received = bytearray()
        os.set_blocking(r.fileno(), False)
        while len(received) < len(data):
            received += r.read(65536) or b""
            await asyncio.sleep(0)
        assert received == data
        await until(lambda: protocol.lost)
        assert protocol.error is None and w.closed
        assert protocol.events == ["connection_made", "pause_writing", "resume_writing", "connection_lost"]
        assert r.read() == b""
        r.close()

    run(main())


def test_a_broken_pipe(loop, run):
    async def main():
        r, w = pipe()
        transport, protocol = await loop.connect_write_pipe(Ends, w)
        r.close()
        await until(lambda: protocol.lost)
        transport.write(b"dropped")
        assert isinstance(protocol.error, (BrokenPipeError, type(None)))

    run(main())


def test_aborting_a_write_pipe_drops_the_rest(loop, run):
    async def main():
        r, w = pipe()
        transport, protocol = await loop.connect_write_pipe(Ends, w)
        transport.write(b"x" * MIB)
        transport.abort()
        await until(lambda: protocol.lost)
        assert len(r.read()) < MIB
        r.close()

    run(main())


def test_both_ends_of_a_pty(loop, run):
    async def main():
        master, slave = pty.openpty()
        master_file, slave_file = os.fdopen(master, "rb", 0), os.fdopen(slave, "wb", 0)
        read_transport, protocol = await reading(loop, master_file)
        write_transport, writer = await loop.connect_write_pipe(Ends, slave_file)
        write_transport.write(b"from the terminal\n")
        await until(lambda: protocol.data == b"from the terminal\r\n")
        write_transport.close()
        await until(lambda: writer.lost)
        read_transport.close()
        await until(lambda: protocol.lost)

    run(main())


def test_sockets_and_fifos_as_pipes(loop, run, tmp_path):
    async def main():
        ours, theirs = socket_pair("unix")
        transport, protocol = await reading(loop, ours)
        theirs.send(b"over a socket")
        await until(lambda: protocol.data == b"over a socket")
        theirs.close()
        await until(lambda: protocol.lost)
        path = str(tmp_path / "fifo")
        os.mkfifo(path)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        writer_transport, writer = await loop.connect_write_pipe(Ends, open(path, "wb", 0))
        _, reader = await reading(loop, os.fdopen(fd, "rb", 0))
        writer_transport.write(b"over a fifo")
        await until(lambda: reader.data == b"over a fifo")
        writer_transport.close()
        await until(lambda: reader.lost and writer.lost)

    run(main())


@pytest.mark.parametrize(
    "method, message",
    [
        ("connect_read_pipe", "Pipe transport is for pipes/sockets only."),
        ("connect_write_pipe", "Pipe transport is only for pipes, sockets and character devices"),
    ],
)
def test_a_regular_file_is_refused_and_stays_open(loop, run, method, message):
    with tempfile.TemporaryFile() as file:
        with pytest.raises(ValueError) as caught:
            run(getattr(loop, method)(Recorder, file))
        assert str(caught.value) == message
        assert not file.closed and os.fstat(file.fileno())


# ---------------------------------------------------------------- subprocesses


async def communicate(*arguments, data=None, **options):
    process = await asyncio.create_subprocess_exec(
        *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )
    output = await process.communicate(data)
    return process.returncode, *output


def test_input_output_and_exit_status(run):
    source = "import sys; data = sys.stdin.read(); print(data.upper()); print('error', file=sys.stderr); sys.exit(7)"
    assert run(communicate(PYTHON, "-c", source, data=b"hello")) == (7, b"HELLO\n", b"error\n")


def test_megabytes_through_cat(run):
    data = os.urandom(4 * MIB)
    assert run(communicate("cat", data=data)) == (0, data, b"")


def test_the_shell(run):
    async def main():
        process = await asyncio.create_subprocess_shell("echo $((20 + 3)); exit 5", stdout=subprocess.PIPE)
        assert await process.stdout.read() == b"23\n"
        assert await process.wait() == 5

    run(main())


@pytest.mark.parametrize("method, number", [("kill", signal.SIGKILL), ("terminate", signal.SIGTERM)])
def test_signals_to_the_child(run, method, number):
    async def main():
        process = await asyncio.create_subprocess_exec("sleep", "1000")
        getattr(process, method)()
        assert await process.wait() == -number
        with pytest.raises(ProcessLookupError):
            process.send_signal(signal.SIGTERM)

    run(main())


def test_many_children_at_once(run):
    async def main():
        codes = await asyncio.gather(*[communicate("sh", "-c", f"exit {i}") for i in range(20)])
        assert [code for code, _, _ in codes] == list(range(20))

    run(main())


def test_environment_folder_and_descriptors(run, tmp_path):
    async def main():
        r, w = os.pipe()
        code, output, _ = await communicate(
            PYTHON,
            "-c",
            "import os, sys; print(os.environ['VALUE'], os.getcwd()); os.write(int(sys.argv[1]), b'ok')",
            str(w),
            env={**os.environ, "VALUE": "given"},
            cwd=tmp_path,
            pass_fds=[w],
        )
        os.close(w)
        assert (code, output) == (0, f"given {tmp_path}\n".encode())
        assert os.read(r, 10) == b"ok"
        os.close(r)

    run(main())


def test_a_program_that_does_not_exist(run):
    with pytest.raises(FileNotFoundError):
        run(communicate("/no/such/program"))


@pytest.mark.parametrize(
    "option, message",
    [
        ({"universal_newlines": True}, "universal_newlines must be False"),
        ({"shell": True}, "shell must be False"),
        ({"bufsize": 5}, "bufsize must be 0"),
        ({"text": True}, "text must be False"),
        ({"encoding": "utf-8"}, "encoding must be None"),
        ({"errors": "strict"}, "errors must be None"),
    ],
)
def test_text_modes_are_refused(loop, run, option, message):
    with pytest.raises(ValueError, match=message):
        run(loop.subprocess_exec(asyncio.SubprocessProtocol, "true", **option))


def test_the_callbacks_of_a_subprocess_protocol(loop, run):
    class Notes(asyncio.SubprocessProtocol):
        def __init__(self):
            self.events = []
            self.output = b""

        def connection_made(self, transport):
            self.events.append("made")

        def pipe_data_received(self, fd, data):
            self.output += data

        def pipe_connection_lost(self, fd, error):
            self.events.append(f"pipe {fd} lost")

        def process_exited(self):
            self.events.append("exited")

        def connection_lost(self, error):
            self.events.append("lost")

    async def main():
        transport, protocol = await loop.subprocess_exec(Notes, "echo", "hello", stdin=None)
        assert isinstance(transport, asyncio.SubprocessTransport)
        assert transport.get_pid() > 0 and transport.get_pipe_transport(1) is not None
        assert isinstance(transport.get_extra_info("subprocess"), subprocess.Popen)
        await until(lambda: "lost" in protocol.events)
        assert protocol.events[0] == "made" and protocol.events[-1] == "lost"
        assert sorted(protocol.events[1:-1]) == ["exited", "pipe 1 lost", "pipe 2 lost"]
        assert protocol.output == b"hello\n" and transport.get_returncode() == 0
        transport.close()

    run(main())


def test_a_cancelled_wait_can_be_repeated(run):
    async def main():
        process = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.005)
        process.stdin.close()
        assert await process.wait() == 0
        await turns(2)

    run(main())
