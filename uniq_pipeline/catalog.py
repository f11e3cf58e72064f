"""The catalog `uniq.duckdb`: views over exactly the files that count, for any DuckDB client.

Rewritten whole and swapped in, so an open shell neither blocks the pipeline nor sees half a change. A shell
keeps the views it opened with: the files behind them stay for `gc_grace_h`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from uniq_pipeline.config import Settings
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.files import live_files, live_results
from uniq_pipeline.ledger.overview import admitted_offsets, recent_batches
from uniq_pipeline.maintain import spill_folder
from uniq_pipeline.queries import macros, query
from uniq_pipeline.schemas import (
    ADMITTED_SCHEMA,
    BATCHES_SCHEMA,
    FRAMES_SCHEMA,
    HELD_SCHEMA,
    QUARANTINE_SCHEMA,
    RESULT_SCHEMA,
)
from uniq_pipeline.warehouse import write_catalog
from uniq_pipeline.windows import GRAINS

# The table of batches is copied into the catalog each time; a week of minutes is 10,080 rows.
BATCHES_DAYS = 7

_DATA_KINDS = {"frames": FRAMES_SCHEMA, "held": HELD_SCHEMA, "quarantine": QUARANTINE_SCHEMA}


def refresh_catalog(settings: Settings, ledger: Ledger, lake: Lake) -> None:
    """Writes the catalog anew from what the ledger names now."""
    script = query("catalog/views")
    for kind, schema in _DATA_KINDS.items():
        script = script.replace(f"{{{kind}}}", _literal(lake, kind, schema, live_files(ledger, kind)))
    for grain in GRAINS:
        script = script.replace(f"{{{grain}}}", _literal(lake, "result", RESULT_SCHEMA, live_results(ledger, grain)))
    since = ledger.now() - BATCHES_DAYS * 86_400
    tables = {
        "admitted": pa.Table.from_pylist(admitted_offsets(ledger), ADMITTED_SCHEMA),
        "batches": pa.Table.from_pylist(recent_batches(ledger, since), BATCHES_SCHEMA),
    }
    write_catalog(settings.catalog_path, spill_folder(settings), tables, macros("hll") + script)


def _literal(lake: Lake, kind: str, schema: pa.Schema, paths: Sequence[str]) -> str:
    """A SQL list of absolute paths. An empty file comes first: it gives the view its columns from the start."""
    empty = f"empty/{kind}.parquet"
    if not lake.absolute(empty).exists():
        lake.write(empty, schema.empty_table())
    quoted = ["'" + str(lake.absolute(path)).replace("'", "''") + "'" for path in (empty, *paths)]
    return "[" + ", ".join(quoted) + "]"
