"""`uniq-pipeline metrics`: once, over HTTP, or in a file."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from uniq_pipeline.cli.output import complain
from uniq_pipeline.config import load_settings
from uniq_pipeline.errors import InputError
from uniq_pipeline.metrics.exposition import as_text, serving, write_textfile
from uniq_pipeline.metrics.measured import Meter

LOOPBACK = "127.0.0.1"


class Address(click.ParamType):
    """HOST:PORT, [IPv6]:PORT, or a PORT of loopback; becomes (host, port)."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        host, _, port = value.rpartition(":")
        if not port.isdigit() or int(port) > 65535:
            self.fail(f"{value!r} is no address such as 127.0.0.1:9102", param, ctx)
        return host.removeprefix("[").removesuffix("]") or LOOPBACK, int(port)


@click.command()
@click.option("--listen", type=Address(), help="Answer scrapes at HOST:PORT; a PORT alone is one of 127.0.0.1.")
@click.option("--textfile", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file, NAME.prom.")
@click.option("--every", "every_s", type=click.FloatRange(1), help="Write it again every so many seconds.")
@click.option("--openmetrics", "as_openmetrics", is_flag=True, help="Print OpenMetrics instead of Prometheus text.")
def metrics(listen: tuple[str, int] | None, textfile: Path | None, every_s: float | None, as_openmetrics: bool) -> None:
    """Metrics for Prometheus, from ledger and results alone: prints them, serves them, or writes them to a file.

    Changes nothing, and asks nobody but the ledger: what it says is also true while nothing else runs. The file is
    for node_exporter's textfile collector. Ctrl-C or SIGTERM end it.

    \b
      uniq-pipeline metrics
      uniq-pipeline metrics --listen 127.0.0.1:9102
      uniq-pipeline metrics --textfile /var/lib/node_exporter/uniq.prom --every 15
    """
    if every_s is not None and textfile is None:
        raise InputError("metrics: --every goes with --textfile")
    if listen is not None and textfile is not None and every_s is None:
        raise InputError("metrics: --textfile beside --listen needs --every, or it would soon be out of date")
    if as_openmetrics and (listen is not None or textfile is not None):
        raise InputError(
            "metrics: --openmetrics is for printing; a scrape asks for its format, a textfile has one only"
        )
    meter = Meter(load_settings(), complain=lambda text: complain(f"uniq-pipeline: {text}"))
    if listen is None and every_s is None:
        if textfile is None:
            sys.stdout.buffer.write(as_text(meter.measure, as_openmetrics=as_openmetrics))
            sys.stdout.buffer.flush()
        else:
            write_textfile(meter.measure, textfile)
        if meter.trouble is not None:
            sys.exit(meter.trouble.exit_code)
        return
    with ExitStack() as stack:
        stop = stack.enter_context(_stopped_by_signals())
        if textfile is not None:
            write_textfile(meter.measure, textfile)  # what is wrong with its folder fails at once
        if listen is not None:
            host, _ = listen
            port = stack.enter_context(serving(meter.measure, *listen))
            complain(f"metrics at http://{f'[{host}]' if ':' in host else host}:{port}/metrics")
        while not stop.wait(every_s):
            try:
                write_textfile(meter.measure, textfile)
            except InputError as error:
                complain(f"uniq-pipeline: {error}")


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Set by Ctrl-C and SIGTERM."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
