"""Question sets of the hub, answered by masked diffusion models in a window of fixed length."""

from __future__ import annotations

from parsimony.benchmarks.hub_tasks import HubTasks, Request
from parsimony.benchmarks.unmasked import Unmasked


class MaskedAnswers(HubTasks, Unmasked):
    """Rows of public question sets (the categories), each a user's turn, graded by the measure of its task.

    Parameters
    ----------
    dtype : str
    timed : bool
    tasks : list of str
        Of `hub_tasks.TASKS`.
    items : int
        A task.
    limit : int
        Tokens of an answer, all of which are unmasked.
    """

    chat = True

    def __init__(self, dtype: str, timed: bool, tasks: list[str], items: int, limit: int):
        HubTasks.__init__(self, tasks, items)
        self.dtype, self.timed, self.limit = dtype, timed, limit

    def length(self, asked: Request, model) -> int:
        return self.limit

    def grade(self, asked: Request, text: str) -> dict[str, float]:
        return {"score": asked.score(text)}
