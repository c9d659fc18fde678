"""Errors a user can act on: one sentence that says what, where, and what would be right.

The exit code of the command line is a property of the error, so that the same
problem ends the same way from Python, YAML and the shell.
"""


class NeurollmError(Exception):
    """Base of all errors raised on purpose by neurollm."""

    exit_code = 1


class InvalidInput(NeurollmError, ValueError):
    """A file, field or argument is not what it should be (exit code 2)."""

    exit_code = 2


class DataMismatch(NeurollmError, ValueError):
    """Two inputs that are valid alone do not belong together, or stored data are damaged (exit code 3)."""

    exit_code = 3
