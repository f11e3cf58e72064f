"""The demo: traffic shaped like real one, and `make run`, which feeds it to an embedded broker."""
