"""What Linux knows of processes: memory, CPU seconds, who started whom. For benchmarks of a running stack."""

from __future__ import annotations

import os
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def command(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def is_run(pid: int) -> bool:
    """A Dagster run: a child of the code server, one process as a rule."""
    return "execute_run" in (line := command(pid)) or "multiprocessing.spawn" in line


def cpu_s(pid: int, with_children: bool = False) -> float:
    """CPU seconds so far, user and system; `with_children` adds those of children that have ended."""
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(value) for value in fields[11 : 15 if with_children else 13]) / TICKS_PER_S


def rss_mb(pid: int) -> float:
    try:
        return int((Path("/proc") / str(pid) / "statm").read_text().split()[1]) * PAGE_MB
    except (OSError, IndexError):
        return 0.0


def peak_memory_mb(pid: int) -> float:
    """The most memory of a process so far. getrusage would show this process's where that was more."""
    try:
        status = (Path("/proc") / str(pid) / "status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def role(pid: int) -> str:
    """What a process of the stack does; `other` where it is none."""
    if is_run(pid):
        return "run"
    marks = {"code server": "api grpc", "webserver": "webserver", "daemon": "dagster._daemon"}
    return next((name for name, mark in marks.items() if mark in command(pid)), "other")


def children_cpu_s(pid: int) -> float:
    """CPU seconds of children of a process that have ended, and of theirs: exact, where sampling misses the end."""
    return cpu_s(pid, with_children=True) - cpu_s(pid)
