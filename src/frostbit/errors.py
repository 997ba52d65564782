"""The two kinds of failure that a command reports in one sentence."""


class UsageError(ValueError):
    """Something the user asked for cannot be: a wrong name, shape, file, column or version (exit code 2)."""


class RunError(RuntimeError):
    """A run that started well had to stop: a loss that is not finite, a full disk (exit code 1)."""
