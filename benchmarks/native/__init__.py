"""The programs in C: building them, sockets for them, and what TLS needs."""

import platform
import shutil
import socket
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent
ROOT = SOURCES.parents[1]
# Containers of several distributions may share the folder: programs of a newer C library do not run with an older one.
BUILD = ROOT / "build" / f"benchmarks-{platform.machine()}-{'-'.join(platform.libc_ver())}"

# Connections that the load opens at once and the server has not accepted yet.
BACKLOG = 4096

LOAD, ECHO = BUILD / "load", BUILD / "echo"


def build():
    """Compile what is out of date and make the certificate. Raises SystemExit with what is missing."""
    if shutil.which("make") is None:
        raise SystemExit("the benchmarks need make and a C compiler (Debian: apt-get install make gcc)")
    made = subprocess.run(["make", "-s", "-C", SOURCES, f"OUT={BUILD}"], capture_output=True, text=True)
    if made.returncode != 0:
        raise SystemExit(made.stderr)
    if not certificate().exists():
        import trustme

        trustme.CA().issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate())


def certificate():
    """File with the key and the chain that each TLS server here shows (ECDSA P-256)."""
    return BUILD / "certificate.pem"


def bind(kind, folder):
    """A socket for a server of this kind, and its address: (host, port), or a path below folder for "unix".

    Streams listen already: a loop may leave that to whoever hands it the socket.
    """
    if kind == "unix":
        path = str(Path(folder, "socket"))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(BACKLOG)
        return listener, path
    if kind == "udp":
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    else:
        # The standard loop sets TCP_NODELAY only where it sees this protocol number. Accepted sockets inherit the
        # option from the listener, so that each server has it.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(("127.0.0.1", 0))
    if kind != "udp":
        listener.listen(BACKLOG)
    return listener, listener.getsockname()
