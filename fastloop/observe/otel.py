"""The metrics of a loop for OpenTelemetry; needs opentelemetry-api, which the extra ``fastloop[otel]`` brings.

The instruments are observable: nothing is done between two collections. Names and units follow the semantic conventions
of OpenTelemetry, which have none for event loops of Python yet: those of Node.js ("nodejs.eventloop.time",
"nodejs.eventloop.delay.p50") are the pattern, and network.io.direction is its attribute.
"""

import weakref

from opentelemetry.metrics import Observation, get_meter_provider

import fastloop
from fastloop import observe

_RECEIVED = {"network.io.direction": "receive"}
_SENT = {"network.io.direction": "transmit"}
_STATES = (("active", ("run_seconds",)), ("idle", ("poll_seconds",)), ("interpreter_wait", ("gil_seconds",)))

#: name, unit, description, and (attributes, where the number is) of each series.
_COUNTERS = [
    ("fastloop.eventloop.turns", "{turn}", "Turns of the loop", [({}, ("turns",))]),
    ("fastloop.eventloop.callbacks", "{callback}", "Callbacks, task steps and jobs run", [({}, ("callbacks",))]),
    (
        "fastloop.eventloop.time",
        "s",
        "Time in which the loop was active, idle, or waiting for the interpreter",
        [({"fastloop.eventloop.state": state}, path) for state, path in _STATES],
    ),
    ("fastloop.network.io", "By", "Bytes moved", [(_RECEIVED, ("bytes_in",)), (_SENT, ("bytes_out",))]),
    (
        "fastloop.network.messages",
        "{message}",
        "Reads and sends that moved bytes, and datagrams",
        [(_RECEIVED, ("messages_in",)), (_SENT, ("messages_out",))],
    ),
    ("fastloop.executor.jobs", "{job}", "Jobs given to threads", [({}, ("executor", "jobs"))]),
]
_UP_DOWN_COUNTERS = [
    ("fastloop.tasks", "{task}", "Tasks that are not done", [({}, ("tasks",))]),
    ("fastloop.eventloop.ready", "{callback}", "Callbacks that wait for their turn", [({}, ("ready",))]),
    ("fastloop.eventloop.timers", "{timer}", "Timers that are scheduled", [({}, ("timers",))]),
    ("fastloop.executor.jobs.queued", "{job}", "Jobs that wait for a thread", [({}, ("executor", "queued"))]),
    ("fastloop.executor.jobs.running", "{job}", "Jobs that a thread works on", [({}, ("executor", "running"))]),
]
_GAUGES = [
    (f"fastloop.{name}.{key}", "s", f"{text} ({key})", [({}, (*path, key))])
    for name, text, path in [
        ("eventloop.delay", "How late timers run", ("lag",)),
        ("eventloop.turn", "How long turns run", ("turn",)),
        ("executor.wait", "How long jobs wait for a thread", ("executor", "wait")),
    ]
    for key in ("p50", "p90", "p99", "max")
]


def instrument(loop, meter_provider=None, attributes=None):
    """Make observable instruments of loop.metrics(), and switch timing on.

    meter_provider is the global one by default. attributes are given to each observation: loops that share a provider
    need different ones. A loop that is gone or closed is no longer observed.
    """
    loop.set_metrics(True)
    meter = (meter_provider or get_meter_provider()).get_meter("fastloop", fastloop.__version__)
    reference = weakref.ref(loop)
    for create, table in [
        (meter.create_observable_counter, _COUNTERS),
        (meter.create_observable_up_down_counter, _UP_DOWN_COUNTERS),
        (meter.create_observable_gauge, _GAUGES),
    ]:
        for name, unit, text, series in table:
            create(name, [_callback(reference, series, attributes or {})], unit=unit, description=text)
    handles = [_handles_callback(reference, attributes or {})]
    meter.create_observable_up_down_counter("fastloop.handles", handles, unit="{handle}", description="Open handles")


def _metrics_of(reference):
    loop = reference()
    return None if loop is None or loop.is_closed() else loop.metrics()


def _callback(reference, series, attributes):
    def observe_series(options):
        values = _metrics_of(reference)
        found = [(observe.find(values, path), extra) for extra, path in series]
        return [Observation(value, {**attributes, **extra}) for value, extra in found if value is not None]

    return observe_series


def _handles_callback(reference, attributes):
    def observe_handles(options):
        handles = (_metrics_of(reference) or {}).get("handles") or {}
        return [Observation(count, {**attributes, "fastloop.handle.kind": kind}) for kind, count in handles.items()]

    return observe_handles
