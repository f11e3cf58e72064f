"""Everything Dagster shows and runs. `workspace.yaml` names this module."""

import warnings

from dagster import BetaWarning, Definitions, in_process_executor

from assets.assets import all_assets
from assets.audit import AUDIT_CHECKS
from assets.checking import all_checks
from assets.jobs import JOBS
from assets.resources import PipelineResource
from assets.schedules import SCHEDULES
from assets.sensors import all_sensors
from uniq_pipeline.config import Settings, load_settings


def definitions_for(settings: Settings, pipeline: PipelineResource | None = None) -> Definitions:
    """`pipeline` replaces the real clock and Kafka, in tests."""
    with warnings.catch_warnings():
        # Backfill policies and mappings with open periods are beta; each process would say so twelve times.
        warnings.simplefilter("ignore", BetaWarning)
        assets = all_assets(settings)
    return Definitions(
        assets=assets,
        asset_checks=[*all_checks(), *AUDIT_CHECKS],
        jobs=JOBS,
        schedules=SCHEDULES,
        sensors=all_sensors(settings),
        resources={"pipeline": pipeline or PipelineResource()},
        # For runs from the UI too: the default starts a process a step, 8 s instead of 2.
        executor=in_process_executor,
    )


defs = definitions_for(load_settings())
