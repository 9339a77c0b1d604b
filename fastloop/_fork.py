"""What a fork must find in its place."""

import contextlib
import functools
import os

LAST_STANDARD_STREAM = 2


@functools.cache
def keep_standard_streams_free() -> None:
    """Have libuv, which opens a pipe in each forked child, not take the number of a standard stream that is closed.

    It would end the child with an abort when it closes that pipe at the exit. Called once there is a loop.
    """
    held: list[tuple[int, os.stat_result]] = []

    def hold() -> None:
        # Without /dev/null, or out of descriptors: as if this were not here.
        with contextlib.suppress(OSError):
            while (fd := os.open(os.devnull, os.O_RDWR)) <= LAST_STANDARD_STREAM:
                held.append((fd, os.fstat(fd)))
            os.close(fd)

    def release() -> None:
        while held:
            fd, stat = held.pop()
            # In the child of os.forkpty() it is the terminal by now.
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(fd), stat):
                    os.close(fd)

    os.register_at_fork(before=hold, after_in_parent=release, after_in_child=release)
