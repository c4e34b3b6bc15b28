"""Which nodes of Token Recycling's tree are accepted how often: the order in which smaller trees keep them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from parsimony.errors import UserError
from parsimony.methods.autoregressive.token_recycling import RecyclingDrafter, static_tree
from parsimony.methods.autoregressive.verify import Tree, VerifyLoop
from parsimony.models.language import Language

REQUESTS = ("Tell me about {}.", "Write a short story in which {} plays a part.", "List five facts about {}.")


class CountingDrafter(RecyclingDrafter):
    """Counts, besides recycling, how often each node of the tree was accepted."""

    def __init__(self, vocabulary: int, tree: Tree, ranks: list[int]):
        super().__init__(vocabulary, tree, ranks)
        self.accepted = torch.zeros(len(ranks), dtype=torch.int64)
        self.passes = 0

    def observe(self, rows, logits, path, gained) -> None:
        super().observe(rows, logits, path, gained)
        self.accepted[path[1:] - 1] += 1
        self.passes += 1


def calibrate(
    out: Path, inputs: dict[str, Path], model: str, text: str, stop: list, prompts: int, limit: int, seed: int
):
    """Decode prompts about the subjects of encyclopaedia articles, which no benchmark uses, and count.

    Writes ``acceptance.safetensors``: ``accepted`` [80] int64, one count a node in breadth-first order, and
    ``passes`` [1] int64.  Runs in bfloat16: the counts are statistics, not outputs.

    Raises
    ------
    UserError
        When fewer than 1.2 tokens were accepted a pass: such a tree would order its nodes by noise.
    """
    language = Language.load(inputs[model], stop, "bfloat16")
    articles = json.loads((inputs[text] / "summaries.json").read_text())
    subjects = sorted(article["title"] for article in (articles.values() if isinstance(articles, dict) else articles))
    rng = np.random.default_rng(seed)
    parents, ranks = static_tree()
    drafter = CountingDrafter(language.decoder.config.vocabulary, Tree.of(parents), ranks)
    loop = VerifyLoop(language, drafter)
    for n, at in enumerate(rng.choice(len(subjects), prompts, replace=False)):
        request = REQUESTS[n % len(REQUESTS)].format(subjects[at])
        loop.generate(language.chat([{"role": "user", "content": request}]), limit, rng)
    gained = 1 + int(drafter.accepted.sum()) / max(drafter.passes, 1)
    if gained < 1.2:
        raise UserError(
            f"calibration accepted only {gained:.2f} tokens a pass; the model does not continue its prompts"
        )
    counts = {"accepted": drafter.accepted, "passes": torch.tensor([drafter.passes])}
    save_file(counts, out / "acceptance.safetensors")
