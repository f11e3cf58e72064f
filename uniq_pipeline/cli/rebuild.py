"""The command that makes a lost ledger anew."""

from __future__ import annotations

from typing import Any

import click

from uniq_pipeline.cli.output import Progress, complain, print_json
from uniq_pipeline.config import load_settings
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.rebuild import Plan, carry_out, plan_rebuild, refuse_losses


@click.command()
@click.option("--accept-gaps", is_flag=True, help="Go on without what is lost, and record its offsets as skipped.")
@click.option("--no-publish", is_flag=True, help="Do not send what is stored to the results topic again.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="The plan as JSON; needs --yes or --dry-run.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rebuild(accept_gaps: bool, no_publish: bool, dry_run: bool, as_json: bool, yes: bool) -> None:
    """Makes the ledger anew from the lake, when it was lost.

    Stop everything that uses it first. The files say what was read and counted; all windows are computed again by
    the next run, and keep their revisions where nothing changed. Refused while there is a ledger, and where
    something is missing or cannot be told.
    """
    if as_json and not (yes or dry_run):
        raise click.UsageError("--json does not ask: give --yes or --dry-run with it")
    settings = load_settings()
    ledger, lake = Ledger(settings.effective_ledger_url), Lake(settings.data_dir / "lake")
    progress = Progress("rebuild")
    try:
        plan = plan_rebuild(settings, ledger, lake, progress)
        progress.close()
        if as_json:
            print_json(_as_json(plan, dry_run))
        else:
            for line in plan.lines():
                click.echo(line)
        if not accept_gaps:
            refuse_losses(plan)
        if dry_run:
            return
        if not yes:
            click.confirm(f"Make the ledger {ledger.shown_url} from this?", abort=True)
        carry_out(settings, ledger, lake, plan, accept_gaps=accept_gaps, published=not no_publish, progress=progress)
        progress.close()
    finally:
        ledger.close()
    complain("ledger rebuilt; the next run computes every window again")


def _as_json(plan: Plan, dry_run: bool) -> dict[str, Any]:
    return {
        "topics": [
            {
                "topic": log.topic,
                "topic_id": log.topic_id,
                "goes_on": log.goes_on,
                "batches": len(log.batch_ids),
                "offsets": {str(p): [log.starts[p], end] for p, end in log.ends.items()},
            }
            for log in plan.committed.logs
        ],
        "batches": plan.batches,
        "moves": len(plan.committed.moves),
        "rows": plan.rows,
        "result_files": len(plan.results),
        "windows": plan.windows,
        "orphans": plan.orphans,
        "notices": plan.committed.notices,
        "losses": [str(loss) for loss in plan.losses],
        "dry_run": dry_run,
    }
