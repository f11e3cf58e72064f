"""Measures the refined topic: bytes a frame and the cost of reading it, as JSON, Protocol Buffers and Avro.

    python bench/refined.py [--full 50000] [--small 200000] [--runs 5]

Of the same frames, full ones of 2 kB and small ones of 42 bytes, prints bytes a frame: of the value alone, and sent to
the broker in batches compressed by zstd, with the uid as key (JSON without one, as it comes). Then frames that one
process makes and reads in a second of its CPU: ts and uid out of JSON by the product's own extractor and by orjson,
every field out of Protocol Buffers and Avro. Last, frames that the tick's stage sends, from Parquet to the embedded
broker in the same process: a second of the clock, and of CPU of all threads, those of the broker too. Medians.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import fastavro
import orjson
import pyarrow as pa
from confluent_kafka import Producer  # noqa: TID251 - asks the client how many bytes it sent

from uniq_pipeline.config import Settings
from uniq_pipeline.demo.traffic import Traffic, TrafficProfile
from uniq_pipeline.forward import forward
from uniq_pipeline.frames import parse_frames
from uniq_pipeline.ingest import file_logs, load_file
from uniq_pipeline.kafka.embedded import EmbeddedBroker
from uniq_pipeline.kafka.sink import KafkaSink
from uniq_pipeline.refined import COLUMNS, Frame, messages
from uniq_pipeline.tick import open_workshop

T0 = 1_767_222_000
FRAMES_PER_S = 1000
CHUNK = 500  # of the extractor, as a drain reads
AVRO = fastavro.parse_schema(
    {
        "type": "record",
        "name": "Frame",
        "fields": [
            {"name": "event_time", "type": "long"},
            {"name": "uid", "type": "string"},
            {"name": "topic", "type": "string"},
            {"name": "kafka_partition", "type": "int"},
            {"name": "kafka_offset", "type": "long"},
            {"name": "dimensions", "type": {"type": "map", "values": "string"}, "default": {}},
            {"name": "revision", "type": "long", "default": 0},
            {"name": "withdrawn", "type": "boolean", "default": False},
        ],
    }
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", type=int, default=50_000)
    parser.add_argument("--small", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    names = ("protobuf", "fastavro", "orjson", "msgspec", "confluent-kafka", "pyarrow")
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in names)}")
    print(f"{platform.machine()}, {_cpu()}")
    broker = EmbeddedBroker()
    for small, frames in ((False, options.full), (True, options.small)):
        _measure(broker.bootstrap_servers, small, frames, options.runs)
    broker.close()


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else "unknown processor"


def _measure(brokers: str, small: bool, frames: int, runs: int) -> None:
    kind = "small" if small else "full"
    profile = TrafficProfile(FRAMES_PER_S, users=100_000, late_share=0, flip_share=0, bad_share=0, small=small)
    payloads = [record.payload for record in Traffic(profile).records_between(T0, T0 + frames // FRAMES_PER_S)]
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            data_dir=Path(folder), kafka_bootstrap_servers=brokers, results_topic=None, refined_topic=f"refined-{kind}"
        )
        table = _load(settings, payloads)
        rates = [_forwarded(settings, len(payloads)) for _ in range(runs)]
    rows = table.to_pylist()
    for row in rows:  # as if it had been read from a topic: a path would only make the messages longer
        row |= {"topic": "uniq.frames", "event_time": int(row["event_time"].timestamp()), "dimensions": {}}
    as_topic = table.set_column(
        table.schema.get_field_index("topic"), "topic", pa.array(["uniq.frames"] * table.num_rows)
    ).combine_chunks()
    protobuf = list(messages(as_topic.to_batches()[0]))
    keys, values = [key for key, _ in protobuf], [value for _, value in protobuf]
    avro = [_to_avro(row) for row in rows]
    print(f"\n{kind} frames: {len(payloads):,}, medians of {runs}")
    print(f"{'':18}{'bytes':>8}{'zstd, sent':>13}{'made/s':>12}{'read/s':>12}")

    def line(name: str, some: Sequence[bytes], keyed: bool, make: Callable | None, *read: tuple[str, Callable]) -> None:
        wire = _wire_bytes(brokers, f"{name}-{kind}", keys if keyed else None, some) / len(some)
        made = f"{_rate(len(some), make, runs):12,.0f}" if make else f"{'':12}"
        size = sum(map(len, some)) / len(some)
        for i, (how, work) in enumerate(read):
            shown = f"{size:8.1f}{wire:13.1f}{made}" if i == 0 else f"{'':33}"
            print(f"{how:18}{shown}{_rate(len(some), work, runs):12,.0f}")

    line(
        *("json", payloads, False, None),
        ("JSON, extractor", lambda: _extract(payloads)),
        ("JSON, orjson", lambda: _orjson(payloads)),
    )
    batch = as_topic.to_batches()[0]
    line("protobuf", values, True, lambda: list(messages(batch)), ("Protocol Buffers", lambda: _from_protobuf(values)))
    line("avro", avro, True, lambda: [_to_avro(row) for row in rows], ("Avro", lambda: _from_avro(avro)))
    clock, cpu = (statistics.median(some) for some in zip(*rates, strict=True))
    print(
        f"the stage, from Parquet to acknowledged: {clock:,.0f} frames/s; {cpu:,.0f} a second of CPU, with the broker's"
    )


def _load(settings: Settings, payloads: Sequence[bytes]) -> pa.Table:
    """Ingests the payloads; the frames, in order of their offsets."""
    lines = settings.data_dir / "frames.jsonl"
    lines.write_bytes(b"\n".join(payloads) + b"\n")
    with open_workshop(settings) as shop:
        for _ in load_file(shop, file_logs(shop.ledger, [str(lines)])[0]):
            pass
        paths = [path.relative_to(shop.lake.root) for path in (shop.lake.root / "frames").rglob("*.parquet")]
        return pa.concat_tables([shop.lake.read(str(path), COLUMNS) for path in paths]).sort_by("kafka_offset")


def _forwarded(settings: Settings, frames: int) -> tuple[float, float]:
    """Frames a second of the clock and of CPU of one call of the stage; what waited waits again after it."""
    with open_workshop(settings) as shop, shop.ledger.writing() as connection:
        waiting = connection.exec_driver_sql("SELECT * FROM refined_outbox").all()
    with open_workshop(settings) as shop:
        sink = KafkaSink(settings, settings.refined_topic or "")
        sink.send([(b"first", b"")])  # connects
        started, cpu_started = time.perf_counter(), time.process_time()
        assert forward(shop.ledger, shop.lake, sink) == frames
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        with shop.ledger.writing() as connection:
            for row in waiting:
                connection.exec_driver_sql("INSERT INTO refined_outbox VALUES (?, ?, ?, ?, ?, ?)", tuple(row))
    return frames / seconds, frames / cpu_seconds


def _wire_bytes(brokers: str, topic: str, keys: Sequence[bytes] | None, values: Sequence[bytes]) -> int:
    """Bytes of all requests a producer like the product's sends for these messages."""
    seen: list[int] = []
    producer = Producer(
        {
            "bootstrap.servers": brokers,
            "enable.idempotence": True,
            "compression.type": "zstd",
            "linger.ms": 20,
            "statistics.interval.ms": 50,
            "stats_cb": lambda text: seen.append(sum(one["txbytes"] for one in json.loads(text)["brokers"].values())),
        }
    )
    producer.list_topics(topic, timeout=10)

    def settled() -> int:
        seen.clear()
        while len(seen) < 3:
            producer.poll(0.1)
        return seen[-1]

    before = settled()
    for i, value in enumerate(values):
        producer.produce(topic, value, keys[i] if keys else None)
        if len(producer) > 50_000:
            producer.poll(0.05)
    assert producer.flush(30) == 0
    return settled() - before


def _rate(frames: int, work: Callable[[], object], runs: int) -> float:
    """Frames a second of CPU, median."""
    rates = []
    for _ in range(runs):
        started = time.thread_time()
        work()
        rates.append(frames / (time.thread_time() - started))
    return statistics.median(rates)


def _extract(payloads: Sequence[bytes]) -> int:
    return sum(len(parse_frames(payloads[i : i + CHUNK]).index) for i in range(0, len(payloads), CHUNK))


def _orjson(payloads: Sequence[bytes]) -> int:
    return sum(bool(root["ts"] and root["uid"]) for root in map(orjson.loads, payloads))


def _from_protobuf(values: Sequence[bytes]) -> list[tuple]:
    return [
        (f.event_time, f.uid, f.topic, f.kafka_partition, f.kafka_offset, f.revision, f.withdrawn)
        for f in map(Frame.FromString, values)
    ]


def _to_avro(row: dict) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, AVRO, row)
    return out.getvalue()


def _from_avro(values: Sequence[bytes]) -> list[tuple]:
    return [tuple(fastavro.schemaless_reader(io.BytesIO(value), AVRO).values()) for value in values]


if __name__ == "__main__":
    main()
