"""Seconds that one measurement of all metrics takes, beside the same numbers added up over every batch there ever was.

    python bench/metrics.py [--days 731] [--dirty 0] [--outbox 0] [--dir FOLDER]

Makes a ledger as two years of ticks leave it: a batch a minute, a compaction an hour, a frames file and a result file
an hour, a held and a quarantine file a day, uid sets of closed windows, and retired files of one day. Result files are
real; all files of minutes are one and the same on disk, which is enough for reading the newest two.
--dirty and --outbox are windows that wait, as after a load of history.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

from sqlalchemy import insert  # noqa: TID251 - writes the ledger's rows as they are

from uniq_pipeline.config import Settings
from uniq_pipeline.kafka.embedded import EmbeddedBroker
from uniq_pipeline.kafka.sink import KafkaSink
from uniq_pipeline.kafka.source import KafkaSource
from uniq_pipeline.ledger import Ledger, schema
from uniq_pipeline.ledger.overview import overview
from uniq_pipeline.metrics.exposition import as_text
from uniq_pipeline.metrics.measured import Meter
from uniq_pipeline.tick import open_workshop, tick

HOUR_S, DAY_S = 3600, 86_400
MINUTES_OF_A_DAY = 1440
AT_ONCE = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, default=731)
    parser.add_argument("--dirty", type=int, default=0)
    parser.add_argument("--outbox", type=int, default=0)
    parser.add_argument("--dir", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="uniq-metrics-") as folder:
        settings = Settings(data_dir=options.dir or Path(folder), topic="bench-metrics", results_topic=None)
        _first_tick(settings)
        _fill(settings, options)
        _measure(settings)


def _first_tick(settings: Settings) -> None:
    """A real tick, so that there are result files to read."""
    broker = EmbeddedBroker()
    settings = settings.model_copy(update={"kafka_bootstrap_servers": broker.bootstrap_servers})
    now = time.time()
    frames = [
        b'{"ts":%d,"uid":"u%d"}' % (now - 7200 + i / 5, random.Random(i).randrange(3000)) for i in range(7200 * 5)
    ]
    KafkaSink(settings, settings.topic).send_frames(frames)
    with open_workshop(settings) as shop:
        tick(shop, KafkaSource(settings), None, close_windows=True)
    broker.close()


def _fill(settings: Settings, options: argparse.Namespace) -> None:
    ledger = Ledger(settings.effective_ledger_url)
    now = time.time()
    start_s = int(now - options.days * DAY_S) // DAY_S * DAY_S
    reasons = json.dumps({"on_time": 5900, "late": 80, "very_late": 12, "future": 3, "invalid_json": 5})
    lateness = json.dumps({"0": 5900, "1": 20, "10": 30, "60": 20, "120": 10, "300": 12})
    names = ("delivered", "frames", "late", "held", "quarantined", "admitted", "withdrawn", "replayed", "expired")
    zeros = {**dict.fromkeys(names, 0), "late_by_s": 0}

    def batches():
        for minute in range(options.days * MINUTES_OF_A_DAY):
            drain = {"delivered": 6000, "frames": 5980, "late": 80, "held": 15, "quarantined": 5, "late_by_s": 9000}
            for kind, values in (("drain", drain), *((("compact", {}),) if minute % 60 == 0 else ())):
                yield {
                    **{"batch_id": f"{kind}-{minute}", "kind": kind, "topic": settings.topic},
                    **{"committed_at": start_s + 60 * minute, "seconds": 0.5, "reasons": reasons, "lateness": lateness},
                    **zeros,
                    **values,
                }

    def files():
        for hour in range(options.days * 24 + 200):
            retired = None if hour < options.days * 24 else now
            for kind, every in (("frames", 1), ("result", 1), ("uid_set", 1), ("held", 24), ("quarantine", 24)):
                if hour % every == 0:
                    yield {
                        **{"path": f"{kind}/{hour}.parquet", "kind": kind, "rows": 360_000, "size_bytes": 4_000_000},
                        **{"sha256": "0" * 64, "created_at": now, "retired_at": retired, "hour_s": start_s},
                    }

    def buckets():
        for hour in range(options.days * 24 - 48):
            yield {
                **{"grain": "minute", "bucket_start_s": start_s + hour * HOUR_S, "windows": 60, "provisional": 0},
                **{"bucket_end_s": start_s + (hour + 1) * HOUR_S, "version": 9, "path": f"result/{hour}.parquet"},
            }

    def waiting(count: int, **more: object):
        for minute in range(count):
            window_s = start_s + 60 * minute
            bucket_s = window_s - window_s % HOUR_S
            yield {"grain": "minute", "window_start_s": window_s, "bucket_start_s": bucket_s, "since": now, **more}

    with ledger.writing() as connection:
        for table, rows in (
            (schema.batches, batches()),
            (schema.files, files()),
            (schema.buckets, buckets()),
            (schema.dirty, waiting(options.dirty, task="count", seq=1, reason="live")),
            (schema.outbox, waiting(options.outbox, revision=1)),
        ):
            some: list[dict] = []
            for row in rows:
                some.append(row)
                if len(some) == AT_ONCE:
                    connection.execute(insert(table), some)
                    some = []
            if some:
                connection.execute(insert(table), some)
    print(f"ledger: {(settings.data_dir / 'ledger.db').stat().st_size / 1e6:,.0f} MB")
    ledger.close()


def _measure(settings: Settings) -> None:
    meter = Meter(settings)
    text = as_text(meter.measure)
    print(f"{len(text):,} bytes, {sum(not line.startswith(b'#') for line in text.splitlines()):,} series")
    for name, do in (
        ("all metrics", lambda: as_text(meter.measure)),
        ("overview, which adds up all batches", lambda: overview(Ledger(settings.effective_ledger_url))),
    ):
        took = []
        for _ in range(20):
            started, cpu = time.perf_counter(), time.process_time()
            do()
            took.append((time.perf_counter() - started, time.process_time() - cpu))
        seconds, cpus = zip(*took, strict=True)
        print(
            f"{name}: median {1000 * statistics.median(seconds):.1f} ms, most {1000 * max(seconds):.1f} ms, "
            f"CPU {1000 * statistics.median(cpus):.1f} ms"
        )


if __name__ == "__main__":
    main()
