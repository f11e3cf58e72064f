"""Asks a year of minutes for the users of random ranges, as a person would, and holds the answers against the truth.

    python bench/ranges.py [--frames 6000000] [--start 2025-01-01] [--days 365] [--timezone UTC] [--files 12]
                           [--ranges 200] [--timed 20] [--dir FOLDER] [--seed 1]

The frames are those of bench/history.py. A lake that stands in --dir already, from an earlier call with the same
options, is asked without being loaded again. Ranges begin and end at any minute of the year, both drawn evenly.
Prints how long answers took, of `--timed` ranges, each asked once by a process that has answered one question before;
and how many answers of `--ranges` are within their bounds. Exits with 1 where fewer than 95% are, or where an answer
that calls itself exact is wrong.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import duckdb  # noqa: TID251 - asks the catalog as a person would, beside the product
import numpy as np
from history import TAIL_S, add_options, generate, iso, load, midnight_s, print_sizes, write


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, frames=6_000_000, start=date(2025, 1, 1), days=365, files=12)
    parser.add_argument("--ranges", type=int, default=200)
    parser.add_argument("--timed", type=int, default=20)
    parser.add_argument("--dir", type=Path, default=None, help="kept; default: a temporary folder")
    options = parser.parse_args()
    folder = options.dir or Path(tempfile.mkdtemp(prefix="uniq-ranges-"))
    try:
        return _run(options, folder)
    finally:
        if options.dir is None:
            shutil.rmtree(folder)


def _run(options: argparse.Namespace, folder: Path) -> int:
    frames = generate(options)
    if not (folder / "data" / "uniq.duckdb").exists():
        loaded = load(write(frames, folder / "frames", options.files, options.seed), folder / "data", options)
        print(f"loaded, counted and closed in {loaded.seconds:,.1f} s; at most {loaded.peak_mb:,.0f} MB of memory")
    print_sizes(folder / "data")
    order = np.argsort(frames.event_s, kind="stable")
    truth = Truth(frames.event_s[order], frames.users[order])
    first_s = midnight_s(options.start, options.timezone)
    last_s = int(truth.event_s.max()) - TAIL_S
    rng = np.random.default_rng(options.seed + 2)
    minutes = np.sort(rng.integers(first_s // 60, last_s // 60, (options.ranges, 2)), axis=1)
    minutes[:, 1] += minutes[:, 0] == minutes[:, 1]
    ranges = [(int(a) * 60, int(b) * 60) for a, b in minutes]

    with duckdb.connect(str(folder / "data" / "uniq.duckdb"), read_only=True) as shell:
        shell.execute("SET TimeZone = 'UTC'")
        (windows,) = shell.execute("SELECT count(*) FROM minute_counts").fetchone() or (0,)
        print(f"DuckDB {duckdb.__version__}; {windows:,} minutes with frames of {(last_s - first_s) // 60:,}")
        ask = _Asker(shell)
        ask("warm", "FROM unique_users('2020-01-01', '2020-01-02')")
        timed = ranges[: options.timed]
        for a, b in timed:
            ask("unique_users", f"FROM unique_users({_span(a, b)})")
        for a, b in timed:
            ask("counted exactly", f"FROM unique_users({_span(a, b)}, exact_up_to := 1000000000)")
        for (a, b), (c, d) in zip(timed, timed[1:], strict=False):
            ask("overlap", f"FROM overlap([{_span(a, b)}], [{_span(c, d)}])")
        for a, _ in timed:
            ask("a day by minute", f"FROM unique_users_by('minute', {_span(a, a + 86_400)})")
            ask("the year by day", f"FROM unique_users_by('day', {_span(first_s, last_s)})")
        ask.print()
        return _verify(shell, ranges, truth)


class Truth:
    """All frames in order of time."""

    def __init__(self, event_s: np.ndarray, users: np.ndarray) -> None:
        self.event_s, self._users = event_s, users

    def users(self, start_s: int, end_s: int) -> int:
        start, end = np.searchsorted(self.event_s, [start_s, end_s])
        return len(np.unique(self._users[start:end]))


class _Asker:
    """Asks and notes how long it took, by kind of question."""

    def __init__(self, shell: duckdb.DuckDBPyConnection) -> None:
        self._shell = shell
        self._seconds: dict[str, list[float]] = {}

    def __call__(self, kind: str, sql: str) -> None:
        started = time.perf_counter()
        self._shell.execute(sql).fetchall()
        self._seconds.setdefault(kind, []).append(time.perf_counter() - started)

    def print(self) -> None:
        print(f"{'':18}{'median ms':>12}{'least':>8}{'most':>8}")
        for kind, seconds in self._seconds.items():
            ms = [1e3 * one for one in seconds]
            print(f"{kind:18}{statistics.median(ms):12.1f}{min(ms):8.1f}{max(ms):8.1f}")


def _verify(shell: duckdb.DuckDBPyConnection, ranges: Sequence[tuple[int, int]], truth: Truth) -> int:
    errors, within, exact_wrong, tenth = [], 0, 0, max(1, len(ranges) // 10)
    for number, (a, b) in enumerate(ranges):
        users = truth.users(a, b)
        found, lower, upper, is_exact, estimate = _one(
            shell, f"SELECT users, users_lower, users_upper, is_exact, estimate FROM unique_users({_span(a, b)})"
        )
        within += lower <= users <= upper
        exact_wrong += is_exact and found != users
        errors.append(abs(estimate / users - 1) if users else 0.0)
        if number % tenth == 0:  # exact answers are slower: a tenth of them
            (found,) = _one(shell, f"SELECT users FROM unique_users({_span(a, b)}, exact_up_to := 1000000000)")
            exact_wrong += found != users
    print(
        f"{within} of {len(ranges)} answers are within bounds; error of the estimate: median "
        f"{statistics.median(errors):.2%}, most {max(errors):.2%}; {exact_wrong} exact answers wrong"
    )
    return int(within < 0.95 * len(ranges) or exact_wrong > 0)


def _one(shell: duckdb.DuckDBPyConnection, sql: str) -> tuple:
    return shell.execute(sql).fetchall()[0]


def _span(start_s: int, end_s: int) -> str:
    return f"'{iso(start_s)}', '{iso(end_s)}'"


if __name__ == "__main__":
    sys.exit(main())
