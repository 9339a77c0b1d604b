"""Cases that have another side in C, beside those of fastloop._bench.registry."""

from dataclasses import dataclass, field

from fastloop._bench.registry import DEFAULT, FULL, QUICK, Case, case, register

__all__ = ("DEFAULT", "FULL", "QUICK", "ClientCase", "ServerCase", "case", "client", "server")


@dataclass(frozen=True, kw_only=True)
class ClientCase(Case):
    """A client of the C server, or of one of peers.py. peer is the kind of server; its address is the last argument of
    run()."""

    peer: str


@dataclass(frozen=True, kw_only=True)
class ServerCase(Case):
    """A server that is put under load from outside.

    kind      "tcp", "unix", "udp" or "tls"
    load      options of native/load
    """

    kind: str
    load: dict = field(default_factory=dict)


def client(name, *, peer, group, unit, n, **options):
    """Declare a function as case() does, which is also given the address of a C server: (host, port), or a path for
    "unix"."""

    def declare(run):
        register(ClientCase(name=name, peer=peer, group=group, unit=unit, n=n, run=run, **options))
        return run

    return declare


def server(name, *, group, kind, n, unit="message", metrics=("cpu", "wall"), tier=DEFAULT, **load):
    """Declare a coroutine function as a server that native/load is turned on; load are options of that program.

    async def run(listener, tls)   starts to serve on a bound socket, with an SSLContext or None, and returns what must
                                   be kept alive, or serves until it is cancelled
    """

    def declare(run):
        about = {"name": name, "group": group, "unit": unit, "metrics": metrics, "tier": tier}
        register(ServerCase(**about, n=n, run=run, kind=kind, load=load))
        return run

    return declare
