"""The one error for what a user can put right: a file, a column, an option."""


class InputError(ValueError):
    """Bad input, said in one line: what was found, where, and what is expected.

    The command line prints the message and exits with code 2; in Python it is an ordinary ``ValueError``.
    """
