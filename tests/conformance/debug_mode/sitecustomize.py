"""On PYTHONPATH, asyncio's debug mode is on: cpython_suite.py runs its child processes without PYTHONASYNCIODEBUG.

    python tests/conformance/cpython_suite.py --loop fastloop --path "$PWD/tests/conformance/debug_mode"
"""

import os

os.environ["PYTHONASYNCIODEBUG"] = "1"
