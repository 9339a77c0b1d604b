"""Read by Python at its start from PYTHONPATH.

With EXIT_COUNTED=1 processes that end by os._exit() tell what of the C code they ran.

With EAGER_GC=1 the garbage collector runs at each allocation, or from Python 3.12 on at the first call of a Python
function after it. It looks at every container while our C code still works on it, which shows objects that are visible
to the collector too early, and references that a function borrowed but needed to own.
"""

import gc
import os

if os.environ.get("EAGER_GC") == "1":
    gc.set_threshold(1)

if os.environ.get("EXIT_COUNTED") == "1":
    import ctypes

    end = os._exit

    def counted_exit(status):
        # What gcov has counted is written by exit(), not by _exit(), with which forked children end. Where no file can
        # be opened it would complain.
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            end(status)
        ctypes.CDLL(None).exit(status)

    os._exit = counted_exit
