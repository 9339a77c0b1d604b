"""The check of the struct of Python's sockets: one field read wrongly, and the standard coroutines serve."""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.fastloop_only("what serves which call"), pytest.mark.usefixtures("debug_off")]

#: argv[1] is the class that stands in the place of socket.socket while fastloop is imported; each but the first makes
#: sockets that are not what they were asked for, or lie about it.
PROGRAM = """
import asyncio, socket, sys

plain = socket.socket


class Plain(plain):
    pass


class Family(plain):
    def __init__(self, family=-1, type=-1, proto=-1, fileno=None):
        super().__init__(socket.AF_INET, type, proto, fileno)


class Type(plain):
    def __init__(self, family=-1, type=-1, proto=-1, fileno=None):
        super().__init__(family, socket.SOCK_STREAM, proto, fileno)


class Proto(plain):
    def __init__(self, family=-1, type=-1, proto=-1, fileno=None):
        super().__init__(family, type, 1, fileno)


class Number(plain):
    def fileno(self):
        return super().fileno() + 1


class NoNumber(plain):
    def fileno(self):
        return -1


class NoTimeout(plain):
    def settimeout(self, value):
        pass


class SomeTimeout(plain):
    def settimeout(self, value):
        super().settimeout(value or 2.0)


class Open(plain):
    def close(self):
        pass


class Failing(plain):
    def close(self):
        raise OSError("close")


class Refusing(plain):
    def __init__(self, family=-1, type=-1, proto=-1, fileno=None):
        raise OSError("socket")


class Small:
    pass


def function(*args):
    raise OSError("socket")


socket.socket = kind = globals()[sys.argv[1]]
import fastloop

socket.socket = plain


async def main():
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    if isinstance(kind, type) and issubclass(kind, plain):
        sock = kind.__new__(kind)
        plain.__init__(sock, fileno=near.detach())
    else:
        sock = near
    plain.settimeout(sock, 0), far.setblocking(False)
    call = loop.sock_sendall(sock, b"data")
    served = type(call).__name__
    try:
        await call
        print(served, await loop.sock_recv(far, 10))
    finally:
        plain.close(sock), far.close()


fastloop.run(main())
"""

OTHERS = ["Family", "Type", "Proto", "Number", "NoNumber", "NoTimeout", "SomeTimeout", "Open", "Failing", "Refusing"]


@pytest.mark.parametrize("kind", [*OTHERS, "Small", "function"])
def test_sockets_of_another_make_are_left_alone(kind):
    assert served_by(kind) == "coroutine b'data'\n"


def test_sockets_that_are_as_known():
    assert served_by("Plain") == "SockOp b'data'\n"


def served_by(kind):
    # A socket that somebody leaves open is warned of.
    child = [sys.executable, "-W", "ignore::ResourceWarning", "-c", PROGRAM, kind]
    answer = subprocess.run(child, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout
