"""Merging: one new file in the place of many, which says in its footer what theirs said.

A lost ledger is rebuilt from footers, so what a footer tells of its batch must outlive the file (see rebuild.remains).
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger.batches import Delivery, Kind
from uniq_pipeline.ledger.expiry import Expired
from uniq_pipeline.ledger.files import MergedFile
from uniq_pipeline.ledger.tallies import Tally

# Batches that put one file in the place of others, and move no record.
MERGES = (Kind.COMPACT, Kind.EXPIRE)


@dataclass(frozen=True, slots=True)
class Source:
    """A file that another stands for: its name, its event times (inclusive), and the notes of its footer."""

    path: str
    min_event_s: int | None
    max_event_s: int | None
    notes: Mapping[str, str]


def sources_of(lake: Lake, paths: Sequence[str]) -> list[Source]:
    """What these files say, and what those said that they stand for themselves. Reads footers only."""
    found: list[Source] = []
    for path in paths:
        footer = lake.footer(path)
        notes = {name: note for name, note in footer.notes.items() if name.startswith("uniq.")}
        inner = notes.pop("uniq.merged", None)
        notes.setdefault("uniq.rows", str(footer.rows))
        found.append(Source(path, footer.min_event_s, footer.max_event_s, notes))
        if inner is not None:
            found += unpack(inner)
    return found


def pack(sources: Sequence[Source]) -> str:
    """Sources as the note `uniq.merged`; those of 60 batches take about 20 kB."""
    rows = [[source.path, source.min_event_s, source.max_event_s, dict(source.notes)] for source in sources]
    return base64.b64encode(zlib.compress(json.dumps(rows).encode())).decode()


def unpack(note: str) -> list[Source]:
    """Raises ValueError for what `pack` did not make."""
    try:
        return [Source(*row) for row in json.loads(zlib.decompress(base64.b64decode(note)))]
    except (zlib.error, TypeError) as error:
        raise ValueError(f"uniq.merged: {error}") from None


def notes_of_merge(
    kind: Kind,
    batch_id: str,
    topic: str,
    delivery: Delivery,
    taken: Sequence[str],
    sources: Sequence[Source],
    *,
    tallies: Mapping[str, Tally] = MappingProxyType({}),
    expired: Expired | None = None,
) -> dict[str, str]:
    """The footer of a merged file.

    tallies  held or rejected -> records by minute, of rows that expired
    """
    notes = {
        "uniq.topic": topic,
        "uniq.topic_id": "",
        "uniq.batch_id": batch_id,
        "uniq.kind": str(kind),
        "uniq.ranges": "[]",
        "uniq.delivery": json.dumps(asdict(delivery)),
        "uniq.taken": json.dumps(list(taken)),
        "uniq.merged": pack(sources),
    }
    if tallies:
        rows = [
            [what, minute_s, reason, n] for what, tally in tallies.items() for (minute_s, reason), n in tally.items()
        ]
        notes["uniq.tallies"] = json.dumps(rows)
    if expired is not None:
        notes["uniq.expired"] = json.dumps(asdict(expired))
    return notes


def tallies_in(notes: Mapping[str, str]) -> dict[str, Tally]:
    """The tallies of `notes_of_merge`."""
    tallies: dict[str, dict[tuple[int, str], int]] = {}
    for what, minute_s, reason, records in json.loads(notes.get("uniq.tallies", "[]")):
        tallies.setdefault(what, {})[minute_s, reason] = records
    return dict(tallies)


def expired_in(notes: Mapping[str, str]) -> Expired | None:
    """The span of `notes_of_merge`."""
    return Expired(**json.loads(notes["uniq.expired"])) if "uniq.expired" in notes else None


def merged_in(sources: Sequence[Source]) -> list[MergedFile]:
    """The files of batches among sources: all but those that were merged themselves."""
    return [
        MergedFile(
            source.path,
            source.notes["uniq.batch_id"],
            source.notes.get("uniq.rest_of"),
            int(source.notes["uniq.rows"]),
            source.min_event_s,
            source.max_event_s,
        )
        for source in sources
        if Kind(source.notes["uniq.kind"]) not in MERGES
    ]


def topic_of(sources: Sequence[Source]) -> str:
    """The one topic of all of them, or nothing."""
    topics = {source.notes.get("uniq.topic", "") for source in sources} - {""}
    return topics.pop() if len(topics) == 1 else ""
