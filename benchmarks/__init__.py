"""Workloads with another side in C, and commands that run these and those of fastloop._bench on several loops.

    python -m benchmarks                      time, CPU and memory, interleaved (suite.py)
    python -m benchmarks.instructions         instructions per operation, by callgrind
    python -m fastloop._bench.report FILE     the tables of an earlier run

README.md tells how to read the results and how to add a case.
"""
