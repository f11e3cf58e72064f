"""Asset checks: what they are called, how bad a failure is, and how a finding becomes a result.

A tick knows their answers anyway, so it reports them itself, without a run of their own; `checking` lets a person
execute them. None of them blocks: what must not be stored is refused before the commit.
"""

from __future__ import annotations

from collections.abc import Iterable

from dagster import AssetCheckResult, AssetCheckSeverity, AssetCheckSpec

from uniq_pipeline import health
from uniq_pipeline.config import Settings
from uniq_pipeline.health import Compared, Finding
from uniq_pipeline.ledger.health import Balance, Contiguity, Recent
from uniq_pipeline.windows import Grain

GROUP = "unique_users"
OWNERS = ["team:data"]

FRAMES = "frames"
ADMITTED = "admitted_frames"


def counts_name(grain: Grain) -> str:
    """Name of the asset of a grain."""
    return f"{grain}_counts"


CONSERVATION = AssetCheckSpec(
    "conservation",
    asset=FRAMES,
    description="Each record that came is in frames, held or quarantine. A tick looks at the batches of the last hour, "
    "the hourly job at all of them.",
)
OFFSETS = AssetCheckSpec(
    "offsets_contiguous",
    asset=FRAMES,
    description="The offset ranges of each topic partition follow each other; gaps are only where a person skipped "
    "lost records. A tick looks at what it read, the hourly job at everything.",
)
LATE = AssetCheckSpec(
    "late_ratio",
    asset=FRAMES,
    description="At most UNIQ_CHECK_LATE_RATIO of the frames counted in the last UNIQ_CHECK_SPAN_MIN minutes "
    "came late.",
)
REJECTED = AssetCheckSpec(
    "rejected_ratio",
    asset=FRAMES,
    description="At most UNIQ_CHECK_REJECTED_RATIO of the records of the last UNIQ_CHECK_SPAN_MIN minutes was "
    "quarantined.",
)
HELD = AssetCheckSpec(
    "held_ratio",
    asset=FRAMES,
    description="At most UNIQ_CHECK_HELD_RATIO of the records of the last UNIQ_CHECK_SPAN_MIN minutes was held aside.",
)
FRESHNESS = AssetCheckSpec(
    "freshness",
    asset=counts_name(Grain.MINUTE),
    description="The newest complete minute ended at most UNIQ_CHECK_FRESHNESS_S seconds ago.",
)
FRAMES_SPECS = (CONSERVATION, OFFSETS, LATE, REJECTED, HELD)

# What is wrong with the world and not with us: late or silent producers.
_WARNS = {spec.name for spec in (LATE, REJECTED, HELD, FRESHNESS)}


def sketch_spec(grain: Grain) -> AssetCheckSpec:
    return AssetCheckSpec(
        "sketch_against_exact",
        asset=counts_name(grain),
        description="Where both are known, estimate and exact count differ by at most UNIQ_CHECK_STANDARD_ERRORS "
        "standard errors. Looks at the windows that changed.",
    )


def specs_of(grain: Grain) -> list[AssetCheckSpec]:
    return [sketch_spec(grain), *([FRESHNESS] if grain is Grain.MINUTE else [])]


def frames_results(
    settings: Settings, recent: Recent, balance: Recent | Balance, offsets: Contiguity
) -> list[AssetCheckResult]:
    """Every check of `frames`."""
    return [
        _result(CONSERVATION, health.conservation(balance)),
        _result(OFFSETS, health.contiguity(offsets)),
        _result(LATE, health.late_ratio(settings, recent)),
        _result(REJECTED, health.rejected_ratio(settings, recent)),
        _result(HELD, health.held_ratio(settings, recent)),
    ]


def freshness_result(settings: Settings, front_s: int | None, now_s: float) -> AssetCheckResult:
    """Only warns: a topic without new frames is not fresh either, and nothing is wrong with us then."""
    return _result(FRESHNESS, health.freshness(settings, front_s, now_s))


def sketch_result(settings: Settings, grain: Grain, windows: Iterable[Compared]) -> AssetCheckResult:
    return _result(sketch_spec(grain), health.sketch_against_exact(settings, windows))


def _result(spec: AssetCheckSpec, finding: Finding) -> AssetCheckResult:
    return AssetCheckResult(
        asset_key=spec.asset_key,
        check_name=spec.name,
        passed=finding.passed,
        severity=AssetCheckSeverity.WARN if spec.name in _WARNS else AssetCheckSeverity.ERROR,
        description=finding.said,
        metadata=dict(finding.facts),
    )
