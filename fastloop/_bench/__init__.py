"""Workloads for asyncio event loops, and what runs them on several loops side by side.

``python -m fastloop bench`` is compare.py with the workloads of this package, which need nothing but Python. The
repository's ``python -m benchmarks`` is the same with further workloads, of servers under the load of a C program.
Nothing here is imported before a benchmark is asked for.
"""
