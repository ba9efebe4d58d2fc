"""The one exception that the command line turns into a single line of text."""


class UserError(ValueError):
    """Something the caller handed over (data, checkpoint, pattern, option) cannot be used as it is.

    The text says the operation, what was met, what was wanted and the mend.
    """
