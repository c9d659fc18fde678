"""The command line: ``neurollm new | check | run | report | list | harvest | train | sweep``."""

from neurollm.cli.app import main

__all__ = ["main"]
