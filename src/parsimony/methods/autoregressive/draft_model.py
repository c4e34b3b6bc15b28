"""Draft-model speculation (Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.budget import Budget
from parsimony.methods.autoregressive.verify import Draft, VerifyLoop
from parsimony.models.decoder import Decoder, DecoderConfig
from parsimony.models.language import Language


@dataclass(frozen=True)
class DraftNetwork:
    """A small network that speaks the target's tokens.

    Attributes
    ----------
    decoder : Decoder
    tokens : Tensor [U] int64 or None
        The token that each row of its head stands for; None: the whole vocabulary in order.
    """

    decoder: Decoder
    tokens: Tensor | None = None

    @classmethod
    def of(cls, model: Language, inputs: Inputs, network: str, layers: int) -> DraftNetwork:
        """Network "layers" leaves the target after ``layers`` layers; "distilled" is the asset ``drafter``.

        A drafter that is a checkpoint of its own has the target's vocabulary, as the small models of a family do.
        """
        if network == "layers":
            return cls(model.decoder.first_layers(min(layers, model.decoder.config.layers)))
        folder = inputs.assets["drafter"]
        if (folder / "drafter.safetensors").exists():
            return cls.distilled(model.decoder, folder)
        return cls(Decoder.load(folder, model.decoder.dtype, model.decoder.device))

    @classmethod
    def distilled(cls, target: Decoder, folder: Path) -> DraftNetwork:
        """A network that shares the target's embedding, whose rows are also its head, for the tokens it may say."""
        weights = load_file(folder / "drafter.safetensors")
        config = DecoderConfig.from_hf(json.loads((folder / "config.json").read_text()))
        tokens = weights["tokens"].long()
        head = target.embedding[tokens.to(target.device)]
        shared = {"model.embed_tokens.weight": target.embedding, "lm_head.weight": head}
        return cls(Decoder(config, (weights | shared).get, target.dtype, target.device), tokens)

    def best(self, logits: Tensor) -> Tensor:
        """Most probable tokens [...] by ``logits`` [..., U], on the processor."""
        best = logits.argmax(-1).cpu()
        return best if self.tokens is None else self.tokens[best]

    def nbytes(self) -> int:
        """Bytes that a pass over one row reads: layers and head."""
        matrices = [m for layer in self.decoder.layers for m in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        return sum(matrix.nbytes for matrix in [*matrices, self.decoder.head])


class DraftModel:
    """A small network drafts ``draft_tokens`` tokens one by one; the target verifies them in one pass.

    Greedily the drafts are the drafter's most probable tokens; at a temperature they are drawn from it, and the loop
    accepts by the rule of Leviathan et al.  The drafter keeps its own KV cache in step and never computes a token
    twice.

    Parameters
    ----------
    network : {"layers", "distilled"}
        The first ``layers`` layers of the target under its own norm and head, or a small network distilled from it.
    layers : int
        Layers of network "layers".
    draft_tokens : int
        Longest draft.
    tree_budget : {"all", "auto"}
        "auto" goes on drafting as long as it pays on this machine, given how often tokens of such a probability were
        right so far, and verifies as many as pay (our addition; the counts persist from prompt to prompt).
    """

    def __init__(self, network: str = "layers", layers: int = 6, draft_tokens: int = 4, tree_budget: str = "all"):
        self.network, self.layers, self.draft_tokens, self.tree_budget = network, layers, draft_tokens, tree_budget

    def build(self, model: Language, inputs: Inputs) -> VerifyLoop:
        """The shared loop with a network that drafts."""
        network = DraftNetwork.of(model, inputs, self.network, self.layers)
        if self.tree_budget == "all":
            return VerifyLoop(model, NetworkDrafter(network, self.draft_tokens))
        budget = Budget.measured(inputs, model)
        # One row is bound by memory: a drafted token costs its share of the bytes that the target reads for one.
        whole = DraftNetwork(model.decoder).nbytes()
        drafting = budget.with_drafting(network.nbytes() / whole)
        return VerifyLoop(model, NetworkDrafter(network, self.draft_tokens, drafting), budget)


class NetworkDrafter:
    """Drafts a chain with a `DraftNetwork`.

    Parameters
    ----------
    network : DraftNetwork
    draft_tokens : int
    budget : Budget or None
        Of a pass and the drafting before it; drafting stops where it no longer pays.
    """

    reads_prompt = False

    def __init__(self, network: DraftNetwork, draft_tokens: int, budget: Budget | None = None):
        self.network, self.draft_tokens, self.budget = network, draft_tokens, budget
        self.counts = torch.zeros(BUCKETS, 2, dtype=torch.float64)  # tried, right
        self._cache = network.decoder.cache(1024)
        self._asked: tuple[float, np.random.Generator] | None = None

    def sample(self, temperature: float, rng: np.random.Generator) -> None:
        """The next sequence is drawn at a temperature."""
        self._asked = temperature, rng

    def start(self, prompt: Tensor, token: int, logits: Tensor | None) -> None:
        self._drawn, self._asked = self._asked, None
        self._cache.clear()
        self.network.decoder.prefill(prompt[None], self._cache, want="none")
        self.context = torch.cat((prompt, torch.tensor([token])))
        self.first = True  # drafts whatever it costs, so that the counts never freeze
        self.drafted: list[tuple[int, int]] = []  # token, bucket

    def propose(self, room: int) -> Draft:
        self.drafted, odds, q = [], [], []
        rows = self.context[len(self._cache) :]
        while len(self.drafted) < min(self.draft_tokens, room) and (self._pays(odds) or self.first):
            logits = self.network.decoder.forward(rows[None], self._cache, want="last")[0, -1]
            token, p, row = self._choose(logits)
            bucket = min(int(p * BUCKETS), BUCKETS - 1)
            self.drafted.append((token, bucket))
            odds.append((odds[-1] if odds else 1.0) * float(self._rate(self.counts[bucket])))
            q.append(row)
            rows, self.first = torch.tensor([token]), False
        tokens = torch.tensor([token for token, _ in self.drafted], dtype=torch.int64)
        draft = Draft.line(tokens, torch.tensor(odds, dtype=torch.float64) if self.budget else None)
        return draft if self._drawn is None or not q else Draft(tokens, draft.tree, draft.odds, torch.stack(q))

    def observe(self, rows: Tensor, logits: Tensor, path: Tensor, gained: Tensor) -> None:
        self.context = torch.cat((self.context, gained))
        self._cache.truncate(len(self.context) - 1)  # newest token and accepted drafts stay; the bonus is new to it
        if self.budget:
            for (token, bucket), truth in zip(self.drafted, gained.tolist(), strict=False):
                self.counts[bucket] += torch.tensor([1.0, token == truth])
                if token != truth:
                    break

    def state(self) -> dict[str, Tensor]:
        return {"counts": self.counts.clone()} if self.budget else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.counts = state["counts"].clone() if state else torch.zeros_like(self.counts)

    def _choose(self, logits: Tensor) -> tuple[int, float, Tensor | None]:
        """A token, the probability that the network gives it, and the distribution it was drawn from ([V])."""
        ids = self.network.tokens
        if self._drawn is None:
            best = int(logits.argmax())
            p = float(torch.exp(logits[best].float() - logits.float().logsumexp(-1))) if self.budget else 0.0
            return best if ids is None else int(ids[best]), p, None
        temperature, rng = self._drawn
        q = (logits.double() / temperature).softmax(-1).cpu()
        drawn = int(rng.choice(len(q), p=q.numpy()))
        if ids is None:
            return drawn, float(q[drawn]), q
        vocabulary = self.network.decoder.embedding.shape[0]
        return int(ids[drawn]), float(q[drawn]), torch.zeros(vocabulary, dtype=q.dtype).index_put((ids,), q)

    def _pays(self, odds: list[float]) -> bool:
        """Whether the best draft is longer than the one so far, if the tokens to come are as good as the average."""
        if self.budget is None:
            return True
        average = float(self._rate(self.counts.sum(0)))
        left = np.arange(1, self.draft_tokens - len(odds) + 1)
        expected = np.concatenate((odds, (odds[-1] if odds else 1.0) * average**left))
        return self.budget.size(expected) > len(odds)

    @staticmethod
    def _rate(counts: Tensor) -> Tensor:
        tried, right = counts
        return (right + 1) / (tried + 2)


BUCKETS = 8
"""Classes of the drafter's probability whose tokens are counted apart."""
