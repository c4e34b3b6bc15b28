"""Rules of NVIDIA's kvpress, run by its own code on the same weights: the peers of our eviction methods."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.held import Held, Holder, Prefilled
from parsimony.models.language import Language

PRESSES = {
    "snapkv": ("SnapKVPress", {"window_size": 32, "kernel_size": 5}, 32),
    "streaming_llm": ("StreamingLLMPress", {"n_sink": 4}, 4),
    "observed_attention": ("ObservedAttentionPress", {}, 0),
}
"""Rule -> press; what we set so that it has the defaults of our method of that name; the longest context it refuses."""


class KVPress:
    """A press drops entries while ``transformers`` reads the context; our decoder goes on from what it left.

    Keys stay where they stood in the text.  Nothing is dropped while decoding, nor of a context no longer than what a
    rule keeps in any case.  Its compression cannot be timed apart from reading: ``compress_seconds`` hold both.

    Parameters
    ----------
    rule : {"snapkv", "streaming_llm", "observed_attention"}
    budget : float
        Share of the context's entries that is kept.

    Raises
    ------
    UserError
        For another rule or a budget that is no share.
    """

    def __init__(self, rule: str, budget: float):
        if rule not in PRESSES or not 0 < budget <= 1:
            raise UserError(
                f"kvpress: rule {rule!r} is not one of {', '.join(PRESSES)}, or budget {budget} is not a share of the "
                "context; mend its params"
            )
        self.rule, self.budget = rule, budget

    def build(self, model: Language, inputs: Inputs) -> Holder:
        """The system, on a second copy of the weights that hands out attention weights, as one press needs."""
        from transformers import AutoModelForCausalLM

        dtype = model.decoder.dtype
        network = AutoModelForCausalLM.from_pretrained(
            model.folder, dtype=dtype, attn_implementation="eager", local_files_only=True, use_safetensors=True
        ).eval()
        return Holder(model, lambda prefilled: self.hold(prefilled, network))

    def hold(self, prefilled: Prefilled, network) -> list[Held]:
        """One `Held` a layer."""
        import kvpress
        from transformers import DynamicCache

        name, options, refused = PRESSES[self.rule]
        press, cache = getattr(kvpress, name)(1 - self.budget, **options), DynamicCache()
        hook, steps = press.forward_hook, {"cache_position": torch.arange(len(prefilled))}
        # kvpress 0.5 looks for the positions that `transformers` 5 no longer passes on to its layers.
        press.forward_hook = lambda module, inputs, kwargs, output: hook(module, inputs, kwargs | steps, output)
        with press(network) if len(prefilled) > refused else nullcontext():
            network(prefilled.ids[None], past_key_values=cache)
        return [Held(layer.keys[0], layer.values[0]) for layer in cache.layers]
