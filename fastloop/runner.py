"""fastloop.run(): asyncio.run() on a fastloop."""

import asyncio
from asyncio import events

from fastloop import _compat
from fastloop.loop import Loop, new_event_loop
from fastloop.policy import EventLoopPolicy


def _new_loop():
    """A new fastloop: from the policy that the program has set, if that makes fastloops, else a plain one."""
    if not _compat.HAS_POLICIES:
        return new_event_loop()
    policy = _compat.get_event_loop_policy()
    if type(policy) in (EventLoopPolicy, _compat.DefaultEventLoopPolicy):
        return new_event_loop()
    loop = policy.new_event_loop()
    if not isinstance(loop, Loop):
        loop.close()
        loop = new_event_loop()
    return loop


if _compat.HAS_LOOP_FACTORY:

    def run(main, *, debug=None, loop_factory=None):
        """Run the coroutine `main` on a new fastloop, close the loop, and return the result.

        debug switches debug mode on or off, None leaves it to the environment; loop_factory makes the loop in place of
        fastloop.new_event_loop(). A policy that the program has set is asked if it makes fastloops.
        Raises what asyncio.run() raises, see
        https://docs.python.org/3/library/asyncio-runner.html#asyncio.run.
        """
        return asyncio.run(main, debug=debug, loop_factory=loop_factory or _new_loop)

else:

    def run(main, *, debug=None):
        """Run the coroutine `main` on a new fastloop, close the loop, and return the result.

        debug switches debug mode on or off, None leaves it to the environment. Raises what asyncio.run() raises, see
        https://docs.python.org/3/library/asyncio-runner.html#asyncio.run.
        """
        if events._get_running_loop() is not None:
            raise RuntimeError("asyncio.run() cannot be called from a running event loop")
        with asyncio.Runner(debug=debug, loop_factory=_new_loop) as runner:
            return runner.run(main)
