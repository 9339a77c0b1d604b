from fastloop._core import Future as Future
from fastloop._core import Task as Task
from fastloop._core import __version__ as __version__
from fastloop._core import libuv_version as libuv_version
from fastloop.loop import Loop as Loop
from fastloop.loop import new_event_loop as new_event_loop
from fastloop.policy import EventLoopPolicy as EventLoopPolicy
from fastloop.policy import install as install
from fastloop.policy import uninstall as uninstall
from fastloop.pool import ThreadPool as ThreadPool
from fastloop.runner import run as run

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
