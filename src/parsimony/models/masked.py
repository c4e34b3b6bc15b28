"""A masked diffusion language model as the methods receive it: bidirectional network, tokenizer and roles."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.models.decoder import Decoder, DecoderConfig, checkpoint
from parsimony.models.language import DTYPES
from parsimony.models.tokenizer import Tokenizer

LLADA = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
"""Names inside a layer: ours (Llama's) -> LLaDA's."""


@dataclass
class Masked:
    """A loaded masked diffusion model.

    Attributes
    ----------
    decoder : Decoder
        Without a causal mask.
    folder : Path
        Where the weights, the configuration and the tokenizer lie.
    mask : str
        The token that stands where nothing is decided yet.
    stop : tuple of str
        Tokens that end an answer, and fill it up to its length.
    shifted : bool
        Whether the output at position i - 1 predicts token i (models adapted from autoregressive ones, like Dream).
    """

    decoder: Decoder
    folder: Path
    mask: str
    stop: tuple[str, ...]
    shifted: bool = False

    @classmethod
    def load(cls, folder: Path, mask: str, stop, dtype: str, shifted: bool = False, devices="cpu") -> Masked:
        """Load weights in ``dtype``; ``config.json`` may be Llama's, Qwen2's, LLaDA's or Dream's.

        ``devices`` as of `Decoder`.

        Raises
        ------
        UserError
            For an unknown dtype or architecture.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        folder = Path(folder)
        settings, rename = as_llama(json.loads((folder / "config.json").read_text()))
        config = DecoderConfig.from_hf(settings, causal=False)
        with checkpoint(folder) as weights:
            decoder = Decoder(config, lambda name: weights(rename(name)), DTYPES[dtype], devices)
        return cls(decoder, folder, mask, tuple(stop), shifted)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.folder)

    @cached_property
    def mask_id(self) -> int:
        return self.tokenizer.id(self.mask)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        return frozenset(map(self.tokenizer.id, self.stop))

    def encode(self, text: str) -> Tensor:
        """Token ids ([T] int64) of a text as it stands."""
        return torch.tensor(self.tokenizer.encode(text), dtype=torch.int64)

    def decode(self, ids: Tensor) -> str:
        """The text of generated ids up to the first that ends an answer."""
        kept = []
        for number in ids.tolist():
            if number in self.stop_ids:
                break
            kept.append(number)
        return self.tokenizer.decode(kept)


def as_llama(config: dict) -> tuple[dict, Callable[[str], str]]:
    """A Llama (or Qwen2) configuration of the same network, and the map from our weight names to the checkpoint's.

    LLaDA's names follow OLMo; Dream's are Qwen2's.
    """
    kind = config.get("model_type")
    if kind == "llada":
        settings = {
            "model_type": "llama",
            "num_hidden_layers": config["n_layers"],
            "hidden_size": config["d_model"],
            "intermediate_size": config["mlp_hidden_size"],
            "num_attention_heads": config["n_heads"],
            "num_key_value_heads": config.get("n_kv_heads") or config["n_heads"],
            "vocab_size": config.get("embedding_size") or config["vocab_size"],
            "rms_norm_eps": config["rms_norm_eps"],
            "rope_theta": config["rope_theta"],
            "tie_word_embeddings": config.get("weight_tying", False),
        }
        return settings, _llada_name
    if kind == "Dream":
        return config | {"model_type": "qwen2"}, lambda name: name
    return config, lambda name: name


def _llada_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "model.transformer.wte.weight"
    if name == "model.norm.weight":
        return "model.transformer.ln_f.weight"
    if name == "lm_head.weight":
        return "model.transformer.ff_out.weight"
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    part, kind = rest.rsplit(".", 1)
    return f"model.transformer.blocks.{layer}.{LLADA.get(part, part)}.{kind}"
