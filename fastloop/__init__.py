"""fastloop: an asyncio event loop in C on libuv that runs existing programs faster without changing them.

    fastloop.run(main())
    asyncio.run(main(), loop_factory=fastloop.new_event_loop)
    fastloop.install()

Importing it changes nothing; only choosing the loop does.
"""

try:
    from fastloop._core import Future, Task, __version__, libuv_version
except ImportError as error:
    from fastloop._unsupported import explain

    raise ImportError(explain(error), name=error.name, path=error.path) from error
from fastloop.loop import Loop, new_event_loop
from fastloop.policy import EventLoopPolicy, install, uninstall
from fastloop.runner import run

__all__ = (
    "EventLoopPolicy",
    "Future",
    "Loop",
    "Task",
    "ThreadPool",
    "__version__",
    "install",
    "libuv_version",
    "new_event_loop",
    "run",
    "uninstall",
)


def __getattr__(name):
    # Its base class takes two milliseconds to import, and many programs use no threads.
    if name == "ThreadPool":
        from fastloop.pool import ThreadPool

        return ThreadPool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
