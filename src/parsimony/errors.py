"""The one error a user is meant to read, and the hint at its end."""

from __future__ import annotations

import difflib


class UserError(Exception):
    """Something the user can mend: one sentence that names what, where and how.

    The command line prints the sentence without a traceback and exits with status 2.
    """


def nearest(key: str, valid) -> str:
    """The end of an error sentence: the nearest valid key, or all of them."""
    close = difflib.get_close_matches(key, list(map(str, valid)), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(sorted(map(str, valid)))}"
