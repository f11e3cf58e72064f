"""Runs the demo unattended and measures what a person would ask after hours of it. Linux only.

    python bench/soak.py MINUTES [--port PORT] [--rate FRAMES_PER_S] [--data-dir FOLDER]

Prints: runs and failures, gaps in the cadence, seconds from a minute's end to its count being visible in the
catalog, CPU seconds a tick and of the whole stack a minute, and memory by process at the start and the end.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from processes import command, cpu_s, is_run, rss_mb, tree

SAMPLE_S = 0.2


@dataclass
class Seen:
    """What was sampled."""

    visible_s: dict[int, float] = field(default_factory=dict)  # minute end -> seconds until it was visible
    memory_mb: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    tick_cpu_s: dict[int, float] = field(default_factory=dict)  # pid of a run -> CPU seconds
    stack_cpu_s: list[tuple[float, float]] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("minutes", type=float)
    parser.add_argument("--port", type=int, default=3200)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--data-dir", type=Path, default=None)
    options = parser.parse_args()
    data_dir = options.data_dir or Path(tempfile.mkdtemp(prefix="uniq-soak-"))
    program = [str(Path(sys.executable).with_name("uniq-pipeline")), "demo"]
    program += ["--port", str(options.port), "--rate", str(options.rate)]
    environment = {**os.environ, "UNIQ_DATA_DIR": str(data_dir)}
    started = time.time()
    demo = subprocess.Popen(program, env=environment, start_new_session=True)
    seen = Seen()
    try:
        _watch(demo, data_dir, seen, until=started + options.minutes * 60)
    except KeyboardInterrupt:
        pass
    finally:
        demo.send_signal(signal.SIGINT)
        code = demo.wait(120)
    _report(seen, data_dir, started, code)


def _watch(demo: subprocess.Popen, data_dir: Path, seen: Seen, until: float) -> None:
    catalog = data_dir / "uniq.duckdb"
    last_change = 0.0
    next_memory = 0.0
    while time.time() < until and demo.poll() is None:
        now = time.time()
        if catalog.exists() and (change := catalog.stat().st_mtime) != last_change:
            last_change = change
            minute_end = int(change // 60 * 60)
            # only a swap soon after the minute is its tick; the hourly job swaps too
            seen.visible_s.setdefault(minute_end, change - minute_end)
        pids = tree(demo.pid)
        for pid in pids:
            if is_run(pid):
                seen.tick_cpu_s[pid] = max(seen.tick_cpu_s.get(pid, 0.0), cpu_s(pid))
        if now >= next_memory:
            next_memory = now + 15
            for pid in pids:
                seen.memory_mb[f"{_role(pid)} {pid}"].append((now, rss_mb(pid)))
            seen.stack_cpu_s.append((now, sum(cpu_s(pid, with_children=True) for pid in pids)))
        time.sleep(SAMPLE_S)


def _role(pid: int) -> str:
    line = command(pid)
    for name, mark in {
        "run": "execute_run",
        "code server": "api grpc",
        "code server proxy": "code-server",
        "webserver": "webserver",
        "daemon": "daemon",
        "demo (broker, traffic)": " demo",
        "run ": "multiprocessing",
    }.items():
        if mark in line:
            return name.strip()
    return "other"


def _report(seen: Seen, data_dir: Path, started: float, exit_code: int) -> None:
    hours = (time.time() - started) / 3600
    print(f"\nran {hours:.2f} h, exit code {exit_code}, data in {data_dir}")
    with sqlite3.connect(data_dir / "dagster" / "history" / "runs.db") as runs:
        rows = runs.execute("SELECT pipeline_name, status, count(*) FROM runs GROUP BY 1, 2 ORDER BY 1, 2").fetchall()
        starts = [row[0] for row in runs.execute("SELECT start_time FROM runs WHERE pipeline_name = 'tick'") if row[0]]
    print("runs:", ", ".join(f"{name} {status} {count}" for name, status, count in rows))
    minutes = sorted({int(start // 60) for start in starts})
    missed = [m for m in range(minutes[0], minutes[-1] + 1) if m not in set(minutes)] if minutes else []
    print(f"cadence: {len(minutes)} minutes with a tick, {len(missed)} without")
    _print_spread("seconds from a minute's end to its count", list(seen.visible_s.values())[1:])
    _print_spread("CPU seconds a run", [cpu for cpu in seen.tick_cpu_s.values() if cpu > 0.5])
    if len(seen.stack_cpu_s) > 8:
        (first_at, first), (last_at, last) = seen.stack_cpu_s[4], seen.stack_cpu_s[-1]
        print(f"CPU seconds a minute, whole stack: {(last - first) / (last_at - first_at) * 60:.1f}")
    print("memory, MB: after 5 min -> at the end (of processes that lived longer than 10 min)")
    for name, samples in seen.memory_mb.items():
        lived = samples[-1][0] - samples[0][0]
        if lived > 600:
            early = next(mb for at, mb in samples if at - samples[0][0] >= 300)
            print(f"  {name:34} {early:7.0f} -> {samples[-1][1]:7.0f}   most {max(mb for _, mb in samples):7.0f}")


def _print_spread(what: str, values: list[float]) -> None:
    if values:
        print(
            f"{what}: median {statistics.median(values):.1f}, worst {max(values):.1f}, "
            f"best {min(values):.1f} ({len(values)} values)"
        )


if __name__ == "__main__":
    main()
