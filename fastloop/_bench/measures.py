"""What several places compute."""

from __future__ import annotations

import os
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def percentiles(numbers: Iterable[float]) -> dict[str, float]:
    """The 50th and 99th percentile as {"p50", "p99"}."""
    numbers = sorted(numbers)
    return {"p50": numbers[len(numbers) // 2], "p99": numbers[len(numbers) * 99 // 100]}


def memory_bytes(pid: int | None = None) -> int:
    """Memory that belongs to a process alone; pid None means this one. Raises OSError where there is no /proc."""
    lines = Path(f"/proc/{pid or os.getpid()}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
