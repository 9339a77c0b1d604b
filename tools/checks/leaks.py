"""Shows what LeakSanitizer found of the memory that fastloop's C code took, and what other sanitizers reported.

    python tools/checks/leaks.py REPORT...        exit status 1 if there is anything to show

The interpreter loses much as it ends, most of all strings. A leak is ours when a function of ours is near the allocation.
Objects of the garbage collector are never lost to LeakSanitizer, for its lists hold them: `make refs` sees those.
"""

import re
import sys
from pathlib import Path

#: How many of the functions that led to an allocation are looked at.
NEAR = 4
OURS = re.compile(r"^ +#[1-%d] \S+ in \S+ src/\S+\.c:" % NEAR, re.MULTILINE)


def ours(report):
    """The parts of a report that concern us."""
    title, *parts = re.split(r"\n\n(?=(?:Direct|Indirect) leak of |SUMMARY)", report)
    if "LeakSanitizer: detected memory leaks" not in title:
        return [report]
    return [part for part in parts if OURS.search(part)]


def main():
    """Print what was found; true if there was anything."""
    found = [part for name in sys.argv[1:] for part in ours(Path(name).read_text(errors="replace"))]
    print(*found, sep="\n\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
