"""SuffixDecoding (Oliaro et al., NeurIPS 2025, arXiv 2411.04975): drafts from suffix trees over earlier outputs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs, Stateful
from parsimony.methods.autoregressive.budget import Budget
from parsimony.methods.autoregressive.draft_model import DraftNetwork, NetworkDrafter
from parsimony.methods.autoregressive.suffix_tree import Speculation, SuffixTree
from parsimony.methods.autoregressive.verify import Draft, Drafter, Tree, VerifyLoop
from parsimony.models.language import Language

SHAPES, FALLBACKS = ("linear", "tree"), ("none", "draft_model")


class SuffixDecoding:
    """Speculative decoding from a local suffix tree (prompt and output) and a global one (all outputs).

    Both trees draft, and the draft with the higher score (expected accepted tokens) is verified; the local one wins
    ties.  The local tree holds the text that is being matched as well, so a continuation seen once before has
    probability 1/2.  Defaults are those of the official vLLM plugin, which always drafts lines; the official
    simulator drafts trees.

    Parameters
    ----------
    shape : {"linear", "tree"}
    depth : int
        D, the depth of both trees.
    max_spec_tokens : int
        Longest draft.
    alpha, offset : float
        A match of m tokens allows floor(alpha m + offset) tokens of draft.
    min_prob : float
        Tokens less probable than this are not drafted.
    max_cached_requests : int
        Outputs that the global tree holds, the oldest leaves first; -1 is no limit, 0 no global tree.
    persist : bool
        Whether the global tree survives from item to item; if not, it holds the current output alone.
    fallback : {"none", "draft_model"}
        "draft_model": a distilled network (the asset ``drafter``) drafts ``draft_tokens`` tokens wherever the trees
        promise fewer (the hybrid of the paper).
    draft_tokens : int
    tree_budget : {"all", "auto"}
        "auto" verifies as much of a draft as pays on this machine at its own probabilities (our addition).
    """

    def __init__(
        self,
        shape: str = "linear",
        depth: int = 64,
        max_spec_tokens: int = 16,
        alpha: float = 1.0,
        offset: float = 0.0,
        min_prob: float = 0.1,
        max_cached_requests: int = 100_000,
        persist: bool = True,
        fallback: str = "none",
        draft_tokens: int = 4,
        tree_budget: str = "all",
    ):
        for name, value, valid in (("shape", shape, SHAPES), ("fallback", fallback, FALLBACKS)):
            if value not in valid:
                raise UserError(f"suffix_decoding: {name} {value!r} is not one of {', '.join(valid)}; mend its params")
        self.rule = {"limit": max_spec_tokens, "alpha": alpha, "offset": offset, "min_prob": min_prob}
        self.rule["tree"] = shape == "tree"
        self.depth, self.max_cached_requests, self.persist = depth, max_cached_requests, persist
        self.fallback, self.draft_tokens, self.tree_budget = fallback, draft_tokens, tree_budget

    def build(self, model: Language, inputs: Inputs) -> VerifyLoop:
        """The shared loop with a suffix drafter, alone or in front of a draft network."""
        drafter = SuffixDrafter(self.depth, self.max_cached_requests, self.persist, self.rule)
        if self.fallback == "draft_model":
            network = DraftNetwork.distilled(model.decoder, inputs.assets["drafter"])
            drafter = HybridDrafter(drafter, NetworkDrafter(network, self.draft_tokens), self.draft_tokens)
        return VerifyLoop(model, drafter, Budget.measured(inputs, model) if self.tree_budget == "auto" else None)


class SuffixDrafter:
    """Keeps the two trees and drafts from the one that promises more.

    Parameters
    ----------
    rule : dict
        Arguments of `SuffixTree.speculate` besides the context.
    """

    reads_prompt = False

    def __init__(self, depth: int, max_cached_requests: int, persist: bool, rule: dict):
        self.depth, self.max_cached_requests, self.persist, self.rule = depth, max_cached_requests, persist, rule
        self.local, self.outputs = SuffixTree(depth), SuffixTree(depth)
        self.context = np.empty(0, np.int32)  # the last D tokens of prompt and output
        self.request = self.known = 0  # key of the output in the global tree, tokens of it that are there

    def start(self, prompt: Tensor, token: int, logits: Tensor | None) -> None:
        if not self.persist:
            self.outputs = SuffixTree(self.depth)
        self.local, self.context = SuffixTree(self.depth), np.empty(0, np.int32)
        self.request, self.known = self.request + 1, 0
        self._read(prompt.numpy())
        self._append(np.array([token]))
        while 0 < self.max_cached_requests < len(self.outputs):
            self.outputs.remove(next(iter(self.outputs)))

    def propose(self, room: int) -> Draft:
        return as_draft(self.speculate(room))

    def speculate(self, room: int) -> Speculation:
        """The better draft of the two trees, at most ``room`` tokens."""
        rule = self.rule | {"limit": min(self.rule["limit"], room)}
        local, outputs = (tree.speculate(self.context, **rule) for tree in (self.local, self.outputs))
        return local if local.score >= outputs.score else outputs

    def observe(self, rows: Tensor, logits: Tensor, path: Tensor, gained: Tensor) -> None:
        self._append(gained.numpy())

    def finish(self, tokens: Tensor) -> None:
        self._append(tokens[self.known :].numpy())

    def state(self) -> dict[str, Tensor]:
        if not self.persist or not self.max_cached_requests:
            return {}
        held = [self.outputs[key] for key in self.outputs]
        tokens = np.concatenate([np.empty(0, np.int32), *held])
        return {"tokens": torch.from_numpy(tokens), "lengths": torch.tensor([len(t) for t in held], dtype=torch.int32)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Insert the saved outputs in their order.

        Counts are as before; if outputs had been evicted, equally frequent continuations may take turns otherwise.
        """
        self.outputs, self.request = SuffixTree(self.depth), 0
        if state:
            for tokens in state["tokens"].split(state["lengths"].tolist()):
                self.request += 1
                self.outputs.extend(self.request, tokens.numpy())

    def _append(self, tokens: np.ndarray) -> None:
        """The output goes on."""
        self._read(tokens)
        self.known += len(tokens)
        if self.max_cached_requests:
            self.outputs.extend(self.request, tokens)

    def _read(self, tokens: np.ndarray) -> None:
        self.local.extend(0, tokens)
        self.context = np.concatenate((self.context, tokens))[-self.depth :]


class HybridDrafter:
    """Suffix drafts where they promise at least as much as another drafter can give, its drafts elsewhere.

    The suffix draft is taken if its score reaches the number of tokens that the other drafter predicts (the rule of
    the official code; the paper calls it a threshold), so that the other is not even asked.

    Parameters
    ----------
    suffix : SuffixDrafter
    fallback : Drafter
        Such as a draft model; it observes every pass, its own or not.
    predicted : int
        Tokens that ``fallback`` drafts at a time.
    """

    def __init__(self, suffix: SuffixDrafter, fallback: Drafter, predicted: int):
        self.suffix, self.fallback, self.predicted = suffix, fallback, predicted
        self.reads_prompt = fallback.reads_prompt
        for name in ("vectors", "sample"):
            if hasattr(fallback, name):
                setattr(self, name, getattr(fallback, name))

    def start(self, prompt: Tensor, token: int, logits: Tensor | None) -> None:
        self.suffix.start(prompt, token, logits)
        self.fallback.start(prompt, token, logits)

    def propose(self, room: int) -> Draft:
        speculation = self.suffix.speculate(room)
        if speculation.score >= min(self.predicted, room):
            return as_draft(speculation)
        return self.fallback.propose(room)

    def observe(self, rows: Tensor, logits: Tensor, path: Tensor, gained: Tensor) -> None:
        self.suffix.observe(rows, logits, path, gained)
        self.fallback.observe(rows, logits, path, gained)

    def finish(self, tokens: Tensor) -> None:
        for drafter in (self.suffix, self.fallback):
            if hasattr(drafter, "finish"):
                drafter.finish(tokens)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}_{key}": tensor
            for name, drafter in self._stateful().items()
            for key, tensor in drafter.state().items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        for name, drafter in self._stateful().items():
            mine = {key.removeprefix(f"{name}_"): t for key, t in state.items() if key.startswith(f"{name}_")}
            drafter.restore(mine)

    def _stateful(self) -> dict[str, Stateful]:
        parts = {"suffix": self.suffix, "fallback": self.fallback}
        return {name: drafter for name, drafter in parts.items() if isinstance(drafter, Stateful)}


def as_draft(speculation: Speculation) -> Draft:
    """The draft of a suffix tree with its probabilities as odds."""
    tokens, odds = torch.from_numpy(speculation.tokens).long(), torch.from_numpy(speculation.probs)
    parents = (speculation.parents + 1).tolist()
    tree = Tree.line(len(tokens)) if parents == [*range(len(parents))] else Tree.of(parents)
    return Draft(tokens, tree, odds)
