"""Before the first process of a stack starts: makes Dagster's database, and ends runs that died with the last one.

    python -m assets.recover

Nothing of this instance may be running. Without it a run killed with its code server counts as active until run
monitoring ends it, ten minutes later, and the schedule skips that long. What the run had committed stays.
"""

from dagster import DagsterInstance, RunsFilter

from assets.schedules import ACTIVE


def end_dead_runs(instance: DagsterInstance) -> int:
    """Marks every active run as failed; returns how many there were."""
    dead = instance.get_runs(filters=RunsFilter(statuses=ACTIVE))
    for run in dead:
        instance.report_run_failed(run, message="its process ended with the stack it ran in")
    return len(dead)


if __name__ == "__main__":
    with DagsterInstance.get() as home:
        ended = end_dead_runs(home)
    if ended:
        print(f"{ended} runs of the last start were still marked as active; marked as failed")
