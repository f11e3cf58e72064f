"""Loads two years of frames from files in one go, and holds every window against a count made without the product.

    python bench/two_years.py [--frames 20000000] [--start 2024-01-01] [--days 731] [--files 24] [--shuffled]
                              [--timezone Europe/Zurich] [--kills 0 --kill-after 60] [--dir FOLDER] [--seed 1]

The frames are those of bench/history.py. With --kills the load is killed with
SIGKILL that often, each time --kill-after seconds after its start, and started again.

Prints rates, the most memory that the load had at once, and bytes on disk. Then counts frames and users of every
window with numpy and zoneinfo from the generator's own arrays, and compares them with the catalog; of every hour,
day, week, month and year, and a sample of minutes, also the HLL registers, with those of the library datasketches.
Exits with 1 when anything differs. Linux only. 20 M frames take 1 GB of JSONL, and 2 GB of memory for this process.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb  # noqa: TID251 - reads the catalog as a person would, beside the product
import numpy as np
import pyarrow as pa
from datasketches import hll_sketch, tgt_hll_type  # noqa: TID251 - the oracle of the registers
from history import TAIL_S, USERS, Frames, add_options, generate, iso, load, midnight_s, print_sizes, write

GRAINS = ("minute", "hour", "day", "week", "month", "year")
ALLOWED_LATENESS_S = 120  # the product's default; windows close this long after their end
LG_K = 12
STANDARD_ERROR = 1.04 / 2 ** (LG_K / 2)
REGISTERS_AT = 40  # bytes before the registers in the library's layout
SAMPLE = 2000  # minutes whose registers are compared; of the other grains all are
SHOWN = 5  # differences of a kind that are printed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, frames=20_000_000, start=date(2024, 1, 1), days=731, files=24)  # 2024 is a leap year
    parser.add_argument("--dir", type=Path, default=None, help="kept; default: a temporary folder")
    options = parser.parse_args()
    folder = options.dir or Path(tempfile.mkdtemp(prefix="uniq-two-years-"))
    if (folder / "data").exists():
        parser.error(f"{folder / 'data'} is there already: what was loaded before is not loaded again")
    try:
        return _run(options, folder)
    finally:
        if options.dir is None:
            shutil.rmtree(folder)


def _run(options: argparse.Namespace, folder: Path) -> int:
    started = time.monotonic()
    frames = generate(options)
    names = write(frames, folder / "frames", options.files, options.seed)
    size = sum(name.stat().st_size for name in names)
    print(
        f"{len(frames.event_s):,} frames, {len(names)} files, {size / 1e6:,.0f} MB, {iso(frames.event_s.min())} to "
        f"{iso(frames.event_s.max())}: written in {time.monotonic() - started:.0f} s",
        flush=True,
    )
    loaded = load(names, folder / "data", options)
    rate = len(frames.event_s) / loaded.seconds
    print(
        f"loaded, counted and closed in {loaded.seconds:,.1f} s: {rate:,.0f} frames/s, "
        f"{size / loaded.seconds / 1e6:,.1f} MB/s; at most {loaded.peak_mb:,.0f} MB of memory; "
        f"killed {loaded.kills} times"
    )
    print_sizes(folder / "data")
    return _verify(frames, folder / "data" / "uniq.duckdb", options.timezone, options.seed)


# What follows knows nothing of the product but the columns of its tables.


class Differences:
    """What is wrong, printed as it is found, a few of each kind."""

    def __init__(self) -> None:
        self.found = 0

    def note(self, what: str, starts_s: np.ndarray) -> None:
        if len(starts_s):
            self.found += len(starts_s)
            print(f"WRONG: {what}: {len(starts_s):,} windows: {', '.join(map(iso, starts_s[:SHOWN]))}")


def _verify(frames: Frames, catalog: Path, zone: ZoneInfo, seed: int) -> int:
    started = time.monotonic()
    wrong = Differences()
    order = np.argsort(frames.event_s, kind="stable")
    event_s, users = frames.event_s[order], frames.users[order]
    with duckdb.connect(str(catalog), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        _conserved(connection, len(event_s), wrong)
        print(f"{'grain':8}{'windows':>10}{'frames':>13}{'late':>9}{'exact':>10}{'worst error':>13}{'in bounds':>11}"
              f"{'registers':>11}")  # fmt: skip
        for grain in GRAINS:
            _verify_grain(connection, grain, event_s, users, frames.uids, zone, np.random.default_rng(seed), wrong)
    print(f"compared in {time.monotonic() - started:.0f} s: " + (f"{wrong.found:,} WRONG" if wrong.found else "equal"))
    return 1 if wrong.found else 0


def _conserved(connection: duckdb.DuckDBPyConnection, frames: int, wrong: Differences) -> None:
    counts = connection.execute(
        "SELECT sum(delivered), sum(frames), sum(held), sum(quarantined), sum(admitted) FROM batches"
    ).fetchone()
    delivered, counted, held, quarantined, admitted = map(int, counts or [0] * 5)
    print(f"delivered {delivered:,}, counted {counted:,}, held {held}, quarantined {quarantined}, admitted {admitted}")
    ((stored, distinct),) = connection.execute(
        "SELECT count(*), count(DISTINCT (topic, kafka_offset)) FROM frames"
    ).fetchall()
    if not frames == delivered == counted == stored == distinct or held - admitted or quarantined:
        wrong.found += 1
        print(f"WRONG: {frames:,} frames were written, the lake holds {stored:,}, {distinct:,} different ones")


def _verify_grain(
    connection: duckdb.DuckDBPyConnection,
    grain: str,
    event_s: np.ndarray,
    users: np.ndarray,
    uids: pa.StringArray,
    zone: ZoneInfo,
    rng: np.random.Generator,
    wrong: Differences,
) -> None:
    """`event_s`, `users`: all frames by event time."""
    edges = _edges(grain, int(event_s[0]), int(event_s[-1]), zone)
    window = np.searchsorted(edges, event_s, side="right") - 1
    frames = np.bincount(window, minlength=len(edges) - 1)
    pairs = np.unique(window * USERS + users)
    exact = np.bincount(pairs // USERS, minlength=len(edges) - 1)
    starts, ends, frames, exact = edges[:-1][frames > 0], edges[1:][frames > 0], frames[frames > 0], exact[frames > 0]

    rows = connection.execute(
        f"""
        SELECT epoch(window_start)::BIGINT AS start, epoch(window_end)::BIGINT AS "end", frames, late_frames,
               held_frames, coalesce(unique_users, -1) AS exact, estimate, estimate_lower AS lower,
               estimate_upper AS upper, status = 'final' AS is_final
        FROM {grain}_counts ORDER BY start
        """
    ).fetchnumpy()
    wrong.note(f"{grain}: not there", np.setdiff1d(starts, rows["start"]))
    wrong.note(f"{grain}: there without frames", np.setdiff1d(rows["start"], starts))
    wrong.note(f"{grain}: there twice", rows["start"][1:][np.diff(rows["start"]) == 0])
    _, mine, theirs = np.intersect1d(starts, rows["start"], return_indices=True)
    starts, ends, frames, exact = starts[mine], ends[mine], frames[mine], exact[mine]
    rows = {name: np.asarray(column)[theirs] for name, column in rows.items()}
    if not len(starts):
        return

    # The watermark trails the last frames by seconds, so what ends well before them is closed; the tail leaves room.
    is_closed = ends <= event_s[-1] - TAIL_S // 2
    is_open = ends > event_s[-1] - ALLOWED_LATENESS_S
    is_exact = rows["exact"] >= 0
    wrong.note(f"{grain}: another end", starts[rows["end"] != ends])
    wrong.note(f"{grain}: another number of frames", starts[rows["frames"] != frames])
    wrong.note(f"{grain}: another number of users", starts[is_exact & (rows["exact"] != exact)])
    wrong.note(f"{grain}: closed and not exact", starts[is_closed & ~is_exact])
    wrong.note(f"{grain}: closed and not final", starts[is_closed & ~rows["is_final"]])
    wrong.note(f"{grain}: open, and says it is final", starts[is_open & rows["is_final"]])
    wrong.note(f"{grain}: has held frames", starts[rows["held_frames"] != 0])
    error = np.abs(rows["estimate"] - exact)
    # A few users more: in a million small windows, four of one window meet in slots of their own.
    wrong.note(f"{grain}: estimate off by 5 standard errors", starts[error > 5 * STANDARD_ERROR * exact + 4])
    wrong.note(f"{grain}: estimate outside its bounds", starts[_outside(rows, rows["estimate"])])

    sample = np.arange(len(starts))
    if grain == "minute":
        sample = np.sort(rng.choice(sample, min(SAMPLE, len(sample)), replace=False))
    wrong.note(
        f"{grain}: other registers",
        _with_other_registers(connection, grain, starts[sample], ends[sample], event_s, users, uids),
    )
    print(
        f"{grain:8}{len(starts):10,}{int(frames.sum()):13,}{int(rows['late_frames'].sum()):9,}"
        f"{int(is_exact.sum()):10,}{float((error / exact).max()):13.2%}{1 - _outside(rows, exact).mean():11.2%}"
        f"{len(sample):11,}",
        flush=True,
    )


def _outside(rows: dict[str, np.ndarray], values: np.ndarray) -> np.ndarray:
    return (values < rows["lower"]) | (values > rows["upper"])


def _with_other_registers(
    connection: duckdb.DuckDBPyConnection,
    grain: str,
    starts: np.ndarray,
    ends: np.ndarray,
    event_s: np.ndarray,
    users: np.ndarray,
    uids: pa.StringArray,
) -> np.ndarray:
    """Those of the windows whose state is not the one that the library makes of the same users."""
    stored = dict(
        connection.execute(
            f"SELECT epoch(window_start)::BIGINT, hll FROM {grain}_counts "
            "WHERE epoch(window_start)::BIGINT IN (SELECT unnest($starts))",
            {"starts": starts.tolist()},
        ).fetchall()
    )
    wrong = []
    for start_s, end_s in zip(starts, ends, strict=True):
        first, after = np.searchsorted(event_s, [start_s, end_s])
        sketch = hll_sketch(LG_K, tgt_hll_type.HLL_8, True)
        for uid in uids.take(pa.array(np.unique(users[first:after]))).to_pylist():
            sketch.update(uid)
        if bytes(stored[start_s])[REGISTERS_AT:] != sketch.serialize_updatable()[REGISTERS_AT:]:
            wrong.append(start_s)
    return np.array(wrong, np.int64)


def _edges(grain: str, first_s: int, last_s: int, zone: ZoneInfo) -> np.ndarray:
    """Bounds of consecutive windows that hold `[first_s, last_s]`: window i is [edges[i], edges[i + 1])."""
    if grain in ("minute", "hour"):
        size = 60 if grain == "minute" else 3600
        return np.arange(first_s - first_s % size, last_s + size + 1, size)
    begins: Callable[[date], bool] = {
        "day": lambda day: True,
        "week": lambda day: day.isoweekday() == 1,
        "month": lambda day: day.day == 1,
        "year": lambda day: (day.month, day.day) == (1, 1),
    }[grain]
    first_day = datetime.fromtimestamp(first_s, zone).date()
    last_day = datetime.fromtimestamp(last_s, zone).date()
    days = [first_day + timedelta(days=i) for i in range(-366, (last_day - first_day).days + 368)]
    edges = np.array([midnight_s(day, zone) for day in days if begins(day)])
    before, after = np.searchsorted(edges, [first_s, last_s], side="right")
    return edges[before - 1 : after + 1]


if __name__ == "__main__":
    sys.exit(main())
