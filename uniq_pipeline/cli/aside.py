"""What is not counted: admit and withdraw held frames, read quarantined records again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from uniq_pipeline.cli.output import Instant, Progress, print_json
from uniq_pipeline.cli.ticking import run_tick
from uniq_pipeline.config import load_settings
from uniq_pipeline.frames import Reason
from uniq_pipeline.lateness import EventClass
from uniq_pipeline.move import HELD_CLASSES, MoveReport
from uniq_pipeline.move import admit as move_held
from uniq_pipeline.move import replay as move_quarantined
from uniq_pipeline.move import withdraw as move_back
from uniq_pipeline.results import Workshop
from uniq_pipeline.tick import TickReport, open_workshop

_CLASSES = sorted(event_class.label for event_class in HELD_CLASSES)

# Outside of this no frame is accepted.
_EARLIEST, _LATEST = "1970-01-01T00:00Z", "2285-12-31T00:00Z"


def _range_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        [
            click.option(
                "--from", "start_s", type=Instant(), default=_EARLIEST, help="Event times at or after this instant."
            ),
            click.option("--to", "end_s", type=Instant(), default=_LATEST, help="Event times before this instant."),
            click.option(
                "--class",
                "classes",
                type=click.Choice(_CLASSES),
                multiple=True,
                default=_CLASSES,
                show_default=True,
                help="Event class; may be given twice.",
            ),
        ]
    ):
        command = option(command)
    return command


def _common_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--json", "as_json", is_flag=True, help="The report as JSON.")(command)
    return click.option("--dry-run", is_flag=True, help="Only say what would be moved.")(command)


@click.command()
@_range_options
@_common_options
def admit(start_s: int, end_s: int, classes: Sequence[str], dry_run: bool, as_json: bool) -> None:
    """Counts held frames after all, and gives their windows a new revision.

    Times without an offset are local times of UNIQ_TIMEZONE.

    \b
      uniq-pipeline admit --from 2026-03-01 --to 2026-03-02 --class very_late
    """

    def move(shop: Workshop, progress: Callable[[int, int], None]) -> MoveReport:
        return move_held(shop, start_s, end_s, _chosen(classes), dry_run=dry_run, progress=progress)

    _run("admit", move, dry_run, as_json)


@click.command()
@_range_options
@_common_options
def withdraw(start_s: int, end_s: int, classes: Sequence[str], dry_run: bool, as_json: bool) -> None:
    """Takes back what `admit` did: frames that count although they came very late or from the future are held."""

    def move(shop: Workshop, progress: Callable[[int, int], None]) -> MoveReport:
        return move_back(shop, start_s, end_s, _chosen(classes), dry_run=dry_run, progress=progress)

    _run("withdraw", move, dry_run, as_json)


@click.command()
@click.option(
    "--reason",
    "reasons",
    type=click.Choice([str(reason) for reason in Reason]),
    multiple=True,
    help="Only records quarantined for this reason; may be given several times.  [default: all]",
)
@_common_options
def replay(reasons: Sequence[str], dry_run: bool, as_json: bool) -> None:
    """Reads quarantined records again, under the settings as they are now.

    Those that are frames by now go into their windows, once; the others stay where they are. For after a mended
    setting (UNIQ_TS_UNIT) or a newer version.
    """

    def move(shop: Workshop, progress: Callable[[int, int], None]) -> MoveReport:
        chosen = [Reason(reason) for reason in reasons] or list(Reason)
        return move_quarantined(shop, chosen, dry_run=dry_run, progress=progress)

    _run("replay", move, dry_run, as_json)


def _chosen(classes: Sequence[str]) -> list[EventClass]:
    return [EventClass[name.upper()] for name in classes]


def _run(
    what: str,
    move: Callable[[Workshop, Callable[[int, int], None]], MoveReport],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Moves, then computes and publishes what that changed."""
    settings = load_settings()
    moved: MoveReport | None = None
    report: TickReport | None = None

    def first(shop: Workshop, progress: Progress) -> None:
        nonlocal moved
        moved = move(shop, lambda done, total: progress(done, total, "files"))

    if dry_run:
        with open_workshop(settings) as shop:
            first(shop, Progress(what))
    else:
        report = run_tick(settings, None, what=what, first=first)
    assert moved is not None
    if as_json:
        print_json(_as_json(moved, report))
    else:
        _print(moved, report)


def _changed(report: TickReport | None) -> dict[str, int]:
    changed: dict[str, int] = {}
    for refreshed in report.refreshed if report else ():
        if refreshed.changed:
            changed[str(refreshed.grain)] = changed.get(str(refreshed.grain), 0) + len(refreshed.changed)
    return changed


def _as_json(moved: MoveReport, report: TickReport | None) -> dict[str, Any]:
    return {
        "moved": moved.moved,
        "counted": moved.frames,
        "held": moved.held,
        "files": moved.files,
        "expired": moved.expired,
        "classes": dict(moved.classes),
        "windows_changed": _changed(report),
        "dry_run": report is None,
    }


def _print(moved: MoveReport, report: TickReport | None) -> None:
    of = ", ".join(f"{name} {records:,}" for name, records in sorted(moved.classes.items()))
    would = "would be " if report is None else ""
    ends = [f"{rows:,} {would}{word}" for rows, word in ((moved.frames, "counted"), (moved.held, "held")) if rows] or [
        "nothing to move"
    ]
    click.echo("; ".join(ends) + (f" ({of})" if of else ""))
    if moved.expired:
        click.echo(
            f"{moved.expired:,} stay held: frames or results of their windows have expired (UNIQ_RETENTION), so "
            f"nothing can be counted there any more"
        )
    if report is not None:
        changed = ", ".join(f"{windows:,} {grain}" for grain, windows in _changed(report).items())
        click.echo(f"windows changed: {changed or 'none'}; {report.published:,} published")
