"""Workloads for asyncio event loops, and commands that run them on several loops side by side.

    python -m benchmarks                 time, CPU and memory, interleaved (compare.py)
    python -m benchmarks.instructions    instructions per operation, by callgrind
    python -m benchmarks.report FILE     the tables of an earlier run

README.md tells how to read the results and how to add a case.
"""
