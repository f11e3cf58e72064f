"""A small lake that tests may damage: traffic in memory, drained, counted and closed."""

from __future__ import annotations

from pathlib import Path
from random import Random

from support.frames import MemoryTopic, small_traffic
from support.tables import asked
from uniq_pipeline.config import Settings

T0 = 1_704_067_200 - 300  # five minutes before an hour, a day, a week, a month and a year end


def traffic(settings: Settings, *, seconds: int = 600, frames_per_s: float = 2) -> MemoryTopic:
    topic = MemoryTopic(settings.topic)
    records = small_traffic(1, frames_per_s=frames_per_s, users=60).records_between(T0, T0 + seconds)
    topic.send(records, Random(1))
    return topic


def live(settings: Settings, kind: str) -> list[str]:
    """Files that count and have rows, in order."""
    sql = "SELECT path FROM files WHERE retired_at IS NULL AND kind = ? AND rows > 0 ORDER BY path"
    return [row[0] for row in asked(settings, sql, kind)]


def results(settings: Settings, grain: str) -> list[str]:
    return [row[0] for row in asked(settings, "SELECT path FROM buckets WHERE grain = ? ORDER BY 1", grain)]


def stands(settings: Settings, path: str) -> Path:
    return settings.data_dir / "lake" / path


def flip(full: Path) -> None:
    """Changes a byte in the middle: the size stays."""
    data = bytearray(full.read_bytes())
    for i in range(len(data) // 2, len(data) // 2 + 8):
        data[i] ^= 0xFF
    full.write_bytes(bytes(data))


def cut(full: Path) -> None:
    full.write_bytes(full.read_bytes()[:-9])


def delete(full: Path) -> None:
    full.unlink()


def wreck(full: Path) -> None:
    """No page can be read any more, though the file is as long as it was and ends as it did."""
    data = full.read_bytes()
    full.write_bytes(data[:4] + b"\xff" * (len(data) // 2) + data[4 + len(data) // 2 :])
