"""The catalog `uniq.duckdb`: views and macros over exactly the files that count, for any DuckDB client.

Rewritten whole and swapped in, so an open shell neither blocks the pipeline nor sees half a change. A shell
keeps the views it opened with: the files behind them stay for `gc_grace_h`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict

import pyarrow as pa

from uniq_pipeline.config import Settings
from uniq_pipeline.entries import all_days, entry, expired_entries, pieces, result_entries
from uniq_pipeline.errors import FileDamaged
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.expiry import Expired, all_expired
from uniq_pipeline.ledger.files import frames_by_hour, live_files, live_sizes, result_buckets
from uniq_pipeline.ledger.overview import admitted_offsets, recent_batches
from uniq_pipeline.ledger.sets import valid_sets
from uniq_pipeline.maintain import spill_folder
from uniq_pipeline.queries import macros
from uniq_pipeline.schemas import (
    ADMITTED_SCHEMA,
    BATCHES_SCHEMA,
    FRAMES_SCHEMA,
    HELD_SCHEMA,
    QUARANTINE_SCHEMA,
    RESULT_SCHEMA,
    UID_SET_SCHEMA,
)
from uniq_pipeline.warehouse import write_catalog
from uniq_pipeline.windows import GRAINS, HOUR_S, Grain

# The table of batches is copied into the catalog each time; a week of minutes is 10,080 rows.
BATCHES_DAYS = 7

SHOWN = 3  # missing files that an error names

# A view has its columns from an empty file, also where there is no other.
_EMPTY = {
    "frames": FRAMES_SCHEMA,
    "held": HELD_SCHEMA,
    "quarantine": QUARANTINE_SCHEMA,
    "result": RESULT_SCHEMA,
    "uid_set": UID_SET_SCHEMA,
}

# Read in the place of uids that are not read: the one row says why (see uniq_cheap_files).
_REFUSALS = {"too_many": "too many", "not_kept": "not kept"}


def refresh_catalog(settings: Settings, ledger: Ledger, lake: Lake, damaged: Collection[str] = ()) -> None:
    """Writes the catalog anew from what the ledger names now.

    damaged  files that the views leave out, so that they show the rest; a range that needs one still fails, by name

    Raises FileDamaged when further files are missing, after the catalog was written without them.
    """
    _write_constant_files(lake)
    damaged = {lake.absolute(path).relative_to(lake.root.resolve()).as_posix() for path in damaged}
    try:
        _write(settings, ledger, lake, damaged)
    except FileDamaged:
        missing = {path for path, size_bytes in live_sizes(ledger) if not lake.is_whole(path, size_bytes)} - damaged
        if not missing:
            raise
        _write(settings, ledger, lake, damaged | missing)
        raise FileDamaged(
            f"{len(missing):,} files that the ledger names are not there as they were written: "
            f"{', '.join(sorted(missing)[:SHOWN])}{', ...' if len(missing) > SHOWN else ''}. The views show the rest. "
            f"`uniq-pipeline repair` mends it.",
            *missing,
        ) from None


def _write(settings: Settings, ledger: Ledger, lake: Lake, damaged: Collection[str]) -> None:
    buckets = {grain: result_buckets(ledger, grain) for grain in GRAINS}
    spans = all_expired(ledger)
    gone = [hour_s for span in spans if span.what == "minute_counts" for hour_s in _hours_of(span)]
    counted_hours = sorted({start_s for start_s, _, _ in buckets[Grain.MINUTE]} | set(gone))
    filled = {
        "lake": str(lake.root),
        "damaged": "|".join(["", *sorted(damaged), ""]),
        "timezone": settings.timezone,
        "lg_k": str(settings.lg_k),
        "expired_results": expired_entries(
            (grain, span.start_s, span.end_s)
            for what, grain in (("minute_counts", Grain.MINUTE), ("hour_counts", Grain.HOUR))
            for span in spans
            if span.what == what
        ),
        "held": all_days([entry((0, 0), path) for path in live_files(ledger, "held")]),
        "quarantine": all_days([entry((0, 0), path) for path in live_files(ledger, "quarantine")]),
        **{str(grain): result_entries(grain, buckets[grain], settings.zone) for grain in GRAINS},
        **asdict(pieces(valid_sets(ledger), frames_by_hour(ledger), counted_hours, settings.zone)),
    }
    script = macros("catalog")
    for name, text in filled.items():
        script = script.replace(f"{{{name}}}", text.replace("'", "''"))
    since = ledger.now() - BATCHES_DAYS * 86_400
    tables = {
        "admitted": pa.Table.from_pylist(admitted_offsets(ledger), ADMITTED_SCHEMA),
        "batches": pa.Table.from_pylist(recent_batches(ledger, since), BATCHES_SCHEMA),
    }
    write_catalog(settings.catalog_path, spill_folder(settings), tables, macros("hll") + script)


def _hours_of(span: Expired) -> range:
    return range(span.start_s - span.start_s % HOUR_S, span.end_s, HOUR_S)


def _write_constant_files(lake: Lake) -> None:
    tables = {kind: schema.empty_table() for kind, schema in _EMPTY.items()}
    for name, reason in _REFUSALS.items():
        row = {"event_time": None, "uid": reason, "dimensions": None}
        tables[name] = pa.Table.from_pylist([row], UID_SET_SCHEMA)
    for name, table in tables.items():
        if not lake.absolute(f"empty/{name}.parquet").exists():
            lake.write(f"empty/{name}.parquet", table)
