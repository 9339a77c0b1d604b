"""The list of workloads: what a case is, how one is declared, and how cases are chosen.

A case says what is done n times. Everything else (fresh processes, rounds, clocks, tables) is done by whoever runs it,
equally for each loop.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from fnmatch import fnmatchcase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable
    from typing import Any, TypedDict, TypeVar, Unpack

    Metrics = dict[str, float]
    Run = Callable[..., Metrics | None | Coroutine[Any, Any, Metrics | None]]
    RunT = TypeVar("RunT", bound=Run)

    class Options(TypedDict, total=False):
        metrics: tuple[str, ...]
        tier: int
        warm: bool
        fresh: bool


# Raised when an existing case measures something else than before: results of two versions are not compared. A new
# case leaves it as it is.
WORKLOADS = 1

QUICK, DEFAULT, FULL = range(3)

CASES: dict[str, Case] = {}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One workload.

    name      group-independent name, parts separated by "/", unique
    group     heading of the table in which it stands
    unit      what one of the n operations is
    n         operations in one run, chosen for a few tenths of a second on the slower loops
    run       the function; see case()
    metrics   what is shown, the main one first; less is better for all of them. "wall" and "cpu" are nanoseconds of one
              operation and are measured for each case; others are what run() returns
    tier      QUICK, DEFAULT or FULL: the smallest selection that has it
    warm      whether a tenth of n runs unmeasured first
    fresh     run() gets the loops.Loop instead of a running loop, and makes its own
    """

    name: str
    group: str
    unit: str
    n: int
    run: Run
    metrics: tuple[str, ...] = ("wall", "cpu")
    tier: int = DEFAULT
    warm: bool = True
    fresh: bool = False


def register(case: Case) -> None:
    if case.name in CASES:
        raise ValueError(f"two cases are named {case.name}")
    CASES[case.name] = case


def case(name: str, *, group: str, unit: str, n: int, **options: Unpack[Options]) -> Callable[[RunT], RunT]:
    """Declare a function as a workload that runs inside the measured process; options are fields of Case.

    async def run(n)      is run by loop.run_until_complete
    def run(loop, n)      runs the loop itself

    It may return a dict of further metrics. An exception means that the loop cannot do it.
    """

    def declare(run: RunT) -> RunT:
        register(Case(name=name, group=group, unit=unit, n=n, run=run, **options))
        return run

    return declare


def load_workloads(modules: Iterable[str]) -> dict[str, Case]:
    """Import the modules that declare cases; returns all cases by name, in the order of their declaration."""
    for module in modules:
        importlib.import_module(module)
    return CASES


def select(
    cases: Iterable[Case], names: Collection[str] = (), groups: Collection[str] = (), tier: int = DEFAULT
) -> list[Case]:
    """Of the cases those of the tier and the smaller ones, all or those that a pattern of their group matches; and any
    case that a pattern of its name matches. Patterns are a shell's: *, ? and []."""
    if not names and not groups:
        return [case for case in cases if case.tier <= tier]

    def matches(text: str, patterns: Collection[str]) -> bool:
        return any(fnmatchcase(text, pattern) for pattern in patterns)

    return [case for case in cases if matches(case.name, names) or (matches(case.group, groups) and case.tier <= tier)]
