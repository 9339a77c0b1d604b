"""On PYTHONPATH, asyncio's debug mode is on in the tests: cpython_suite.py starts them without PYTHONASYNCIODEBUG.

python tests/conformance/cpython_suite.py --loop fastloop --path "$PWD/tests/conformance/debug_mode"
"""

import os
import sys

# Only there: what the tests themselves start is asked about its debug mode.
if "--child" in sys.orig_argv:
    os.environ["PYTHONASYNCIODEBUG"] = "1"
