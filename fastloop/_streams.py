"""The class that a standard StreamReader becomes when one of our transports serves it; used by src/io/ only.

Its coroutines are ordinary ones around a function of the core each, so that inspect, tasks, tracebacks and warnings
find what they know. The state stays in the attributes of the standard class, and so does everything that is not here.
"""

import asyncio
from asyncio import streams
from asyncio.exceptions import IncompleteReadError, LimitOverrunError
from types import FunctionType

from fastloop._core import _stream_read, _stream_read_exactly, _stream_read_until

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    class stock_reader(asyncio.StreamReader):
        _buffer: bytearray
        _waiter: asyncio.Future[None] | None

        def _maybe_resume_transport(self) -> None: ...

else:
    stock_reader = asyncio.StreamReader
stock_protocol = asyncio.StreamReaderProtocol
stock_readexactly = stock_reader.readexactly
stock_readuntil = stock_reader.readuntil

# What StreamReader.__init__() sets. The core looks at nothing else, and at the number of them.
READER_FIELDS = {"_limit", "_loop", "_buffer", "_eof", "_waiter", "_exception", "_transport", "_paused"}


class StreamReader(stock_reader):
    """asyncio.StreamReader, with what is called for every message in C."""

    __slots__ = ()
    __module__ = stock_reader.__module__
    __doc__ = stock_reader.__doc__

    # A core function returns bytes, or a future that has become `_waiter`, or None: then the standard method serves,
    # the present one before a wait, and after it the one that would have been waiting.
    # The types are in comments, since the standard methods have none that inspect.signature() shows.

    async def read(self, n=-1):
        # type: (int) -> bytes
        found = _stream_read(self, n, False)
        if type(found) is bytes:
            return found
        if found is None:
            return await super().read(n)
        try:
            await found
        finally:
            self._waiter = None
        data = _stream_read(self, n, True)
        if data is None:
            # Something was replaced while we were waiting.
            data = bytes(memoryview(self._buffer)[:n])
            del self._buffer[:n]
            self._maybe_resume_transport()
        return data

    async def readexactly(self, n):
        # type: (int) -> bytes
        found = _stream_read_exactly(self, n, False)
        if found is None:
            return await super().readexactly(n)
        while type(found) is not bytes:
            try:
                await found
            finally:
                self._waiter = None
            found = _stream_read_exactly(self, n, True)
            if found is None:
                return await stock_readexactly(self, n)
        return found

    async def readuntil(self, separator=b"\n"):
        # type: (Any) -> bytes
        found = _stream_read_until(self, separator, -1)
        if found is None:
            return await super().readuntil(separator)
        while type(found) is not bytes:
            waiter, scanned = found
            try:
                await waiter
            finally:
                self._waiter = None
            found = _stream_read_until(self, separator, scanned)
            if found is None:
                return await stock_readuntil(self, separator)
        return found

    async def readline(self):
        # type: () -> bytes
        try:
            found = _stream_read_until(self, b"\n", -1)
            if found is None:
                return await super().readline()
            while type(found) is not bytes:
                waiter, scanned = found
                try:
                    await waiter
                finally:
                    self._waiter = None
                found = _stream_read_until(self, b"\n", scanned)
                if found is None:
                    return await stock_readuntil(self, b"\n")
            return found
        except IncompleteReadError as exc:
            return exc.partial
        except LimitOverrunError as exc:
            if self._buffer.startswith(b"\n", exc.consumed):
                del self._buffer[: exc.consumed + 1]
            else:
                self._buffer.clear()
            self._maybe_resume_transport()
            raise ValueError(exc.args[0])  # noqa: B904 (the standard one chains it the same way)


for name, method in vars(StreamReader).items():
    if isinstance(method, FunctionType):
        method.__doc__ = getattr(stock_reader, name).__doc__


def functions_of(cls: type) -> "dict[str, FunctionType | property | None]":
    """Every name in the class's own namespace, with the functions and properties themselves and None for others."""
    return {name: value if isinstance(value, (FunctionType, property)) else None for name, value in vars(cls).items()}


originals: "dict[type[Any], dict[str, FunctionType | property | None]]" = {
    cls: functions_of(cls) for cls in (StreamReader, stock_reader, stock_protocol)
}


def is_original(cls: type) -> bool:
    """Are the methods of a class, and of the standard one behind ours, still what they were at import?"""
    if cls is StreamReader and not is_original(stock_reader):
        return False
    # Reading an attribute gives the class a version number, by which the core knows it the next time.
    return cls.__name__ is not None and functions_of(cls) == originals[cls]


class QuietLoop:
    def get_debug(self) -> bool:
        return False


def is_known() -> bool:
    """Are the standard classes made as the core knows them, and of asyncio's own functions alone?"""
    for cls in (stock_reader, stock_protocol):
        for value in originals[cls].values():
            function = value.fget if isinstance(value, property) else value
            if function is not None and function.__globals__ is not vars(streams):
                return False
    return vars(stock_reader(loop=QuietLoop())).keys() == READER_FIELDS  # type: ignore[arg-type]
