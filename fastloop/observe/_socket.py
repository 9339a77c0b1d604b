"""The Unix socket on which a loop's metrics are served, and the other end of it.

Whoever connects is sent one JSON object and an end; nothing is ever read from him. A thread serves, so that a loop that
is stuck can be watched, and its counts are of the program alone. It knows the loop by a weak reference.
"""

import contextlib
import errno
import json
import os
import select
import socket
import stat
import threading
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastloop.loop import Loop

SEND_SECONDS = 1.0


class MetricsServer:
    """Serves the metrics of one loop at `path` until close()."""

    def __init__(self, loop: "Loop", path: str) -> None:
        self.path = _name_in(path) if os.path.isdir(path) else path
        # The program may change its folder.
        self._file = os.path.abspath(self.path)
        self.pid = os.getpid()
        self._loop = weakref.ref(loop)
        # First of all: some subinterpreters refuse it.
        self._thread: threading.Thread | None = threading.Thread(
            target=self._serve, name="fastloop-metrics", daemon=True
        )
        self._socket = _listen(self.path)
        self._identity = _identity(self._file)
        self._wake, self._woken = socket.socketpair()
        # Also for a loop that nobody closes, and at exit.
        self._finalizer = weakref.finalize(loop, self.close)
        try:
            self._thread.start()
        except BaseException:
            self._thread = None
            self.close()
            raise

    def close(self) -> None:
        """End the thread and take the socket's file away. In a forked child that file is the parent's, and stays."""
        self._finalizer.detach()
        forked = os.getpid() != self.pid
        if not forked and self._identity is not None and _identity(self._file) == self._identity:
            # A program that has given up its rights may be refused: the loop is closed none the less.
            with contextlib.suppress(OSError):
                os.unlink(self._file)
        self._identity = None
        thread, self._thread = self._thread, None
        if thread is not None and not forked:
            # Closing is not enough: a forked child may have a copy.
            with contextlib.suppress(OSError):
                self._wake.shutdown(socket.SHUT_WR)
        self._wake.close()
        if thread is None or forked:
            self._end()
        elif thread is not threading.current_thread():
            thread.join()

    def _end(self) -> None:
        self._socket.close()
        self._woken.close()

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        try:
            while all(fd != self._woken.fileno() for fd, _ in poll.poll()):
                self._answer()
        finally:
            self._end()

    def _answer(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                # It stays readable: not at once again.
                pause = select.poll()
                pause.register(self._woken, select.POLLIN)
                pause.poll(SEND_SECONDS * 1000)
            return
        with connection:
            connection.settimeout(SEND_SECONDS)
            loop = self._loop()
            if loop is None:
                return
            values = {"pid": self.pid, **loop.metrics()}
            del loop
            try:
                connection.sendall(json.dumps(values).encode() + b"\n")
            except OSError:
                # He went away, or does not read.
                pass


def _name_in(folder: str) -> str:
    """Return a path in a folder that no other loop's socket has."""
    number = 0
    while os.path.lexists(path := os.path.join(folder, f"fastloop-{os.getpid()}-{number}.sock")):
        number += 1
    return path


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells the file of a socket from another one of that name; None where there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def _listen(path: str) -> socket.socket:
    """Return a listening socket that only this user may connect to. A socket that nobody serves is replaced."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_dead(path):
                raise
            os.unlink(path)
            listener.bind(path)
        # Nobody can connect before listen().
        os.chmod(path, 0o600)
        listener.listen(16)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_dead(path: str) -> bool:
    if _identity(path) is None:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(SEND_SECONDS)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def fetch(path: str, seconds: float) -> "dict[str, Any]":
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(seconds)
        sock.connect(path)
        with sock.makefile("rb") as stream:
            answer = stream.readline(1 << 20)
    if not answer:
        raise ConnectionResetError(f"{path}: no metrics, but an end")
    try:
        values = json.loads(answer)
        if isinstance(values, dict):
            return values
    except ValueError:
        pass
    raise OSError(f"{path}: no metrics of a fastloop")
