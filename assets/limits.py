"""How long runs may take, and what they print."""

# Run monitoring ends a run that takes longer, so that a hung one cannot stop the schedule, which skips while
# one is active. Every batch is committed: the next tick goes on where a long one was ended.
TICK_LIMITS = {"dagster/max_runtime": "600"}
LONG_LIMITS = {"dagster/max_runtime": "3600"}

# With years of backlog a tick stops reading here and counts, and stops counting: answers come, no run reaches its
# limit, and the next tick goes on. Reporting a touched partition takes Dagster 17 ms more.
DRAIN_FOR_S = 120.0
COMPUTE_FOR_S = 150.0

# Events are in Dagster's database; printed as well they would fill the code server's log with 10 kB a tick.
QUIET = {"console": {"config": {"log_level": "WARNING"}}}
