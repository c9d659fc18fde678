"""The command line: ``neurollm new | check | run | report | list | harvest | train``."""

from neurollm.cli.app import main

__all__ = ["main"]
