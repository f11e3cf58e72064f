"""Measures compaction: an hour of frames in as many files as there were ticks, merged into one.

    python bench/compact.py [--frames-per-s 1000] [--files 60] [--data-dir FOLDER]

Prints frames and megabytes a second, the peak memory of the process that merges, sizes before and after, and what
reading one minute and counting the whole hour exactly take before and after (medians of five).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path

import duckdb  # noqa: TID251 - reads as a person's shell would
import numpy as np
import pyarrow as pa

from uniq_pipeline.compact import compact
from uniq_pipeline.config import Settings
from uniq_pipeline.coupons import coupons
from uniq_pipeline.lateness import EventClock
from uniq_pipeline.ledger.batches import Batch, Delivery, Kind
from uniq_pipeline.ledger.files import live_files
from uniq_pipeline.ledger.logs import LogCommit, commit_log
from uniq_pipeline.loading import new_batch_id, write_frames
from uniq_pipeline.offsets import OffsetRange
from uniq_pipeline.schemas import FRAMES_SCHEMA
from uniq_pipeline.tick import open_workshop

HOUR_S = 1_767_222_000
RUNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames-per-s", type=int, default=1000)
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=options.data_dir or Path(folder), results_topic=None)
        fill(settings, options.frames_per_s * 3600, options.files, options.users)
        before = read(settings)
        context = multiprocessing.get_context("spawn")
        answers = context.Queue()
        process = context.Process(target=merge, args=(settings, answers))
        process.start()
        report, seconds, before_mb, peak_mb = answers.get()
        process.join()
        after = read(settings)
    print(
        f"{report['files']} files of {report['rows']:,} frames merged into {report['merged_into']} in {seconds:.1f} s"
    )
    print(f"{report['rows'] / seconds:,.0f} frames/s; {report['bytes_before'] / 1e6:.1f} MB before, ", end="")
    print(f"{report['bytes_after'] / 1e6:.1f} MB after; peak memory {peak_mb:,} MB, {before_mb:,} MB before it began")
    for name in before:
        print(f"{name}: {before[name]:.0f} ms before, {after[name]:.0f} ms after")


def fill(settings: Settings, frames: int, files: int, users: int) -> None:
    """An hour of frames, uids by a power law, as `files` batches of one topic partition."""
    rng, each = np.random.default_rng(1), frames // files
    with open_workshop(settings) as shop:
        for i in range(files):
            uids = pa.array([f"user-{n:08d}" for n in (users * rng.random(each) ** 3).astype(int)])
            event_s = HOUR_S + (3600 * (i + rng.random(each)) / files).astype(np.int64)
            event_s = np.clip(event_s - rng.integers(0, 5, each), HOUR_S, HOUR_S + 3599)
            table = table_of(event_s, uids, i * each)
            offsets, batch_id = OffsetRange(0, i * each, (i + 1) * each), new_batch_id(time.time())
            delivery = Delivery(delivered=each, frames=each)
            footer = {
                "uniq.topic": "bench",
                "uniq.topic_id": "id",
                "uniq.batch_id": batch_id,
                "uniq.kind": "drain",
                "uniq.ranges": json.dumps([[0, offsets.start_offset, offsets.end_offset, each]]),
                "uniq.delivery": json.dumps(vars(delivery)),
                "uniq.clocks": json.dumps({0: EventClock().as_dict()}),
            }
            written = write_frames(shop.lake, table, batch_id, footer)
            commit_log(
                shop.ledger,
                LogCommit(
                    Batch(batch_id, Kind.DRAIN, "bench", delivery, written, 0.0),
                    "id",
                    [offsets],
                    {0: each},
                    {},
                    {0: EventClock()},
                    {0: None},
                    {0: offsets.end_offset},
                    [],
                    {},
                    {},
                    [],
                ),
            )


def table_of(event_s: np.ndarray, uids: pa.Array, first_offset: int) -> pa.Table:
    n = len(event_s)
    times = pa.array(event_s * 1_000_000, FRAMES_SCHEMA.field("event_time").type)
    return pa.table(
        [
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array(["bench"])),
            pa.array(np.zeros(n, np.int32)),
            pa.array(np.arange(first_offset, first_offset + n)),
            times,
            times,
            uids,
            coupons(uids),
            pa.array(np.zeros(n, np.int32)),
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array(["on_time"])),
            pa.nulls(n, FRAMES_SCHEMA.field("dimensions").type),
        ],
        schema=FRAMES_SCHEMA,
    )


def merge(settings: Settings, answers: multiprocessing.Queue) -> None:
    with open_workshop(settings) as shop:
        before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        started = time.monotonic()
        report = compact(shop, closed_before_s=1 << 40)
        seconds = time.monotonic() - started
    answers.put((vars(report), seconds, before_mb, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10))


def read(settings: Settings) -> dict[str, float]:
    """Milliseconds of two questions to the frames that count."""
    with open_workshop(settings) as shop:
        paths = [str(shop.lake.absolute(path)) for path in live_files(shop.ledger, "frames")]
    minute = "WHERE event_time >= to_timestamp($start) AND event_time < to_timestamp($start + 60)"
    found = {}
    with duckdb.connect(config={"threads": 2}) as db:
        db.execute("SET enable_progress_bar = false")
        for name, where in {"one minute": minute, "the hour": "WHERE $start > 0"}.items():
            times = []
            for _ in range(RUNS):
                started = time.monotonic()
                db.execute(
                    f"SELECT count(DISTINCT uid) FROM read_parquet($paths) {where}",
                    {"paths": paths, "start": HOUR_S + 1800},
                ).fetchall()
                times.append(1000 * (time.monotonic() - started))
            found[name] = statistics.median(times)
    return found


if __name__ == "__main__":
    main()
