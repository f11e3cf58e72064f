"""Executing checks by hand, or after an asset was materialized from the UI: they look at everything there is."""

from collections.abc import Iterator

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckKey,
    AssetCheckResult,
    AssetChecksDefinition,
    multi_asset_check,
)

from assets import checks
from assets.resources import PipelineResource
from assets.ticking import clear_failures
from assets.vitals import look
from uniq_pipeline.trends import compared
from uniq_pipeline.windows import GRAINS, Grain


def all_checks() -> list[AssetChecksDefinition]:
    return [frames_checks, *map(_counts_checks, GRAINS)]


@multi_asset_check(name="frames_checks", specs=checks.FRAMES_SPECS, can_subset=True)
def frames_checks(context: AssetCheckExecutionContext, pipeline: PipelineResource) -> Iterator[AssetCheckResult]:
    with clear_failures(), pipeline.workshop() as shop:
        vitals = look(shop, (), thorough=True)
        results = checks.frames_results(shop.settings, vitals.recent, vitals.balance, vitals.offsets)
    yield from _selected(context, results)


def _counts_checks(grain: Grain) -> AssetChecksDefinition:
    @multi_asset_check(
        name=f"{checks.counts_name(grain)}_checks",
        specs=checks.specs_of(grain),
        can_subset=True,
        description="Over the newest windows, as many as the plot of the asset shows.",
    )
    def counts_checks(context: AssetCheckExecutionContext, pipeline: PipelineResource) -> Iterator[AssetCheckResult]:
        with clear_failures(), pipeline.workshop() as shop:
            vitals = look(shop, (grain,))
            results = [checks.sketch_result(shop.settings, grain, compared(vitals.points.get(grain, [])))]
            if grain is Grain.MINUTE:
                results.append(checks.freshness_result(shop.settings, vitals.front_s, pipeline.now()))
        if vitals.problem:
            context.log.warning(vitals.problem)
        yield from _selected(context, results)

    return counts_checks


def _selected(context: AssetCheckExecutionContext, results: list[AssetCheckResult]) -> Iterator[AssetCheckResult]:
    for result in results:
        assert result.asset_key is not None and result.check_name is not None  # all of ours name both
        if AssetCheckKey(result.asset_key, result.check_name) in context.selected_asset_check_keys:
            yield result
