"""Making fastloop the loop of a program that does not choose one itself."""

from fastloop import _compat
from fastloop.loop import new_event_loop

if _compat.HAS_POLICIES:

    class EventLoopPolicy(_compat.DefaultEventLoopPolicy):
        """The standard policy of this Python, whose new loops are fastloops.

        See https://docs.python.org/3/library/asyncio-policy.html.
        """

        _loop_factory = staticmethod(new_event_loop)
        _before_install = None

    def install():
        """Make fastloop the event loop of programs that use asyncio without choosing a loop; uninstall() undoes it.

        See asyncio.set_event_loop_policy().
        """
        before = _compat.get_event_loop_policy()
        if not isinstance(before, EventLoopPolicy):
            policy = EventLoopPolicy()
            policy._before_install = before
            _compat.set_event_loop_policy(policy)

    def uninstall():
        """Undo install(): the policy of before is the program's again.

        Does nothing when another policy has been set since.
        """
        policy = _compat.get_event_loop_policy()
        if isinstance(policy, EventLoopPolicy):
            _compat.set_event_loop_policy(policy._before_install)

else:
    _GONE = (
        "this Python has no event loop policies; use fastloop.run(main()) or "
        "asyncio.run(main(), loop_factory=fastloop.new_event_loop)"
    )

    class EventLoopPolicy:
        """Stands for a policy on a Python that has none: making one raises RuntimeError."""

        def __init__(self):
            raise RuntimeError(_GONE)

    def install():
        """Raise RuntimeError: this Python has no event loop policies."""
        raise RuntimeError(_GONE)

    def uninstall():
        """Do nothing: there is nothing that install() could have set."""
