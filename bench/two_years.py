"""Loads two years of frames from files in one go, and holds every window against a count made without the product.

    python bench/two_years.py [--frames 20000000] [--start 2024-01-01] [--days 731] [--files 24] [--shuffled]
                              [--timezone Europe/Zurich] [--kills 0 --kill-after 60] [--dir FOLDER] [--seed 1]

The frames have a daily and a weekly rhythm, 200,000 users of skewed activity, several shapes and key orders, and
come in the order of their arrival: 0-5 s after their time, 2% up to 100 s; with --shuffled all of them up to 100 s.
They go on for three hours past the last day, so that its windows close. With --kills the load is killed with
SIGKILL that often, each time --kill-after seconds after its start, and started again.

Prints rates, the most memory that the load had at once, and bytes on disk. Then counts frames and users of every
window with numpy and zoneinfo from the generator's own arrays, and compares them with the catalog; of every hour,
day, week, month and year, and a sample of minutes, also the HLL registers, with those of the library datasketches.
Exits with 1 when anything differs. Linux only. 20 M frames take 1 GB of JSONL, and 2 GB of memory for this process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb  # noqa: TID251 - reads the catalog as a person would, beside the product
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasketches import hll_sketch, tgt_hll_type  # noqa: TID251 - the oracle of the registers

GRAINS = ("minute", "hour", "day", "week", "month", "year")
USERS = 200_000
TAIL_S = 3 * 3600
ALLOWED_LATENESS_S = 120  # the product's default; windows close this long after their end
LG_K = 12
STANDARD_ERROR = 1.04 / 2 ** (LG_K / 2)
REGISTERS_AT = 40  # bytes before the registers in the library's layout
SAMPLE = 2000  # minutes whose registers are compared; of the other grains all are
SHOWN = 5  # differences of a kind that are printed


@dataclass(frozen=True)
class Frames:
    """All frames in order of arrival. `users` are indexes into `uids`."""

    event_s: np.ndarray
    users: np.ndarray
    uids: pa.StringArray


@dataclass(frozen=True)
class Load:
    """What loading took. `peak_mb` is that of the hungriest of its processes."""

    seconds: float
    peak_mb: float
    kills: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20_000_000)
    parser.add_argument("--start", type=date.fromisoformat, default=date(2024, 1, 1), help="first local day")
    parser.add_argument("--days", type=int, default=731, help="2024 is a leap year")
    parser.add_argument("--files", type=int, default=24)
    parser.add_argument("--shuffled", action="store_true", help="every frame is late by up to 100 s, in any order")
    parser.add_argument("--timezone", type=ZoneInfo, default=ZoneInfo("Europe/Zurich"))
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--kill-after", type=float, default=60, metavar="S")
    parser.add_argument("--dir", type=Path, default=None, help="kept; default: a temporary folder")
    parser.add_argument("--seed", type=int, default=1)
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
    frames = _generate(options)
    names = _write(frames, folder / "frames", options.files, options.seed)
    size = sum(name.stat().st_size for name in names)
    print(
        f"{len(frames.event_s):,} frames, {len(names)} files, {size / 1e6:,.0f} MB, {_iso(frames.event_s.min())} to "
        f"{_iso(frames.event_s.max())}: written in {time.monotonic() - started:.0f} s",
        flush=True,
    )
    load = _load(names, folder / "data", options)
    rate = len(frames.event_s) / load.seconds
    print(
        f"loaded, counted and closed in {load.seconds:,.1f} s: {rate:,.0f} frames/s, {size / load.seconds / 1e6:,.1f} "
        f"MB/s; at most {load.peak_mb:,.0f} MB of memory; killed {load.kills} times"
    )
    _print_sizes(folder / "data")
    return _verify(frames, folder / "data" / "uniq.duckdb", options.timezone, options.seed)


def _generate(options: argparse.Namespace) -> Frames:
    rng = np.random.default_rng(options.seed)
    zone = options.timezone
    start_s = _midnight_s(options.start, zone)
    end_s = _midnight_s(options.start + timedelta(days=options.days), zone) + TAIL_S
    minutes_s = np.arange(start_s, end_s, 60)
    hour_of_day = (minutes_s - start_s) % 86_400 / 3600
    is_weekend = (options.start.weekday() + (minutes_s - start_s) // 86_400) % 7 >= 5
    rate = 1.15 - np.cos((hour_of_day - 3) * np.pi / 12)  # least at 3 in the morning: 7% of the most
    rate = rate * np.where(is_weekend, 0.7, 1.0) * rng.uniform(0.8, 1.2, len(minutes_s))
    event_s = np.repeat(minutes_s, rng.multinomial(options.frames, rate / rate.sum()))
    event_s += rng.integers(0, 60, options.frames)
    delay_s = rng.uniform(0, 5, options.frames)
    is_late = np.ones(options.frames, bool) if options.shuffled else rng.random(options.frames) < 0.02
    delay_s[is_late] = rng.uniform(0, 100, int(is_late.sum()))
    event_s = event_s[np.argsort(event_s + delay_s, kind="stable")]
    weights = np.arange(1, USERS + 1) ** -0.6  # the first of them is 1,500 times as active as the last
    users = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(options.frames)).clip(max=USERS - 1)
    numbers = pa.array(rng.permutation(USERS))
    # Every tenth user is a number; it is written as one or as a string.
    uids = pc.if_else(
        pa.array(np.arange(USERS) % 10 == 0),
        pc.cast(numbers, pa.string()),
        pc.binary_join_element_wise("u-", pc.cast(numbers, pa.string()), ""),
    )
    return Frames(event_s, users.astype(np.int32), uids)


def _write(frames: Frames, folder: Path, files: int, seed: int) -> list[Path]:
    """The frames as JSONL files, one after the other in order of arrival."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed + 1)
    bounds = np.linspace(0, len(frames.event_s), files + 1).astype(np.int64)
    names = []
    for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        names.append(folder / f"{number:03}.jsonl")
        names[-1].write_bytes(_lines(frames, int(start), int(end), rng))
    return names


def _lines(frames: Frames, start: int, end: int, rng: np.random.Generator) -> pa.Buffer:
    """JSON lines of frames `[start, end)`. Strings are joined in Arrow: 0.2 us a frame."""
    event_s, users = frames.event_s[start:end], frames.users[start:end]
    n = end - start
    whole = pc.cast(pa.array(event_s), pa.string())
    fraction = pc.cast(pa.array(rng.integers(100, 1000, n)), pa.string())
    shape = rng.choice(4, n, p=[0.7, 0.15, 0.1, 0.05])
    quote = pc.if_else(pa.array(shape >= 2), '"', "")
    fraction = pc.if_else(pa.array(shape % 2 == 1), pc.binary_join_element_wise(".", fraction, ""), "")
    ts = _joined(quote, whole, fraction, quote)
    is_bare = pa.array((users % 10 == 0) & (rng.random(n) < 0.5))
    quote = pc.if_else(is_bare, "", '"')
    uid = _joined(quote, frames.uids.take(pa.array(users)), quote)
    order = pa.array(rng.choice(4, n, p=[0.5, 0.3, 0.1, 0.1]).astype(np.int8))
    lines = pc.choose(
        order,
        _joined('{"ts":', ts, ',"uid":', uid, "}\n"),
        _joined('{"uid":', uid, ', "ts": ', ts, "}\n"),
        _joined('{"n":[1,"a"],"uid":', uid, ',"at":{"ts":1,"uid":"nobody"},"ts":', ts, "}\n"),
        _joined('{ "id": "\\u00e9\\"", "ts":', ts, ', "uid":', uid, ', "x":null}\n'),
    )
    return lines.buffers()[2]  # the text of one line after the other


def _joined(*parts: object) -> pa.StringArray:
    return pc.binary_join_element_wise(*parts, "")


def _load(names: list[Path], data_dir: Path, options: argparse.Namespace) -> Load:
    command = [str(Path(sys.executable).with_name("uniq-pipeline")), "ingest", "--json", *map(str, names)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UNIQ_")}
    environment |= {"UNIQ_DATA_DIR": str(data_dir), "UNIQ_RESULTS_TOPIC": "", "UNIQ_TIMEZONE": str(options.timezone)}
    started, peak_mb, kills = time.monotonic(), 0.0, 0
    while True:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        began = time.monotonic()
        while process.poll() is None:
            peak_mb = max(peak_mb, _peak_mb(process.pid))
            if kills < options.kills and time.monotonic() - began > options.kill_after:
                process.kill()
                process.wait()
                kills += 1
                print(f"killed after {time.monotonic() - began:.1f} s", flush=True)
            time.sleep(0.05)
        if process.returncode == 0:
            return Load(time.monotonic() - started, peak_mb, kills)
        if process.returncode > 0:
            sys.exit(f"ingest failed with exit code {process.returncode}")


def _peak_mb(pid: int) -> float:
    """The most memory of a process so far. getrusage would show this process's where that was more."""
    try:
        status = (Path("/proc") / str(pid) / "status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def _print_sizes(data_dir: Path) -> None:
    for folder in sorted(path for path in (data_dir / "lake").iterdir() if path.is_dir()):
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        print(f"  {folder.name:12} {sum(sizes) / 1e6:10,.1f} MB in {len(sizes):,} files")
    for name in ("ledger.db", "uniq.duckdb"):
        print(f"  {name:12} {(data_dir / name).stat().st_size / 1e6:10,.1f} MB")


# What follows knows nothing of the product but the columns of its tables.


class Differences:
    """What is wrong, printed as it is found, a few of each kind."""

    def __init__(self) -> None:
        self.found = 0

    def note(self, what: str, starts_s: np.ndarray) -> None:
        if len(starts_s):
            self.found += len(starts_s)
            print(f"WRONG: {what}: {len(starts_s):,} windows: {', '.join(map(_iso, starts_s[:SHOWN]))}")


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
    edges = np.array([_midnight_s(day, zone) for day in days if begins(day)])
    before, after = np.searchsorted(edges, [first_s, last_s], side="right")
    return edges[before - 1 : after + 1]


def _midnight_s(day: date, zone: ZoneInfo) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


def _iso(instant_s: int) -> str:
    return datetime.fromtimestamp(int(instant_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    sys.exit(main())
