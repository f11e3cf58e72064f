"""Metrics for Prometheus, from the ledger and result files alone: a process of its own sees a dead daemon.

described   every metric: name, type, labels, meaning
measured    their values at a moment
accuracy    estimates against exact counts, of the newest result files
exposition  as OpenMetrics and Prometheus text, over HTTP or in a file; the only module that imports prometheus_client
"""
