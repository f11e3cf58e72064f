"""Years of made-up frames, written as files and loaded by the product: what the benchmarks of history share.

The frames have a daily and a weekly rhythm, 200,000 users of skewed activity, several shapes and key orders, and
come in the order of their arrival: 0-5 s after their time, 2% up to 100 s; with `shuffled` all of them up to 100 s.
They go on for three hours past the last day, so that its windows close.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from processes import peak_memory_mb

USERS = 200_000
TAIL_S = 3 * 3600


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


def add_options(parser: argparse.ArgumentParser, *, frames: int, start: date, days: int, files: int) -> None:
    """The options that the functions here read."""
    parser.add_argument("--frames", type=int, default=frames)
    parser.add_argument("--start", type=date.fromisoformat, default=start, help="first local day")
    parser.add_argument("--days", type=int, default=days)
    parser.add_argument("--files", type=int, default=files)
    parser.add_argument("--shuffled", action="store_true", help="every frame is late by up to 100 s, in any order")
    parser.add_argument("--timezone", type=ZoneInfo, default=ZoneInfo("Europe/Zurich"))
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--kill-after", type=float, default=60, metavar="S")
    parser.add_argument("--seed", type=int, default=1)


def generate(options: argparse.Namespace) -> Frames:
    rng = np.random.default_rng(options.seed)
    zone = options.timezone
    start_s = midnight_s(options.start, zone)
    end_s = midnight_s(options.start + timedelta(days=options.days), zone) + TAIL_S
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


def write(frames: Frames, folder: Path, files: int, seed: int) -> list[Path]:
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


def load(names: list[Path], data_dir: Path, options: argparse.Namespace, *, close: bool = True) -> Load:
    """Loads the files by the product's command, and without `close` makes no exact counts from the hour up."""
    command = [str(Path(sys.executable).with_name("uniq-pipeline")), "ingest", "--json", *map(str, names)]
    command += [] if close else ["--no-close"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UNIQ_")}
    environment |= {"UNIQ_DATA_DIR": str(data_dir), "UNIQ_RESULTS_TOPIC": "", "UNIQ_TIMEZONE": str(options.timezone)}
    started, peak_mb, kills = time.monotonic(), 0.0, 0
    while True:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        began = time.monotonic()
        while process.poll() is None:
            peak_mb = max(peak_mb, peak_memory_mb(process.pid))
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


def print_sizes(data_dir: Path) -> None:
    for folder in sorted(path for path in (data_dir / "lake").iterdir() if path.is_dir()):
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        print(f"  {folder.name:12} {sum(sizes) / 1e6:10,.1f} MB in {len(sizes):,} files")
    for name in ("ledger.db", "uniq.duckdb"):
        print(f"  {name:12} {(data_dir / name).stat().st_size / 1e6:10,.1f} MB")


def midnight_s(day: date, zone: ZoneInfo) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


def iso(instant_s: int) -> str:
    return datetime.fromtimestamp(int(instant_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
