"""A tick as Dagster runs it, in a process of its own that ends or stops itself where it is told to.

    python -m support.dagster_run SIGNAL POINT [POINT ...]

For each point one run of the job `tick` that sends itself the signal there; with several, each in a fork. DAGSTER_HOME
and the UNIQ_* variables say where.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dagster import DagsterInstance, Definitions

from assets.definitions import definitions_for
from assets.resources import PipelineResource
from support.nursery import Failpoint
from uniq_pipeline.config import Settings, load_settings
from uniq_pipeline.drain import Source
from uniq_pipeline.results import Workshop
from uniq_pipeline.tick import open_workshop


def no_failpoint(name: str) -> None:
    pass


def pipeline_with(failpoint: Callable[[str], None] = no_failpoint, topic: Source | None = None) -> PipelineResource:
    """The pipeline with a failpoint, and a topic in memory if one is given; it does not wait for minutes to settle."""

    class Pipeline(PipelineResource):
        @contextmanager
        def workshop(self) -> Iterator[Workshop]:
            with open_workshop(load_settings(), failpoint=failpoint) as shop:
                yield shop

        def source(self, settings: Settings) -> Source:
            return super().source(settings) if topic is None else topic

        def sleep(self, seconds: float) -> None:
            pass

    return Pipeline()


def definitions(failpoint: Callable[[str], None] = no_failpoint, topic: Source | None = None) -> Definitions:
    return definitions_for(load_settings(), pipeline_with(failpoint, topic))


def _run(point: str, number: int) -> int:
    job = definitions(Failpoint(point, 1, number)).resolve_job_def("tick")
    with DagsterInstance.get() as instance:
        return 0 if job.execute_in_process(instance=instance, raise_on_error=False).success else 1


def main(name: str, *points: str) -> int:
    number = signal.Signals[name]
    if len(points) == 1:
        return _run(points[0], number)
    for point in points:
        pid = os.fork()
        if pid == 0:
            os._exit(_run(point, number))
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert ended == -number, f"{point} was not reached, the run ended with {ended}"
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
