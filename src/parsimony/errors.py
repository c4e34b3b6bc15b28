"""The one error a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: one sentence that names what, where and how.

    The command line prints the sentence without a traceback and exits with status 2.
    """
