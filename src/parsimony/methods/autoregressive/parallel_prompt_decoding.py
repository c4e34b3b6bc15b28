"""Parallel Prompt Decoding (Chen et al., EMNLP Findings 2025, arXiv 2405.18628): trained prompt tokens guess ahead."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.budget import Budget
from parsimony.methods.autoregressive.prompt_tree import Forest, PromptTree, bare, behind, dynamic, static
from parsimony.methods.autoregressive.token_recycling import top
from parsimony.methods.autoregressive.verify import Draft, VerifyLoop
from parsimony.models.language import Language

LIMITS = (3, 5, 7, 11, 15, 23, 31, 47, 63, 80)
"""Limits among which "auto" chooses: with the root, row counts at which the latency curve is measured."""


class ParallelPromptDecoding:
    """Speculative decoding with m trained input vectors a place, each of which guesses one token further ahead.

    Behind the newest token and behind every guess, the pass holds up to m prompt tokens: rows whose input is a trained
    vector.  The frozen model's logits at prompt i (from 1) of a node are a guess at the token i + 1 steps behind it.
    Whichever node is accepted last thus already carries the guesses of the next pass, and their number chooses the
    next tree (`prompt_tree`).  Prompt rows are never accepted and no real token sees them, so the output is that of
    the model whatever the vectors are.

    The first pass has no guesses yet: it is the root with its m prompt tokens, counted like any other (the official
    code appends them to the prefill instead).  Where the loop samples at a temperature, it does so from the target's
    own distribution; the paper's typical acceptance, p > min(epsilon, delta exp(-entropy)), changes it and is not
    offered.

    Parameters
    ----------
    limit : int or "auto"
        Most rows behind the root: candidates and prompt rows.  "auto" takes the one that maximises expected tokens
        over the latency of its pass on this machine, and drafts nothing where plain decoding is faster still.
    tree : {"dynamic", "static"}
        One tree a state with prompt tokens where they pay, or one tree with all m under every node.
    vectors : {"trained", "text", "random"}
        The trained vectors, what they were initialised with, or noise of the embedding's scale; each comes with its
        own calibrated accuracies.
    """

    def __init__(self, limit: int | str = 16, tree: str = "dynamic", vectors: str = "trained"):
        self.limit, self.tree, self.vectors = limit, tree, vectors

    def build(self, model: Language, inputs: Inputs) -> PromptLoop:
        """The shared loop with a prompt-token drafter, or with none where no tree pays.

        Raises
        ------
        UserError
            When the asset has no such vectors, or they are not as wide as the model.
        """
        found = load_file(inputs.assets["prompt_tokens"] / "prompt_tokens.safetensors")
        if f"vectors.{self.vectors}" not in found:
            kinds = ", ".join(sorted(name.removeprefix("vectors.") for name in found if name.startswith("vectors.")))
            raise UserError(f"there are no {self.vectors!r} prompt tokens; 'vectors' can be {kinds}")
        vectors, acc = found[f"vectors.{self.vectors}"].to(model.decoder.device), found[f"acc.{self.vectors}"]
        m, e, width = vectors.shape
        if width != model.decoder.config.hidden:
            raise UserError(
                f"prompt tokens of width {width} do not fit a model of width {model.decoder.config.hidden}: name the "
                "asset that was trained for it under 'assets' of configs/method/parallel_prompt_decoding.yaml"
            )
        odds = tuple(map(tuple, acc.double().tolist()))
        grow = {"dynamic": dynamic, "static": static}[self.tree]
        if self.limit == "auto":
            cost = Budget.measured(inputs, model).cost
            forests = {limit: grow(odds, limit, e) for limit in LIMITS if _least(self.tree, m, e) <= limit < len(cost)}
            pace = {limit: forest.expected / cost[limit] for limit, forest in forests.items()}
            best = max(pace, key=pace.get, default=None)
            forest = None if best is None or pace[best] <= 1 / cost[0] else forests[best]
        else:
            forest = grow(odds, self.limit, e)
        return PromptLoop(model, vectors, forest, acc.shape[1])


class PromptLoop(VerifyLoop):
    """The verify loop with prompt tokens, which can also be asked for their guesses alone.

    Parameters
    ----------
    vectors : Tensor [m, e, D]
    forest : Forest or None
        None drafts nothing.
    ranks : int
        Guesses R that are read from one prompt token.
    """

    def __init__(self, model: Language, vectors: Tensor, forest: Forest | None, ranks: int):
        V = model.decoder.config.vocabulary
        super().__init__(model, None if forest is None else PromptDrafter(vectors, forest, V, ranks))
        self.vectors, self.ranks = vectors, ranks

    @property
    def trained(self) -> list[Tensor]:
        """Everything that was trained."""
        return [self.vectors]

    def guess(self, ids: Tensor, cuts: Tensor) -> Tensor:
        """Ranked guesses [K, m, R] of the tokens 2, 3, ..., m + 1 steps behind each of K prefixes of ``ids``."""
        decoder, (m, e, _), T = self.model.decoder, self.vectors.shape, len(ids)
        which, where, sees = behind(cuts, m, e, T)
        tree = torch.cat((torch.nn.functional.pad(torch.ones(T, T).tril(), (0, len(which))).bool(), sees))
        rows = torch.cat((ids, decoder.config.vocabulary + which))
        hidden = decoder.forward(
            rows[None], self._empty_cache(len(rows)), positions=torch.cat((torch.arange(T), where))[None], tree=tree,
            vectors=self.vectors.flatten(0, 1), want="hidden",
        )[0, T:]  # fmt: skip
        return top(decoder.logits(hidden).view(len(cuts), m, e, -1).mean(2).flatten(0, 1), self.ranks).view(
            len(cuts), m, -1
        )


class PromptDrafter:
    """Fills the tree of the current state with the guesses that the last accepted node's prompt rows made.

    Parameters
    ----------
    vectors : Tensor [m, e, D]
        e vectors a prompt token, whose logits are averaged; member j of a prompt sees member j of those before it.
    forest : Forest
    vocabulary : int
        Tokens V, V + 1, ... stand for the vectors.
    ranks : int
        Guesses R that are read from one prompt token.
    """

    reads_prompt = False

    def __init__(self, vectors: Tensor, forest: Forest, vocabulary: int, ranks: int):
        m, e, _ = vectors.shape
        self.vectors, self.forest, self.vocabulary, self.ranks = vectors.flatten(0, 1), forest, vocabulary, ranks
        self.first = bare(m, ranks, e)
        self.tree, self.guesses = self.first, torch.empty(0, ranks, dtype=torch.int64)

    def start(self, prompt: Tensor, token: int, logits: Tensor | None) -> None:
        self.guesses = self.guesses[:0]

    def propose(self, room: int) -> Draft:
        if room < 1:  # the last token: there is nothing left to guess
            return Draft.line(self.guesses.new_empty(0))
        self.tree = self._tree()
        candidates = self.guesses.flatten()[self.tree.slots]
        return Draft(torch.cat((candidates, self.vocabulary + self.tree.vectors)), self.tree.tree)

    def observe(self, rows: Tensor, logits: Tensor, path: Tensor, gained: Tensor) -> None:
        own = self.tree.prompts[int(path[-1])]  # [s, e]
        self.guesses = top(logits[own].mean(1), self.ranks).cpu()  # [s, R]

    def _tree(self) -> PromptTree:
        return self.forest.trees[len(self.guesses)] if len(self.guesses) else self.first


def _least(tree: str, m: int, e: int) -> int:
    """Smallest limit that leaves room for one candidate."""
    return 1 + 2 * e if tree == "dynamic" else 1 + 2 * m * e
