"""Stand-ins for what a rehearsal cannot fetch: tiny random checkpoints and a few rows, in the published formats.

They answer nothing; whether a study runs from end to end, through the same code as at its published scale, is all that
they can tell.
"""

from __future__ import annotations

import json
from pathlib import Path

from parsimony.errors import UserError

SIZE = 64
"""Channels of the networks: four heads of 16."""
LAYERS = 4
CHATML = "<|im_start|>{role}\n{content}<|im_end|>\n"
HEADERS = "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"
FAMILIES = {
    "llama_3": ("llama", HEADERS, ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                                   "<|eot_id|>"]),
    "llama_2": ("llama", "[{role}] {content} ", ["<s>", "</s>"]),
    "mistral": ("mistral", "[{role}] {content} ", ["<s>", "</s>", "[INST]", "[/INST]"]),
    "qwen_3": ("qwen3", CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
    "deepseek": ("llama", "{content}\n", ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]),
    "llada": ("llada", HEADERS, ["<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", "<|start_header_id|>",
                                 "<|end_header_id|>", "<|eot_id|>"]),
}  # fmt: skip
"""Family -> type of the network, what a turn of a conversation looks like, special tokens."""
PIECES = ("llama_2", "mistral")
"""Families whose vocabularies are SentencePiece's, with a token for each byte to fall back on; others are of bytes."""
ROPE = {
    "llama_3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192, "rope_theta": 500000.0},
    "deepseek": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0},
}  # fmt: skip
"""Scaled rotary embeddings, as the published configurations have them."""

ROWS = {
    "gsm8k": [
        {"question": f"Ann has {n} apples and buys {m} more. How many has she?", "answer": f"{n} + {m}\n#### {n + m}"}
        for n, m in ((2, 3), (4, 1), (5, 2), (7, 6))
    ],
    "math_500": [
        {"problem": f"What is $\\frac{{{n}}}{{2}}$?", "answer": f"\\frac{{{n}}}{{2}}", "unique_id": f"{n}"}
        for n in (1, 3, 5, 7)
    ],
    "long_bench": [
        {
            "input": f"Where does {name} live?",
            "context": f"Paragraph {n}: {name} lives in {place}. " + "Nothing else is known. " * 20,
            "answers": [place],
            "length": 100,
            "all_classes": ["Oslo", "Rome", "Bern", "Kyiv"],
            "_id": str(n),
        }
        for n, (name, place) in enumerate((("Ann", "Oslo"), ("Ben", "Rome"), ("Eva", "Bern"), ("Tom", "Kyiv")), 1)
    ],
}
"""Data set -> invented rows with its columns."""


def checkpoint(out: Path, inputs: dict[str, Path], family: str) -> None:
    """A random network of a family with a tokenizer of its kind.

    Parameters
    ----------
    family : str
        Of `FAMILIES`.

    Raises
    ------
    UserError
        For an unknown family.
    """
    if family not in FAMILIES:
        raise UserError(f"there is no family {family!r} to rehearse with; valid: {', '.join(FAMILIES)}")
    kind, turn, special = FAMILIES[family]
    tokenizer = _pieces(special) if family in PIECES else _bytes(special)
    tokenizer.save(str(out / "tokenizer.json"))
    begin, end = special[0], special[-1] if turn in (HEADERS, CHATML) else special[1]
    parts = (turn.replace("{role}", "{{ m.role }}").replace("{content}", "{{ m.content }}"), turn.split("{content}")[0])
    template = f"{{% for m in messages %}}{parts[0]}{{% endfor %}}{parts[1].replace('{role}', 'assistant')}"
    settings = {"bos_token": begin, "eos_token": end, "chat_template": template}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    vocabulary = tokenizer.get_vocab_size()
    if kind == "llada":
        _llada(out, vocabulary)
    else:
        _causal(out, kind, vocabulary, ROPE.get(family))


def rows(out: Path, inputs: dict[str, Path], data: str, files: list[str]) -> None:
    """A few rows with the columns of a data set in each of its files, of which those of Parquet are such.

    Raises
    ------
    UserError
        For an unknown data set.
    """
    if data not in ROWS:
        raise UserError(f"there are no rows of {data!r} to rehearse with; valid: {', '.join(ROWS)}")
    for name in files:
        if name.endswith(".parquet"):
            import pyarrow as pa
            from pyarrow import parquet

            parquet.write_table(pa.Table.from_pylist(ROWS[data]), out / name)
        else:
            (out / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS[data]))


def _bytes(special: list[str]):
    """A tokenizer whose pieces are bytes, as those of Llama 3, Qwen and LLaDA begin."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _pieces(special: list[str]):
    """A tokenizer of letters that begins words with a mark and falls back on bytes, as that of Llama 2."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    letters = ["<unk>", *special[:2], *(f"<0x{n:02X}>" for n in range(256)), "\u2581", *map(chr, range(33, 127))]
    vocabulary = {letter: n for n, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special)
    return tokenizer


def _causal(out: Path, kind: str, vocabulary: int, rope: dict | None) -> None:
    """What `transformers` writes of a small network of this type."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=vocabulary, hidden_size=SIZE, intermediate_size=2 * SIZE, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=SIZE // 4, max_position_embeddings=131072,
        **({"rope_parameters": rope} if rope else {}),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).bfloat16()
    model.save_pretrained(out)


def _llada(out: Path, vocabulary: int) -> None:
    """A checkpoint with LLaDA's names, all heads with keys of their own."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    config = {
        "model_type": "llada", "n_layers": LAYERS, "d_model": SIZE, "mlp_hidden_size": 2 * SIZE, "n_heads": 4,
        "n_kv_heads": 4, "vocab_size": vocabulary, "embedding_size": vocabulary, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "weight_tying": False, "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
    }  # fmt: skip
    shapes = {"wte": (vocabulary, SIZE), "ff_out": (vocabulary, SIZE)}
    for n in range(LAYERS):
        block = {name: (SIZE, SIZE) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
        block |= {"ff_proj": (2 * SIZE, SIZE), "up_proj": (2 * SIZE, SIZE), "ff_out": (SIZE, 2 * SIZE)}
        shapes |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
    weights = {name: torch.randn(shape, generator=generator) / 8 for name, shape in shapes.items()}
    norms = ["ln_f", *(f"blocks.{n}.{name}" for n in range(LAYERS) for name in ("attn_norm", "ff_norm"))]
    weights |= {name: torch.ones(SIZE) for name in norms}
    save_file(
        {f"model.transformer.{name}.weight": w.bfloat16() for name, w in weights.items()}, out / "model.safetensors"
    )
    (out / "config.json").write_text(json.dumps(config, indent=1))
