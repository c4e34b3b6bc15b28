"""Generalized aggressive decoding (GAD): a non-autoregressive model drafts a block, the encoder-decoder verifies it.

Ge, Xia, Sun, Chen, Wei 2022, arXiv 2205.10350; published by itself as SpecDec (arXiv 2203.16487).  Of the authors' two
implementations this follows the one behind the paper's latencies: batch 1, with the verifier's cache cut to the
accepted prefix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.verify import Draft, VerifyLoop
from parsimony.models.seq2seq import EncoderDecoder, Seq2Seq


class GeneralizedAggressiveDecoding:
    """Drafts ``block`` tokens at once behind the accepted prefix.

    Parameters
    ----------
    block : int
        k, tokens a draft.
    beta : int
        A drafted token passes if it is among the verifier's ``beta`` best ...
    tau : float
        ... and its logit is at most ``tau`` below the best.  1 and 0 are greedy decoding; GAD++ has 5 and 3.0.
    """

    def __init__(self, block: int = 25, beta: int = 1, tau: float = 0.0):
        if block < 1 or beta < 1 or tau < 0:
            raise UserError(f"GAD needs block >= 1, beta >= 1 and tau >= 0, not {block}, {beta} and {tau}")
        self.block, self.beta, self.tau = block, beta, tau

    def build(self, model: Seq2Seq, inputs: Inputs) -> VerifyLoop:
        """The shared loop with the drafter of the model's asset ``nat``, in the model's dtype."""
        network = EncoderDecoder.load(inputs.assets["nat"], model.decoder.embedding.dtype, [model.decoder.device])
        if network.config.vocabulary != model.decoder.config.vocabulary:
            raise UserError(
                f"the drafter in {inputs.assets['nat']} has {network.config.vocabulary} tokens and the model "
                f"{model.decoder.config.vocabulary}: both must come from recipes with the same tokenizer"
            )
        return ToleratingLoop(model, BlockDrafter(network, self.block), self.beta, self.tau)


class ToleratingLoop(VerifyLoop):
    """The shared loop that accepts, at temperature 0, what is good enough instead of what is best."""

    def __init__(self, model: Seq2Seq, drafter: BlockDrafter, beta: int, tau: float):
        super().__init__(model, drafter)
        self.beta, self.tau = beta, tau

    def _accept(self, rows, logits, draft: Draft, temperature: float, rng) -> tuple[Tensor, Tensor]:
        if temperature:
            return super()._accept(rows, logits, draft, temperature, rng)
        n = accepted(draft.tokens, logits, self.beta, self.tau)
        return torch.arange(n + 1), torch.cat((draft.tokens[:n], logits[n].argmax()[None].cpu()))


def accepted(tokens: Tensor, logits: Tensor, beta: int, tau: float) -> int:
    """How many of the drafted ``tokens`` [k] pass in a row, given the verifier's ``logits`` [k + 1, V] at their slots.

    Among equal logits the token with the smaller index is the better one, as in an argmax.
    """
    logits, tokens = logits[: len(tokens)], tokens.to(logits.device)
    x = logits.gather(-1, tokens[:, None])  # [k, 1]
    better = (logits > x) | (logits == x) & (torch.arange(logits.shape[1], device=logits.device) < tokens[:, None])
    passes = (better.sum(-1) < beta) & (logits.amax(-1) - x[:, 0] <= tau)
    return int(passes.long().cumprod(0).sum())


class BlockDrafter:
    """The non-autoregressive model: its input is the accepted prefix and k mask tokens, its draft their argmax."""

    reads_prompt = False

    def __init__(self, network: EncoderDecoder, block: int):
        self.network, self.block = network, block
        self.masks = torch.full((block,), network.config.unknown)

    @torch.inference_mode()
    def start(self, prompt: Tensor, token: int, logits: Tensor | None) -> None:
        source = torch.cat((prompt, torch.tensor([self.network.config.end])))
        self.memory = self.network.cross(self.network.encode(source[None]))
        self.prefix = prompt[:0]

    @torch.inference_mode()
    def propose(self, room: int) -> Draft:
        if room < 1:
            return Draft.line(self.prefix[:0])
        ids = torch.cat((self.prefix, self.masks))
        return Draft.line(self.network.decode(ids[None], self.memory)[0, -self.block :][:room].argmax(-1).cpu())

    def observe(self, rows: Tensor, logits: Tensor, path: Tensor, gained: Tensor) -> None:
        self.prefix = torch.cat((self.prefix, gained))
