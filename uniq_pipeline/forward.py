"""Forward: sends accepted frames to the refined topic, at least once.

What is to be sent, the ledger says: files that were committed, each with how far it was sent. So a frame that was not
accepted is never sent, and after a kill it goes on where the topic's last acknowledgement was noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import pyarrow as pa

from uniq_pipeline.errors import FileDamaged
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.refined import UnsentFile, note_sent, unsent_files
from uniq_pipeline.publish import DAMAGED_AT_MOST, Sink
from uniq_pipeline.refined import COLUMNS, messages

# Frames between two acknowledgements: the ledger notes each, and a kill sends so many again. They take 65 to 85 MB.
FRAMES_AT_ONCE = 50_000

# Files of one look into the ledger; history has many small ones.
FILES_AT_ONCE = 500

# Rows of a file, and how many of it are sent with them.
Part = tuple[UnsentFile, pa.RecordBatch, int]


def forward(
    ledger: Ledger,
    lake: Lake,
    sink: Sink,
    *,
    is_over: Callable[[], bool] = lambda: False,
    failpoint: Callable[[str], None] = lambda name: None,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Sends until nothing waits, or time `is_over`; returns the number of messages.

    Raises BrokerError when the topic does not take them: the ledger keeps what was not acknowledged. Raises FileDamaged
    when a file cannot be read, but only after the others were sent; its frames wait.
    """
    total = 0
    damaged: dict[str, FileDamaged] = {}
    while files := unsent_files(ledger, FILES_AT_ONCE, damaged):
        for parts in _gathered(_parts(lake, files, damaged)):
            failpoint("refined.before_send")
            total += sink.send(
                chain.from_iterable(messages(rows, file.revision, file.withdrawn) for file, rows, _ in parts)
            )
            failpoint("refined.sent")
            note_sent(ledger, {file.path: sent_rows for file, _, sent_rows in parts})
            failpoint("refined.noted")
            progress(total)
            if is_over():
                return total
    for error in damaged.values():
        raise error
    return total


def _parts(lake: Lake, files: Sequence[UnsentFile], damaged: dict[str, FileDamaged]) -> Iterator[Part]:
    """What is left of the files, in bounded pieces. Adds files that cannot be read to `damaged`."""
    for file in files:
        sent_rows = file.sent_rows
        try:
            for rows in lake.stream(file.path, COLUMNS, first_row=sent_rows, rows_at_once=FRAMES_AT_ONCE):
                sent_rows += rows.num_rows
                yield file, rows, sent_rows
            if sent_rows != file.rows:
                full = lake.absolute(file.path)
                raise FileDamaged(f"file {full} has {sent_rows:,} rows, the ledger says {file.rows:,}", file.path)
        except FileDamaged as error:
            if len(damaged) == DAMAGED_AT_MOST:
                raise
            damaged[file.path] = error


def _gathered(parts: Iterator[Part]) -> Iterator[list[Part]]:
    """Small pieces together, so that each acknowledgement is of many frames."""
    some: list[Part] = []
    for part in parts:
        some.append(part)
        if sum(rows.num_rows for _, rows, _ in some) >= FRAMES_AT_ONCE:
            yield some
            some = []
    if some:
        yield some
