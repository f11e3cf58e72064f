"""Health: can the numbers be trusted? Judgements of what the ledger and the results say, against the settings.

A finding says what was measured and against what; one that did not pass says what to do. The asset checks show
them; nothing here knows of Dagster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from uniq_pipeline.config import Settings
from uniq_pipeline.ledger.health import MOST_NAMED, Balance, Contiguity, Recent
from uniq_pipeline.windows import MINUTE_S, Window, iso

# Of a handful of users, two in one register are already many standard errors.
FEW_USERS = 2


@dataclass(frozen=True)
class Finding:
    """What one check found. `said` is what to do where it did not pass; `facts` are for people, and plot well."""

    passed: bool
    said: str
    facts: Mapping[str, int | float | str]


@dataclass(frozen=True)
class Compared:
    """A window with an exact count and an estimate."""

    window: Window
    exact: int
    estimate: float


def complete_until_s(front_s: int | None) -> int | None:
    """End of the newest complete minute: the event front has passed it. Late frames may still come."""
    return None if front_s is None else front_s - front_s % MINUTE_S


def conservation(seen: Recent | Balance) -> Finding:
    """Each record that came is in frames, held or quarantine, in every batch."""
    facts = {"batches_looked_at": seen.batches, "records_came": seen.came, "records_kept": seen.kept}
    if not seen.uneven:
        return Finding(True, f"{seen.came:,} records came and were kept, in {seen.batches:,} batches", facts)
    return Finding(
        False,
        f"Records came and were not kept, or were kept twice, in batch {'; '.join(seen.uneven)}. Run "
        f"`uniq-pipeline verify`, which names the files, and do not publish counts of these hours before.",
        facts,
    )


def contiguity(seen: Contiguity) -> Finding:
    """The offset ranges of each topic partition follow each other; gaps are only where a person gave offsets up."""
    missing = sum(gap.end_offset - gap.start_offset for gap in seen.gaps)
    facts: dict[str, int | float | str] = {
        "ranges_looked_at": seen.ranges,
        "gaps_or_overlaps": len(seen.gaps),
        "offsets_concerned": missing,
        "most_allowed": 0,
    }
    if not seen.gaps:
        return Finding(True, f"{seen.ranges:,} offset ranges follow each other", facts)
    named = "; ".join(map(str, seen.gaps[:MOST_NAMED]))
    more = f" and {len(seen.gaps) - MOST_NAMED} more" if len(seen.gaps) > MOST_NAMED else ""
    return Finding(
        False,
        f"{named}{more}. `uniq-pipeline verify` looks closer; `uniq-pipeline repair` reads again what Kafka still "
        f"holds.",
        facts,
    )


def freshness(settings: Settings, front_s: int | None, now_s: float) -> Finding:
    """The newest complete minute ended a short while ago."""
    limit = settings.check_freshness_s
    end_s = complete_until_s(front_s)
    advice = "Is the schedule every_minute on, and does Kafka get new frames? `uniq-pipeline status` shows the lag."
    if end_s is None:
        return Finding(False, f"No frame yet. {advice}", {"most_seconds_allowed": limit})
    behind = round(now_s - end_s, 1)
    facts = {"seconds_behind": behind, "most_seconds_allowed": limit, "complete_until": iso(end_s)}
    if behind <= limit:
        return Finding(True, f"complete until {iso(end_s)}", facts)
    return Finding(False, f"Complete until {iso(end_s)} only, {behind:,.0f} s ago. {advice}", facts)


def late_ratio(settings: Settings, seen: Recent) -> Finding:
    return _ratio(
        settings,
        seen,
        seen.late,
        seen.frames,
        settings.check_late_ratio,
        "frames came late",
        "Where producers are slow for good, raise UNIQ_EXPECTED_DELAY_S, or UNIQ_CHECK_LATE_RATIO; the plot of "
        "lateness on this asset shows by how much.",
    )


def rejected_ratio(settings: Settings, seen: Recent) -> Finding:
    return _ratio(
        settings,
        seen,
        seen.quarantined,
        seen.delivered,
        settings.check_rejected_ratio,
        "records were quarantined",
        "Look at `uniq-pipeline query 'FROM quarantine LIMIT 9'`; after a mended setting (UNIQ_TS_UNIT) or producer "
        "launch the job replay_quarantine.",
    )


def held_ratio(settings: Settings, seen: Recent) -> Finding:
    return _ratio(
        settings,
        seen,
        seen.held,
        seen.delivered,
        settings.check_held_ratio,
        "records were held aside and are not counted",
        "`uniq-pipeline query 'FROM held_counts'` says for when; materialize those hours of admitted_frames to count "
        "them, or set UNIQ_ADMIT_HELD.",
    )


def _ratio(settings: Settings, seen: Recent, part: int, whole: int, limit: float, what: str, advice: str) -> Finding:
    share = part / whole if whole else 0.0
    enough = whole >= settings.check_min_records
    facts: dict[str, int | float | str] = {
        "ratio": round(share, 6),
        "most_allowed": limit,
        "records": part,
        "of_records": whole,
        "since": iso(int(seen.since)),
    }
    if seen.reasons:
        facts["most_frequent"] = ", ".join(f"{name} {records:,}" for name, records in seen.reasons.most_common(4))
    if not enough:
        few = f"only {whole:,} records since {iso(int(seen.since))}; UNIQ_CHECK_MIN_RECORDS says how many are enough"
        return Finding(True, few, facts)
    found = f"{share:.2%} of {whole:,} {what}"
    return Finding(True, found, facts) if share <= limit else Finding(False, f"{found}. {advice}", facts)


def sketch_against_exact(settings: Settings, windows: Iterable[Compared]) -> Finding:
    """Where both are known, estimate and exact count are within so many standard errors of each other."""
    standard_error = 1.04 / 2 ** (settings.lg_k / 2)
    limit = settings.check_standard_errors
    compared, worst, worst_errors, broken = 0, 0.0, 0.0, []
    for one in windows:
        compared += 1
        off = abs(one.estimate - one.exact)
        if one.exact > FEW_USERS:
            worst = max(worst, off / one.exact)
        if off > FEW_USERS:
            worst_errors = max(worst_errors, off / (standard_error * max(1, one.exact)))
        if off > max(FEW_USERS, limit * standard_error * one.exact):
            broken.append(f"{one.window}: exact {one.exact:,}, estimate {one.estimate:,.1f}")
    facts = {
        "windows_compared": compared,
        "worst_error_percent": round(100 * worst, 3),
        "standard_error_percent": round(100 * standard_error, 3),
        "worst_in_standard_errors": round(worst_errors, 2),
        "most_standard_errors_allowed": limit,
    }
    if not broken:
        return Finding(True, f"{compared:,} windows compared", facts)
    more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
    return Finding(
        False,
        f"{'; '.join(broken[:3])}{more}. One of the two is wrong: materialize the partition again, and run "
        f"`uniq-pipeline verify` when it stays.",
        facts,
    )
