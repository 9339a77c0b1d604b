"""To see what a loop does: its metrics as text and on a Unix socket, and what a slow-callback hook is given.

The core counts (src/sched/metrics.h); this is imported when it is first asked for.
"""

import asyncio
import os
import warnings

from fastloop import _compat

__all__ = ("SlowCallback", "fetch", "prometheus_text", "serve", "stop_serving")

#: What FASTLOOP_METRICS may hold besides the path of a socket.
_WORDS = {"": None, "0": None, "no": None, "off": None, "false": None, "1": True, "yes": True, "on": True, "true": True}


def read(loop):
    """Return what loop.metrics() returns."""
    values = loop._read_metrics()
    values["tasks"] = count_tasks(loop)
    handles = loop._count_handles()
    if handles is not None:
        handles["signals"] = len(loop._signal_handlers)
        handles["children"] = len(loop._children)
    values["handles"] = handles
    return values


def count_tasks(loop):
    """Return how many tasks are not done; None if another thread changes them all the time."""
    try:
        return len(asyncio.all_tasks(loop))
    except RuntimeError:
        return None


def start(loop, wish):
    """Do what FASTLOOP_METRICS asks for: switch timing on, and serve the numbers if it is a path."""
    word = _WORDS.get(wish.strip().lower(), wish)
    if word is None:
        return
    loop.set_metrics(True)
    if word is not True:
        try:
            serve(loop, word)
        except (OSError, RuntimeError) as error:
            # RuntimeError: there can be no more threads, or none of this kind in a subinterpreter.
            warnings.warn(f"FASTLOOP_METRICS={wish}: {error}", RuntimeWarning, stacklevel=3)


def serve(loop, path):
    """Serve loop.metrics() on a Unix socket until the loop is closed; return the path of the socket.

    A folder is given a socket named after the process. Only the user may connect (mode 0600), and nothing is read.
    Switches timing on. Raises OSError when there is another file or server, RuntimeError when the loop is closed or
    has a socket.
    """
    from fastloop.observe._socket import MetricsServer

    loop._check_closed()
    if loop._metrics_server is not None:
        raise RuntimeError("the loop's metrics are being served")
    server = MetricsServer(loop, os.fspath(path))
    loop._metrics_server = server
    loop.set_metrics(True)
    return server.path


def stop_serving(loop):
    """Close the socket of serve(), if there is one."""
    server, loop._metrics_server = loop._metrics_server, None
    if server is not None:
        server.close()


def fetch(path, seconds=5.0):
    """Return the metrics that serve() serves at `path`, as a dict with the number `pid` of the process.

    Raises OSError, also for an answer that makes no sense; TimeoutError if there is none for so many seconds.
    """
    from fastloop.observe import _socket

    return _socket.fetch(os.fspath(path), seconds)


class SlowCallback:
    """What a slow-callback hook is told.

    seconds  how long it took
    handle   the asyncio.Handle that ran, or None
    task     the asyncio.Task whose step it was, or None
    source   the handle, the task, or the transport whose protocol was called; or the future of a job, or an object of
             fastloop's own: that of a listening socket or of a sock_*() call
    """

    __slots__ = ("handle", "seconds", "source", "task")

    def __init__(self, source, seconds):
        self.source = source
        self.seconds = seconds
        self.task = _task_of(source)
        self.handle = source if isinstance(source, asyncio.Handle) else None

    def __repr__(self):
        return f"<{type(self).__name__} {self.seconds:.3f} s {self.source!r}>"

    def call_graph(self):
        """Return as text where the task stands now and who awaits it; "" without a task.

        From Python 3.14 on it is asyncio.format_call_graph(), before that the task's own stack.
        """
        return "" if self.task is None else _compat.format_task(self.task)


def _task_of(source):
    if asyncio.isfuture(source):
        return source if isinstance(source, asyncio.Task) else None
    # A step of a task that is not ours is a method of it.
    owner = getattr(getattr(source, "_callback", None), "__self__", None)
    return owner if isinstance(owner, asyncio.Task) else None


# ---- Prometheus ----

#: name, type, help, and where the number is.
_FAMILIES = [
    ("turns_total", "counter", "Turns of the loop.", ("turns",)),
    ("callbacks_total", "counter", "Handles, task steps and finished jobs that ran.", ("callbacks",)),
    ("tasks", "gauge", "Tasks that are not done.", ("tasks",)),
    ("ready", "gauge", "Callbacks that wait for their turn.", ("ready",)),
    ("timers", "gauge", "Timers that are scheduled.", ("timers",)),
    ("received_bytes_total", "counter", "Bytes that came in.", ("bytes_in",)),
    ("sent_bytes_total", "counter", "Bytes that went out.", ("bytes_out",)),
    ("received_messages_total", "counter", "Reads that brought something.", ("messages_in",)),
    ("sent_messages_total", "counter", "Sends that took something.", ("messages_out",)),
    ("jobs_total", "counter", "Jobs given to threads.", ("executor", "jobs")),
    ("jobs_queued", "gauge", "Jobs that wait for a thread.", ("executor", "queued")),
    ("jobs_running", "gauge", "Jobs that a thread works on.", ("executor", "running")),
    ("poll_seconds_total", "counter", "Time spent waiting for events.", ("poll_seconds",)),
    ("gil_seconds_total", "counter", "Time spent waiting for the interpreter.", ("gil_seconds",)),
    ("run_seconds_total", "counter", "Time spent running.", ("run_seconds",)),
]
_SUMMARIES = [
    ("lag_seconds", "How late timers ran.", ("lag",)),
    ("turn_seconds", "How long turns ran.", ("turn",)),
    ("job_wait_seconds", "How long jobs waited for a thread.", ("executor", "wait")),
]
QUANTILES = {"p50": "0.5", "p90": "0.9", "p99": "0.99"}


def find(values, path):
    """Return what stands in nested dicts under these keys, or None."""
    for key in path:
        values = None if values is None else values[key]
    return values


def prometheus_text(*loops, labels=None):
    """Return the metrics of loops in the text format of Prometheus.

    Each loop may be a mapping that loop.metrics() returned. labels are given to every sample; with several loops each
    sample also has the label ``loop``, a number from 0 on.
    """
    snapshots = [loop if isinstance(loop, dict) else loop.metrics() for loop in loops]
    lines = []
    for name, kind, text, path in _FAMILIES:
        samples = [("", {}, find(values, path)) for values in snapshots]
        _add_family(lines, name, kind, text, [[sample] for sample in samples], labels)
    handles = [[("", {"kind": kind}, count) for kind, count in (v["handles"] or {}).items()] for v in snapshots]
    _add_family(lines, "handles", "gauge", "Open handles.", handles, labels)
    for name, text, path in _SUMMARIES:
        samples = [_summary_samples(find(values, path)) for values in snapshots]
        _add_family(lines, name, "summary", text, samples, labels)
    return "".join(lines)


def _summary_samples(summary):
    if summary is None:
        return []
    samples = [("", {"quantile": number}, summary[key]) for key, number in QUANTILES.items()]
    return [*samples, ("_sum", {}, summary["sum"]), ("_count", {}, summary["count"])]


def _add_family(lines, name, kind, text, samples_of_loops, labels):
    head = [f"# HELP fastloop_{name} {text}\n", f"# TYPE fastloop_{name} {kind}\n"]
    for number, samples in enumerate(samples_of_loops):
        own = {"loop": str(number)} if len(samples_of_loops) > 1 else {}
        for suffix, extra, value in samples:
            if value is not None:
                marks = _format_labels({**(labels or {}), **own, **extra})
                lines += [*head, f"fastloop_{name}{suffix}{marks} {value}\n"]
                head = []


def _format_labels(labels):
    def escape(value):
        return str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return "{" + ",".join(f'{name}="{escape(value)}"' for name, value in labels.items()) + "}" if labels else ""
