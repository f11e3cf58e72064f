"""The command line. Thin: every command calls a use case. The only package that imports click."""

from uniq_pipeline.cli.main import main

__all__ = ["main"]
