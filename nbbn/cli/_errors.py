"""The one exception that a command raises for bad input."""


class CommandError(Exception):
    """Bad usage or bad input: one line for standard error, exit status 2."""
