"""The cases: those of fastloop._bench, and here those that need a C program. README.md tells how to add one."""

from fastloop._bench import workloads

OWN = ("echo", "connections", "http", "programs", "threads")
MODULES = (*workloads.MODULES, *(f"{__name__}.{module}" for module in OWN))
