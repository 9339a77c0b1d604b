"""Programs under sentry-sdk, OpenTelemetry and ddtrace, which replace the task factory, create_task or the executor.

The instrumentation is global: each run is a child process, which writes what the instrumentation saw. Both loops must
have the same history.
"""

import importlib.util

import pytest

PROGRAM = """
import asyncio, contextvars, gc, json

variable = contextvars.ContextVar("variable", default="unset")
history = []


def note(*what):
    history.append([str(part) for part in what])


async def child(number):
    variable.set(number)
    note("child", number, asyncio.current_task().get_name())
    await asyncio.sleep(0)
    if number % 3 == 2:
        raise ValueError(number)
    await asyncio.sleep(0.001 * number)
    return number


async def answer(number):
    return number


async def forever():
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError as exc:
        note("cancelled", *exc.args)
        raise


async def program():
    gc.disable()
    loop = asyncio.get_running_loop()
    variable.set("main")
    note(await asyncio.gather(*[child(number) for number in range(4)], return_exceptions=True))
    try:
        async with asyncio.TaskGroup() as group:
            named = group.create_task(child(1), name="named")
            group.create_task(child(5), name="failing")
    except ExceptionGroup as exc:
        note(exc.exceptions, named.cancelled())
    task = loop.create_task(forever(), name="forever")
    await asyncio.sleep(0)
    task.cancel("enough")
    note(await asyncio.gather(task, return_exceptions=True), task.cancelled(), variable.get())
    try:
        await asyncio.wait_for(forever(), 0.01)
    except TimeoutError:
        note("timed out")
    note(await asyncio.to_thread(variable.get), await loop.run_in_executor(None, sum, (1, 2)))
    context = contextvars.copy_context()
    task = loop.create_task(child(6), context=context)
    note(await task, context[variable], task.get_name())
    done, pending = await asyncio.wait([asyncio.ensure_future(child(7))])
    note(len(done), len(pending), len(asyncio.all_tasks()))
    note(sorted([await one for one in asyncio.as_completed([child(0), answer(9)])]))
    task = loop.create_task(child(8))
    del task
    await asyncio.sleep(0.02)
    # What a tracer wraps may be part of a cycle.
    gc.collect()


def names_without_numbers():
    return [["Task-N" if part.startswith("Task-") else part for part in what] for what in history]
"""

SENTRY = (
    PROGRAM
    + """
import sentry_sdk
from sentry_sdk.integrations.asyncio import AsyncioIntegration

seen = []


class Transport(sentry_sdk.transport.Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            event = item.payload.json or {}
            if item.type == "event":
                value = event["exception"]["values"][-1]
                seen.append([value["type"], value["value"], value["mechanism"]["type"]])
            elif item.type == "transaction":
                seen.append([event["transaction"], *sorted(str(span["description"]) for span in event["spans"])])


async def main():
    sentry_sdk.init(dsn="http://key@localhost/1", transport=Transport, traces_sample_rate=1.0,
                    default_integrations=False, integrations=[AsyncioIntegration()])
    with sentry_sdk.start_transaction(name="all"):
        await program()

loop = new_event_loop()
loop.set_exception_handler(lambda loop, context: note(context["message"]))
loop.run_until_complete(main())
factory = loop.get_task_factory()
loop.close()
print(json.dumps([names_without_numbers(), seen, factory is not None]))
"""
)

TELEMETRY = (
    PROGRAM
    + """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("test")
INSTRUMENT


async def main():
    with tracer.start_as_current_span("all"):
        await program()

        def inside():
            with tracer.start_as_current_span("in the thread"):
                pass

        await asyncio.get_running_loop().run_in_executor(None, inside)
        await asyncio.to_thread(inside)

loop = new_event_loop()
loop.set_exception_handler(lambda loop, context: note(context["message"]))
loop.run_until_complete(main())
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
spans = exporter.get_finished_spans()
names = {span.context.span_id: span.name for span in spans}
parents = [names.get(span.parent.span_id) if span.parent else None for span in spans]
seen = [[span.name, span.status.status_code.name, parent] for span, parent in zip(spans, parents)]
print(json.dumps([names_without_numbers(), sorted(map(str, seen))]))
"""
)

ASYNCIO = """
import os
os.environ["OTEL_PYTHON_ASYNCIO_COROUTINE_NAMES_TO_TRACE"] = "child,forever"
os.environ["OTEL_PYTHON_ASYNCIO_FUTURE_TRACE_ENABLED"] = "true"
os.environ["OTEL_PYTHON_ASYNCIO_TO_THREAD_FUNCTION_NAMES_TO_TRACE"] = "inside"
from opentelemetry.instrumentation.asyncio import AsyncioInstrumentor
AsyncioInstrumentor().instrument()
"""

THREADING = """
from opentelemetry.instrumentation.threading import ThreadingInstrumentor
ThreadingInstrumentor().instrument()
"""

DATADOG = (
    PROGRAM
    + """
import os
os.environ.update(DD_TRACE_STARTUP_LOGS="false", DD_INSTRUMENTATION_TELEMETRY_ENABLED="false",
                  DD_REMOTE_CONFIGURATION_ENABLED="false")
import ddtrace
from ddtrace import patch
from ddtrace.trace import TraceFilter, tracer

seen = []


class Keep(TraceFilter):
    def process_trace(self, spans):
        names = {span.span_id: span.name for span in spans}
        seen.extend([span.name, names.get(span.parent_id)] for span in spans)
        return None


tracer.configure(trace_processors=[Keep()])
patch(asyncio=True, futures=True)


async def traced(number):
    with tracer.trace(f"traced {number}"):
        await asyncio.sleep(0)


async def main():
    with tracer.trace("all"):
        await program()
        await asyncio.gather(*[traced(number) for number in range(3)])

        def inside():
            with tracer.trace("in the thread"):
                pass

        await asyncio.get_running_loop().run_in_executor(None, inside)
        await asyncio.to_thread(inside)

loop = new_event_loop()
loop.set_exception_handler(lambda loop, context: note(context["message"]))
loop.run_until_complete(main())
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
print(json.dumps([names_without_numbers(), sorted(map(str, seen))]))
"""
)

OTEL, OTEL_ASYNCIO, OTEL_THREADING = (
    f"opentelemetry.{name}" for name in ("sdk", "instrumentation.asyncio", "instrumentation.threading")
)

NOTHING = (
    PROGRAM
    + """
loop = new_event_loop()
loop.set_exception_handler(lambda loop, context: note(context["message"]))
loop.run_until_complete(program())
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
print(json.dumps(names_without_numbers()))
"""
)

SCRIPTS = {
    "sentry": ("sentry_sdk", SENTRY),
    "opentelemetry-asyncio": (OTEL_ASYNCIO, TELEMETRY.replace("INSTRUMENT", ASYNCIO)),
    "opentelemetry-threading": (OTEL_THREADING, TELEMETRY.replace("INSTRUMENT", THREADING)),
    "opentelemetry-both": (OTEL_THREADING, TELEMETRY.replace("INSTRUMENT", ASYNCIO + THREADING)),
    "ddtrace": ("ddtrace", DATADOG),
    "nothing": ("asyncio", NOTHING),
}


def is_there(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


@pytest.mark.parametrize("name", SCRIPTS)
def test_same_history(name, python, loop_name, stock_answers):
    module, script = SCRIPTS[name]
    needed = [module, OTEL, OTEL_ASYNCIO] if module.startswith("opentelemetry") else [module]
    for module in needed:
        if not is_there(module):
            pytest.skip(f"needs {module}")
    answer = python(script)
    assert "timed out" in answer
    if loop_name == "stock":
        stock_answers[name] = answer
    elif name in stock_answers:
        assert answer == stock_answers[name]
