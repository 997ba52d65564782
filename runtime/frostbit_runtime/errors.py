"""The three kinds of refusal; each message is one sentence."""


class ProgramError(ValueError):
    """A program is not well formed: an unknown operation, a wrong attribute, shape, kind or reference."""


class FileError(ValueError):
    """A file cannot be trusted or read: damaged, truncated, hostile, or written by a newer version."""


class InputError(ValueError):
    """A network was given something it cannot run on: a wrong shape, dtype or count, or a value that is not finite."""
