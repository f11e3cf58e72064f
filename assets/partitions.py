"""Dagster partitions of the result assets: one a bucket, that is one a result file.

A minute is no partition: Dagster advises at most 100,000 an asset, which minutes reach in 69 days, and needs
12 ms to validate each of them. Two years of hours are 17,500 and stay quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import lru_cache
from zoneinfo import ZoneInfo

from dagster import TimeWindowPartitionsDefinition

from uniq_pipeline.config import Settings
from uniq_pipeline.windows import BUCKET, GRAINS, Grain, Window, from_epoch, to_epoch, window_at

# Key format and cron of each bucket grain. The hour's cron takes its minute from the zone, see `_cron`.
_SHAPES: Mapping[Grain, tuple[str, str]] = {
    Grain.HOUR: ("%Y-%m-%d-%H:%M", "{minute} * * * *"),
    Grain.DAY: ("%Y-%m-%d", "0 0 * * *"),
    Grain.WEEK: ("%G-W%V-%u", "0 0 * * 1"),
    Grain.MONTH: ("%Y-%m", "0 0 1 * *"),
    Grain.YEAR: ("%Y", "0 0 1 1 *"),
}


@dataclass(frozen=True)
class Calendar:
    """The partitions of each grain's asset. All have one time zone, or Dagster could not map between them."""

    zone: ZoneInfo
    definitions: Mapping[Grain, TimeWindowPartitionsDefinition]

    def key_of(self, grain: Grain, bucket: Window) -> str | None:
        """The partition key of a bucket of that grain; None where the asset shows no such partition (yet)."""
        definition = self.definitions[grain]
        # Compared by instant: in the autumn the same local hour comes twice.
        if bucket.start_s < to_epoch(definition.start):
            return None
        key = definition.get_partition_key_for_timestamp(bucket.start_s)
        return key if definition.has_partition_key(key) else None


def calendar_of(settings: Settings) -> Calendar:
    """The calendar of these settings."""
    return _calendar(settings.timezone, settings.history_start)


@lru_cache(maxsize=8)
def _calendar(timezone: str, history_start: date) -> Calendar:
    zone = ZoneInfo(timezone)
    first_s = to_epoch(datetime.combine(history_start, time.min, tzinfo=zone))
    of_bucket = {grain: _partitions(window_at(grain, first_s, zone), zone) for grain in _SHAPES}
    return Calendar(zone, {grain: of_bucket[BUCKET[grain]] for grain in GRAINS})


def _partitions(first: Window, zone: ZoneInfo) -> TimeWindowPartitionsDefinition:
    """Partitions from the window `first` on, with the open one.

    Hours are UTC hours whatever the zone: in Kolkata they start at half past, local time. Only where the clock
    changes by half an hour (Lord Howe Island) are half a year's partitions half an hour beside the files;
    backfills and counts are right there too.
    """
    key_format, cron = _SHAPES[first.grain]
    start = from_epoch(first.start_s).astimezone(zone)
    return TimeWindowPartitionsDefinition(
        # Dagster takes a naive start to be local time in `timezone`.
        start=start.replace(tzinfo=None),
        fmt=key_format,
        cron_schedule=cron.format(minute=start.minute),
        timezone=zone.key,
        end_offset=1,
    )
