from benchmarks.suite import Suite
from fastloop._bench.compare import main

main(suite=Suite())
