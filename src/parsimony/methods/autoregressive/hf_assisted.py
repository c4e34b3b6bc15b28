"""Assisted generation as ``transformers`` runs it, drafting with the first layers: the peer of draft-model decoding."""

from __future__ import annotations

import copy

import torch

from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.hf_generate import HfGenerator
from parsimony.models.language import Language


class HfAssisted:
    """``generate(assistant_model=...)`` of ``transformers`` with a constant schedule and no confidence threshold.

    The assistant is the target's first layers with the target's embedding, final norm and head; it shares their
    tensors, and has a cache of its own.

    Parameters
    ----------
    layers : int
        Layers of the assistant; all, where the target has fewer.
    draft_tokens : int
        Tokens that are drafted in every round.
    """

    def __init__(self, layers: int = 6, draft_tokens: int = 4):
        self.layers, self.draft_tokens = layers, draft_tokens

    def build(self, model: Language, inputs: Inputs) -> HfGenerator:
        """The generator of ``transformers`` with an assistant."""
        generator = HfGenerator(model)
        generator.options["assistant_model"] = first_layers(generator.network, self.layers, self.draft_tokens)
        return generator


def first_layers(network, layers: int, draft_tokens: int):
    """A network of ``transformers`` made of the first ``layers`` of another; all tensors are shared."""
    config = copy.deepcopy(network.config)
    config.num_hidden_layers = layers = min(layers, config.num_hidden_layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    with torch.device("meta"):
        assistant = type(network)(config)
    body, whole = assistant.base_model, network.base_model
    for name, module in whole.named_children():
        setattr(body, name, module[:layers] if name == "layers" else module)
    assistant.set_output_embeddings(network.get_output_embeddings())
    settings = assistant.generation_config = copy.deepcopy(network.generation_config)
    settings.num_assistant_tokens = draft_tokens
    settings.num_assistant_tokens_schedule = "constant"
    settings.assistant_confidence_threshold = 0.0
    return assistant.eval()
