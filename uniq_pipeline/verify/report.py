"""What an audit found: checks, and the faults of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from uniq_pipeline.windows import Window

# Told (stage, done, total); a total of 0 is unknown.
Progress = Callable[[str, int, int], None]

REPAIR = "`uniq-pipeline repair`"

# How a fault ends that no command mends.
BY_HAND = "nothing mends this by itself: keep ledger and lake as they are, and look into how it came about"


class FaultKind(StrEnum):
    """What a repair goes by."""

    DATA_FILE = "data_file"  # a file of frames, held or quarantine is missing or damaged
    RESULT_FILE = "result_file"
    SET_FILE = "set_file"
    WINDOW = "window"  # a stored result is not what its inputs give
    SET = "set"  # a uid set is not what its inputs give
    LEDGER = "ledger"  # the ledger does not agree with itself, or with the lake: nothing mends that by itself


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. `text` names it and ends with what mends it.

    path    the file, of a fault that is one of a file
    window  the window, of a fault that is one of a result or a set
    """

    kind: FaultKind
    text: str
    path: str | None = None
    window: Window | None = None


@dataclass
class Check:
    """One question of the audit. looked_at: how many things (`unit`); skipped: not looked at, and `note` says why."""

    name: str
    unit: str
    looked_at: int = 0
    skipped: int = 0
    note: str = ""
    faults: list[Fault] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.faults


@dataclass
class Report:
    """All checks. warnings: sentences that are no faults."""

    checks: list[Check] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    orphans: int = 0
    files: int = 0
    rows: int = 0
    seconds: float = 0.0

    @property
    def faults(self) -> list[Fault]:
        return [fault for check in self.checks for fault in check.faults]

    @property
    def passed(self) -> bool:
        return not self.faults
