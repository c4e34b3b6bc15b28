"""Stand-ins for what a rehearsal cannot fetch: tiny random checkpoints and a few rows, in the published formats.

They answer nothing; whether a study runs from end to end, through the same code as at its published scale, is all that
they can tell.
"""

from __future__ import annotations

import json
from io import BytesIO
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
    "dream": ("Dream", CHATML, ["<|endoftext|>", "<|mask|>", "<|im_start|>", "<|im_end|>"]),
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
    "json_mode": [
        {
            "instance_id": f"jsonschema_{n}",
            "input": f"{name} is {n} years old and lives in {place}. Who is it?",
            "output": json.dumps({"name": name, "age": n}),
            "schema": json.dumps(
                {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string"},
                        "age": {"type": "integer"},
                        "city": {"enum": ["Oslo", "Rome"]},
                    },
                    "required": ["name", "age"],
                }
            ),
        }
        for n, (name, place) in enumerate((("Ann", "Oslo"), ("Ben", "Rome")), 30)
    ],
    "smiles_eval": [
        {"instance_id": n, "input": told, "output": wanted, "difficulty_category": "easy"}
        for n, (told, wanted) in enumerate((("ethanol", "CCO"), ("benzoic acid", "OC(=O)c1ccccc1")))
    ],
    "humaneval_x": [
        {
            "task_id": f"CPP/{n}",
            "prompt": f"/*\nAdd {n} to a number.\n>>> add(1)\n{n + 1}\n*/\nint add(int x){{\n",
            "declaration": "#include<stdio.h>\nusing namespace std;\nint add(int x){\n",
            "canonical_solution": f"    return x + {n};\n}}\n",
            "test": f"#undef NDEBUG\n#include<assert.h>\nint main(){{\n    assert (add(1) == {n + 1});\n}}\n",
        }
        for n in (2, 3)
    ],
    "wmt14": [
        {"translation": {"en": f"{name} lives in {place} .", "de": f"{name} wohnt in {place} ."}}
        for name in ("Ann", "Ben", "Eva")
        for place in ("Oslo", "Rome", "Bern")
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
    begin, end = special[0], special[-1] if turn in (HEADERS, CHATML) else special[1]
    parts = (turn.replace("{role}", "{{ m.role }}").replace("{content}", "{{ m.content }}"), turn.split("{content}")[0])
    template = f"{{% for m in messages %}}{parts[0]}{{% endfor %}}{parts[1].replace('{role}', 'assistant')}"
    settings = {"bos_token": begin, "eos_token": end, "chat_template": template}
    vocabulary = tokenizer.get_vocab_size()
    if kind == "llada":
        _llada(out, vocabulary)
    elif kind == "Dream":
        _dream(out, vocabulary)
    else:
        _causal(out, kind, vocabulary, ROPE.get(family))
    if kind == "Dream":
        tokenizer.model.save(str(out))
        tokens = {tokenizer.token_to_id(token): {"content": token, "special": True} for token in special}
        settings |= {"tokenizer_class": "DreamTokenizer", "added_tokens_decoder": tokens}
    else:
        tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


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
            _parquet(out / name, ROWS[data])
        else:
            (out / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS[data]))


def classifier(out: Path, inputs: dict[str, Path], kind: str) -> None:
    """A random classifier of images of 1000 classes, "vit" or "resnet", with its preprocessing as published."""
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification

    sizes, prepared = {
        "vit": (
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
            {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224},
        ),
        "resnet": (
            {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
            {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "resample": 3, "size": 224,
             "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        ),
    }[kind]  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, num_labels=1000, **sizes)
    AutoModelForImageClassification.from_config(config).save_pretrained(out)
    (out / "preprocessor_config.json").write_text(json.dumps(prepared | {"do_normalize": True, "do_resize": True}))


def listener(out: Path, inputs: dict[str, Path]) -> None:
    """A random multilingual Whisper with a vocabulary of bytes."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    tokenizer = _bytes(special)
    tokenizer.save(str(out / "tokenizer.json"))
    end, begin = map(tokenizer.token_to_id, special[:2])
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(), d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64,
        encoder_attention_heads=2, decoder_attention_heads=2, decoder_ffn_dim=64, max_target_positions=32,
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=begin,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(out)
    settings = {"suppress_tokens": [begin], "begin_suppress_tokens": [end], "eos_token_id": end}
    (out / "generation_config.json").write_text(json.dumps(settings))


def pictures(
    out: Path, inputs: dict[str, Path], column: str, shape: list[int], count: int, classes: int, files: list[str]
) -> None:
    """Smooth random pictures of a shape, with labels, as cells of `datasets`' kind ``Image``."""
    import numpy as np
    from PIL import Image

    for seed, name in enumerate(files):
        rng, found = np.random.default_rng(seed), []
        for n in range(count):
            coarse = rng.integers(0, 256, (4, 4, *shape[2:]), np.uint8)
            file = BytesIO()
            Image.fromarray(coarse).resize(shape[1::-1], Image.Resampling.BICUBIC).save(file, "PNG")
            label = int(rng.integers(classes))
            found.append({column: {"bytes": file.getvalue(), "path": f"{n}.png"}, "label": label})
        _parquet(out / name, found)


def recordings(out: Path, inputs: dict[str, Path], count: int, files: list[str]) -> None:
    """A second of a tone each, with what is said, as cells of `datasets`' kind ``Audio``."""
    import wave

    import numpy as np

    for name in files:
        found = []
        for n in range(count):
            file = BytesIO()
            with wave.open(file, "wb") as sound:
                sound.setparams((1, 2, 16_000, 0, "NONE", ""))
                sound.writeframes((8000 * np.sin(np.arange(16_000) * (n + 1) / 20)).astype("<i2").tobytes())
            found.append({"audio": {"bytes": file.getvalue(), "path": f"{n}.wav"}, "text": f"TONE NUMBER {n}"})
        _parquet(out / name, found)


def _parquet(file: Path, found: list[dict]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(found), file)


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


def _dream(out: Path, vocabulary: int) -> None:
    """A checkpoint of Qwen2's form under Dream's name."""
    _causal(out, "qwen2", vocabulary, None)
    config = json.loads((out / "config.json").read_text())
    named = {"model_type": "Dream", "auto_map": {"AutoModel": "modeling_dream.DreamModel"}}
    (out / "config.json").write_text(json.dumps(config | named))


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
