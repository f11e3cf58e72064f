"""The ledger: offsets, files, dirty windows, outbox. The only source of truth.

SQLite by default, any SQLAlchemy URL for more than one host. The only package that imports sqlalchemy.
Instants are whole seconds since 1970-01-01T00:00:00Z, wall-clock times are float seconds.

    store     the database: opening it, read and write transactions, sequence numbers
    schema    the tables
    files     the files that count
    dirty     which windows are to be computed, and which uid sets rebuilt
    tallies   records that are in no window, by minute
    batches   what moved records, and how many went where
    totals    running sums over all batches and ticks
    logs      committing what was read from a log: offsets, files, dirty minutes in one transaction
    moves     committing what was moved between frames, held and quarantine
    results   committing computed windows: result files, marks of the parents
    sets      committing uid sets
    outbox    what the results topic has not acknowledged
    refined   files whose frames the refined topic has not acknowledged
    overview  what people ask: lag, counts of everything, the newest windows
    gauges    what the metrics ask, at once
    upkeep    gc, forgetting and skipping, on a person's word
    rebuilt   writing a lost ledger anew, as the lake tells it
"""

from uniq_pipeline.ledger.store import Ledger

__all__ = ["Ledger"]
