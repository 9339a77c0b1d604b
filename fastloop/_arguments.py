"""Calls of the scheduling methods that name their arguments, or miss some: sorted as Python does it.

The native methods take positional arguments and `context` by themselves and come here for every other call, so that it
works or fails with the very text of the standard method in the running Python. Each function returns the positional
arguments followed by the context.
"""


def call_soon(self: object, callback: object, *args: object, context: object = None) -> tuple[object, ...]:
    return callback, *args, context


def call_soon_threadsafe(self: object, callback: object, *args: object, context: object = None) -> tuple[object, ...]:
    return callback, *args, context


def call_later(
    self: object, delay: object, callback: object, *args: object, context: object = None
) -> tuple[object, ...]:
    return delay, callback, *args, context


def call_at(self: object, when: object, callback: object, *args: object, context: object = None) -> tuple[object, ...]:
    return when, callback, *args, context


for _function in (call_soon, call_soon_threadsafe, call_later, call_at):
    _function.__qualname__ = f"BaseEventLoop.{_function.__name__}"
