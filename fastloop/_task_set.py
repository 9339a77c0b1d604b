"""What asyncio's set of all tasks becomes, up to Python 3.13.

asyncio keeps this class, and with it this module, for as long as its own set lives; and where asyncio outlives its
subinterpreter, so does what this module refers to: nothing else of fastloop.
"""

import weakref


class TaskSet(weakref.WeakSet):
    """Shows the native tasks, which keep their own list, besides its own."""

    def __iter__(self):
        yield from _native_tasks(self)
        yield from super().__iter__()

    def __len__(self):
        return super().__len__() + len(_native_tasks(self))

    def __contains__(self, item):
        return super().__contains__(item) or any(item is task for task in _native_tasks(self))


def _native_tasks(task_set):
    return [task for lister in task_set.__dict__.get("_fastloop_listers", ()) for task in lister()]
