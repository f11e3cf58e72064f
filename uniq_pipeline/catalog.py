"""The catalog `uniq.duckdb`: views and macros over exactly the files that count, for any DuckDB client.

Rewritten whole and swapped in, so an open shell neither blocks the pipeline nor sees half a change. A shell
keeps the views it opened with: the files behind them stay for `gc_grace_h`. Macros and views are planned once and
kept as a base, which every catalog is a copy of: planning them takes 0.4 s of CPU, filling a copy 0.1.
"""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Collection, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

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
from uniq_pipeline.queries import macros, query
from uniq_pipeline.schemas import (
    ADMITTED_SCHEMA,
    BATCHES_SCHEMA,
    FRAMES_SCHEMA,
    HELD_SCHEMA,
    QUARANTINE_SCHEMA,
    RESULT_SCHEMA,
    UID_SET_SCHEMA,
)
from uniq_pipeline.warehouse import ENGINE, catalog_base, write_catalog
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
    shown = _Shown(ledger)
    damaged = {lake.absolute(path).relative_to(lake.root.resolve()).as_posix() for path in damaged}
    missing = {path for path in shown.paths() if not os.path.exists(lake.root / path)} - damaged
    if missing:
        missing |= {path for path, size_bytes in live_sizes(ledger) if not lake.is_whole(path, size_bytes)} - damaged
    _write(settings, ledger, lake, shown, damaged | missing)
    if missing:
        raise FileDamaged(
            f"{len(missing):,} files that the ledger names are not there as they were written: "
            f"{', '.join(sorted(missing)[:SHOWN])}{', ...' if len(missing) > SHOWN else ''}. The views show the rest. "
            f"`uniq-pipeline repair` mends it.",
            *missing,
        )


class _Shown:
    """The files behind the views."""

    def __init__(self, ledger: Ledger) -> None:
        self.buckets = {grain: result_buckets(ledger, grain) for grain in GRAINS}
        self.frames = frames_by_hour(ledger)
        self.aside = {kind: live_files(ledger, kind) for kind in ("held", "quarantine")}

    def paths(self) -> set[str]:
        named = [path for rows in (self.frames, *self.buckets.values()) for _, _, path in rows]
        return {*named, *self.aside["held"], *self.aside["quarantine"]}


def _write(settings: Settings, ledger: Ledger, lake: Lake, shown: _Shown, damaged: Collection[str]) -> None:
    spans = all_expired(ledger)
    gone = [hour_s for span in spans if span.what == "minute_counts" for hour_s in _hours_of(span)]
    counted_hours = sorted({start_s for start_s, _, _ in shown.buckets[Grain.MINUTE]} | set(gone))
    lists = {
        "lake": str(lake.root),
        "damaged": "|".join(["", *sorted(damaged), ""]),
        "expired_results": expired_entries(
            (grain, span.start_s, span.end_s)
            for what, grain in (("minute_counts", Grain.MINUTE), ("hour_counts", Grain.HOUR))
            for span in spans
            if span.what == what
        ),
        **{kind: all_days([entry((0, 0), path) for path in paths]) for kind, paths in shown.aside.items()},
        **{str(grain): result_entries(grain, shown.buckets[grain], settings.zone) for grain in GRAINS},
        **asdict(pieces(valid_sets(ledger), shown.frames, counted_hours, settings.zone)),
    }
    since = ledger.now() - BATCHES_DAYS * 86_400
    rows = {
        "admitted": pa.Table.from_pylist(admitted_offsets(ledger), ADMITTED_SCHEMA),
        "batches": pa.Table.from_pylist(recent_batches(ledger, since), BATCHES_SCHEMA),
    }
    base = _base(settings, dict.fromkeys(lists, "") | {"lake": str(lake.root), "damaged": "|"})
    script = _filled(query("catalog/10_lists"), lists)
    write_catalog(settings.catalog_path, spill_folder(settings), base, rows, script)


def _filled(script: str, texts: Mapping[str, str]) -> str:
    for name, text in texts.items():
        script = script.replace(f"{{{name}}}", text.replace("'", "''"))
    return script


# Of this process, by what they were made of.
_bases: dict[str, bytes] = {}


def _base(settings: Settings, no_files: Mapping[str, str]) -> bytes:
    """A catalog without files, as it was made once for these settings and this version.

    The next process finds it in the spill folder, packed. What is not whole there (zlib has a checksum) is made anew.
    """
    script = _filled(macros("hll") + macros("catalog"), {"timezone": settings.timezone, "lg_k": str(settings.lg_k)})
    made_of = sha256(f"{ENGINE} {_EMPTY} {ADMITTED_SCHEMA} {BATCHES_SCHEMA} {script}".encode()).hexdigest()
    kept = spill_folder(settings) / f"catalog-{made_of[:16]}.base"
    if made_of not in _bases:
        try:
            _bases[made_of] = zlib.decompress(kept.read_bytes())
        except (OSError, zlib.error):
            tables = {"admitted": ADMITTED_SCHEMA.empty_table(), "batches": BATCHES_SCHEMA.empty_table()}
            target, scratch = settings.catalog_path, spill_folder(settings)
            _bases[made_of] = catalog_base(target, scratch, tables, _filled(script, no_files))
    if not kept.exists():
        _keep(kept, zlib.compress(_bases[made_of], level=1))
    return _bases[made_of]


def _keep(path: Path, data: bytes) -> None:
    """Whole or not at all; where there is no space for it, the next process makes its own."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)


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
