"""What the commands of the repository compare: the cases of fastloop._bench, and those with a C program."""

from benchmarks import native, process, workloads
from benchmarks.registry import ServerCase
from fastloop._bench import compare, loops
from fastloop._bench.loops import LIBUV
from fastloop._bench.registry import DEFAULT, FULL, QUICK


class Suite(compare.Suite):
    prog = "python -m benchmarks"
    modules = workloads.MODULES
    selections = {"quick": (QUICK, 3, 0.2), "default": (DEFAULT, 5, 1.0), "full": (FULL, 5, 1.0)}
    baseline = "uvloop"

    def known_loops(self):
        return [*super().known_loops(), LIBUV]

    def default_loops(self):
        return [*loops.installed(), LIBUV]

    def versions(self, names):
        return super().versions([name for name in names if name != LIBUV]) | ({LIBUV: None} if LIBUV in names else {})

    def is_asked(self, case, loop):
        """Bare libuv serves, and nothing else."""
        return loop != LIBUV or isinstance(case, ServerCase)

    def prepare(self):
        native.build()

    def run(self, case, loop, n):
        return process.run(case, loop, n)
