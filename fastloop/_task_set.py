"""What asyncio's set of all tasks becomes, up to Python 3.13.

asyncio keeps this class, and with it this module, for as long as its own set lives; and where asyncio outlives its
subinterpreter, so does what this module refers to: nothing else of fastloop.
"""

import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator
    from typing import Any

    _WeakSet = weakref.WeakSet[asyncio.Task[Any]]
else:
    _WeakSet = weakref.WeakSet


class TaskSet(_WeakSet):
    """Shows the native tasks, which keep their own list, besides its own."""

    def __iter__(self) -> "Iterator[asyncio.Task[Any]]":
        yield from _native_tasks(self)
        yield from super().__iter__()

    def __len__(self) -> int:
        return super().__len__() + len(_native_tasks(self))

    def discard(self, item: "asyncio.Task[Any]") -> None:
        for forget in self.__dict__.get("_fastloop_forgetters", ()):
            forget(item)
        super().discard(item)

    def __contains__(self, item: object) -> bool:
        return super().__contains__(item) or any(item is task for task in _native_tasks(self))


def _native_tasks(task_set: TaskSet) -> "list[asyncio.Task[Any]]":
    return [task for lister in task_set.__dict__.get("_fastloop_listers", ()) for task in lister()]
