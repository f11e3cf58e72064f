"""Dagster definitions: partitions, assets, jobs, schedules, metadata. The only package that imports dagster.

    partitions   one partition a result file, cut in the configured time zone
    assets       frames and the six counts, with their backfill
    aside        admitting what was held, reading quarantine again
    columns      what each column means, for the asset pages
    ticking      runs a tick and reports each partition it touched
    metadata     numbers and small tables of a tick, for people
    plots        small plots as SVG
    charts       which plots each asset shows
    vitals       what a run looks at for its checks and plots
    checks       the asset checks, and how bad a failure is
    checking     executing them by hand
    sources      links to the files that make an asset
    jobs         one op job a tick, and the hourly and daily ones
    schedules    when those run
    sensors      windows that wait, held frames let in, failed runs
    pruning      Dagster's own runs, events and ticks
    cadence      how long to wait for a minute's last frames
    limits       how long runs may take, and what they print
    resources    opens ledger, lake, DuckDB and Kafka at run time
    definitions  all of it, for `workspace.yaml`

The work itself is in `uniq_pipeline`, and runs the same without Dagster.
"""
