"""Rebuild: makes the ledger anew from the lake when it was lost.

What was committed is chosen from the footers (see committed), what counts beside frames is read from the few rows
there are of it, result files are taken over with their revisions, and every window is computed again by the next
tick: one that comes out the same keeps its revision.

Not in the lake, and so not in the new ledger: how long batches took, offsets that were skipped on a person's word
before (they show as a gap), and what was published already (it is sent again).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import InputError, OffsetsLost
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.batches import Delivery
from uniq_pipeline.ledger.rebuilt import (
    refuse_unless_empty,
)
from uniq_pipeline.offsets import OffsetRange
from uniq_pipeline.rebuild.committed import Committed, Loss, choose, shown
from uniq_pipeline.rebuild.remains import Progress, Remains, survey
from uniq_pipeline.rebuild.taken_over import ResultFile, newest_results

SHOWN = 5  # names of files that do not count; --json has them all


@dataclass
class Plan:
    """What a rebuild is going to do, and what it cannot."""

    remains: Remains
    committed: Committed
    results: list[ResultFile]
    orphans: list[str]
    rows: dict[str, int] = field(default_factory=dict)  # that count, by kind of file

    @property
    def losses(self) -> list[Loss]:
        return self.committed.losses

    @property
    def batch_ids(self) -> list[str]:
        """Batches that count, those of logs first."""
        logs = (b for log in self.committed.logs for b in log.batch_ids if b not in self.committed.without)
        return [*logs, *self.committed.moves]

    @property
    def batches(self) -> int:
        return len(self.batch_ids)

    def delivery(self, batch_id: str) -> Delivery:
        """What a batch brought, as far as it is there."""
        found = self.remains.batches[batch_id]
        if batch_id not in self.committed.partly:
            return found.delivery
        there = found.rows_written()
        return Delivery(
            delivered=sum(there.values()),
            frames=there["frames"],
            held=there["held"],
            quarantined=there["quarantine"],
        )

    @property
    def windows(self) -> int:
        return sum(len(result.revisions) for result in self.results)

    def lines(self) -> Iterator[str]:
        """What a person is told first."""
        for log in self.committed.logs:
            ends = ", ".join(
                f"topic partition {p} {shown(OffsetRange(p, log.starts[p], end))}"
                for p, end in sorted(log.ends.items())
            )
            older = "" if log.goes_on else " (an older topic of this name)"
            yield f"topic {log.topic}{older}: {len(log.batch_ids):,} batches; {ends}"
        counts = ", ".join(f"{self.rows[kind]:,} {word}" for kind, word in _WORDS.items())
        yield f"{self.batches:,} batches ({len(self.committed.moves):,} of them moves) with {counts}"
        yield f"{len(self.results):,} result files with {self.windows:,} windows are taken over; all are computed again"
        names = ", ".join([*self.orphans[:SHOWN], *(["..."] if len(self.orphans) > SHOWN else [])])
        which = f": {names}" if names else ""
        yield f"{len(self.orphans):,} files do not count and are left alone, gc removes them later{which}"
        for notice in self.committed.notices:
            yield f"note: {notice}"
        for loss in self.losses:
            yield f"lost: {loss}"


_WORDS = {"frames": "frames", "held": "held", "quarantine": "quarantined"}


def plan_rebuild(
    settings: Settings, ledger: Ledger, lake: Lake, progress: Progress = lambda done, total, unit: None
) -> Plan:
    """Reads what the lake tells; changes nothing.

    Raises LedgerError when the ledger is not empty, LakeError when batches overlap, SettingError when the lake was
    made under other settings, and InputError when there is nothing to make a ledger from.
    """
    refuse_unless_empty(ledger)
    remains = survey(lake, progress)
    if not remains.batches:
        raise InputError(f"lake folder {lake.root} has no file of a batch to make a ledger from; see UNIQ_DATA_DIR")
    committed = choose(lake, remains)
    results, other_results = newest_results(settings, lake, committed.notices, progress)
    known = {*committed.live, *committed.retired}
    orphans = [path for path in (*remains.files, *remains.damaged, *remains.strange) if path not in known]
    plan = Plan(remains, committed, results, sorted([*orphans, *other_results]))
    plan.rows = _rows(plan)
    return plan


def _rows(plan: Plan) -> dict[str, int]:
    rows = dict.fromkeys(_WORDS, 0)
    for batch_id in plan.batch_ids:
        delivery = plan.delivery(batch_id)
        rows["frames"] += delivery.frames - delivery.withdrawn
        rows["held"] += delivery.held - delivery.admitted
        rows["quarantine"] += delivery.quarantined - delivery.replayed
    return rows


def refuse_losses(plan: Plan) -> None:
    """Raises OffsetsLost when something is lost."""
    if plan.losses:
        raise OffsetsLost(
            f"{'; '.join(map(str, plan.losses))}. Nothing was changed. Bring back what is missing, or go on without "
            f"it, and record that: `uniq-pipeline rebuild --accept-gaps`."
        )
