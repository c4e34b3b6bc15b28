"""A Spec-Bench-shaped prompt mix (Xia et al. 2024, arXiv 2401.07851, is the model)."""

from __future__ import annotations

from parsimony.benchmarks import prompts
from parsimony.benchmarks.continuation import Continuation
from parsimony.interfaces import Item


class SpecMix(Continuation):
    """Chat prompts of seven categories, ``items`` of each."""

    categories = prompts.CATEGORIES

    def items(self, paths, seed: int) -> list[Item]:
        counts = dict.fromkeys(prompts.CATEGORIES, self.count)
        return prompts.spec_mix(paths, counts, seed, self.characters)
