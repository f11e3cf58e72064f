"""Batches: what moved records, and how many went where. Nothing is lost on the way, or it is not committed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sqlalchemy import Connection

from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.files import DataFile, file_row
from uniq_pipeline.ledger.totals import Amounts, add_totals


class Kind(StrEnum):
    """What a batch was."""

    DRAIN = "drain"  # from a topic
    INGEST = "ingest"  # from a file
    ADMIT = "admit"  # held frames that a person lets count
    WITHDRAW = "withdraw"  # the way back
    REPLAY = "replay"  # quarantined records that can be read by now
    REDRAIN = "redrain"  # records read from their topic once more
    COMPACT = "compact"  # files merged into one: no record goes anywhere
    EXPIRE = "expire"  # records older than they are kept


@dataclass(frozen=True)
class Delivery:
    """The records of one batch, by where they came from and where they ended.

    delivered   read from a log for the first time
    admitted    came out of held
    withdrawn   came out of frames
    replayed    came out of quarantine
    frames, held, quarantined  where they are now; `late` are among the frames (negative where they left)
    expired     are nowhere any more, because they were kept long enough
    reasons     event class or reject reason -> records
    lateness    seconds behind the watermark, at most (intake.LATENESS_STEPS_S) -> records
    late_by_s   seconds behind the watermark of all of those, added up
    """

    delivered: int = 0
    frames: int = 0
    late: int = 0
    held: int = 0
    quarantined: int = 0
    admitted: int = 0
    withdrawn: int = 0
    replayed: int = 0
    expired: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    lateness: Mapping[str, int] = field(default_factory=dict)
    late_by_s: int = 0

    @property
    def came(self) -> int:
        return self.delivered + self.admitted + self.withdrawn + self.replayed

    @property
    def kept(self) -> int:
        return self.frames + self.held + self.quarantined

    @property
    def is_conserved(self) -> bool:
        return self.came == self.kept + self.expired


@dataclass(frozen=True)
class Batch:
    """One row of `batches`, and the files it wrote."""

    batch_id: str
    kind: Kind
    topic: str
    delivery: Delivery
    files: Sequence[DataFile]
    seconds: float


def insert_batch(connection: Connection, batch: Batch, now: float) -> None:
    """Writes a batch, adds it to the totals and names its files, within a transaction."""
    delivery = batch.delivery
    assert delivery.is_conserved, f"batch {batch.batch_id}: records went missing: {delivery}"
    connection.execute(
        schema.batches.insert(),
        {
            "batch_id": batch.batch_id,
            "kind": batch.kind,
            "topic": batch.topic,
            "committed_at": now,
            "seconds": batch.seconds,
            "delivered": delivery.delivered,
            "frames": delivery.frames,
            "late": delivery.late,
            "held": delivery.held,
            "quarantined": delivery.quarantined,
            "admitted": delivery.admitted,
            "withdrawn": delivery.withdrawn,
            "replayed": delivery.replayed,
            "expired": delivery.expired,
            "reasons": json.dumps(dict(delivery.reasons)),
            "lateness": json.dumps(dict(delivery.lateness)),
            "late_by_s": delivery.late_by_s,
        },
    )
    add_totals(connection, batch.kind, _amounts(delivery))
    if batch.files:
        connection.execute(schema.files.insert(), [file_row(data, batch.batch_id, now) for data in batch.files])


# What the totals have of a batch, besides its reasons and its lateness.
SUMMED = (
    *("delivered", "frames", "late", "held", "quarantined"),
    *("admitted", "withdrawn", "replayed", "expired", "late_by_s"),
)


def _amounts(delivery: Delivery) -> Amounts:
    return {
        ("batches", ""): 1,
        **{(name, ""): getattr(delivery, name) for name in SUMMED},
        **{("reasons", reason): records for reason, records in delivery.reasons.items()},
        **{("lateness", step): records for step, records in delivery.lateness.items()},
    }
