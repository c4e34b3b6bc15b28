"""Shared fixtures: a tiny random language model with a real tokenizer, and the repository's root."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

if not torch.cuda.is_available():  # kernels are interpreted, which is settled when they are defined: before imports
    os.environ["TRITON_INTERPRET"] = "1"

from parsimony.models import masked_image
from parsimony.models.bayesian_inr import Layout, Level, Network, Prior
from parsimony.models.language import Language
from parsimony.models.masked import Masked
from parsimony.models.masked_image import MaskedImage
from parsimony.models.seq2seq import Seq2Seq

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items) -> None:
    """Minutes of a single test come first, so that the workers that share the tests end at the same time."""
    items.sort(key=lambda item: item.path.parent.name not in ("integration", "faults"))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


def write_tiny_model(folder: Path, vocabulary: int = 300, width: int = 8) -> Path:
    """A random Llama of 2 layers with a byte-level tokenizer whose token 0 is end, padding and end of turn in one.

    ``width`` is that of its heads.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<|im_end|>": 0, "<|im_start|>": 1} | {letter: i + 2 for i, letter in enumerate(alphabet)}
    words |= {f"<{i}>": i for i in range(len(words), vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    fast.save_pretrained(folder)
    return folder


def write_tiny_drafter(folder: Path, vocabulary: int = 300, hidden: int = 32) -> Path:
    """A random narrow network in the form of the distilled asset: one layer, and a head for part of the vocabulary."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    shapes = {"self_attn.q_proj": (16, hidden), "self_attn.k_proj": (8, hidden), "self_attn.v_proj": (8, hidden)}
    shapes |= {"self_attn.o_proj": (hidden, 16), "mlp.gate_proj": (24, hidden), "mlp.up_proj": (24, hidden)}
    shapes |= {"mlp.down_proj": (hidden, 24)}
    weights = {
        f"model.layers.0.{n}.weight": torch.randn(*shape, generator=generator) / 5 for n, shape in shapes.items()
    }
    norms = ("model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm")
    weights |= {f"{name}.weight": torch.ones(hidden) for name in norms}
    weights["tokens"] = torch.randperm(vocabulary, generator=generator)[:200].sort().values.int()
    config = {
        "model_type": "llama", "num_hidden_layers": 1, "hidden_size": hidden, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "vocab_size": vocabulary, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }  # fmt: skip
    save_file(weights, folder / "drafter.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder) -> Language:
    """A tiny random model in float32."""
    return Language.load(tiny_folder, ["<|im_end|>"], "float32")


@pytest.fixture(scope="session")
def tiny_masked(tiny_folder) -> Masked:
    """The same weights without the causal mask; token 1 stands where nothing is decided yet."""
    return Masked.load(tiny_folder, "<|im_start|>", ["<|im_end|>"], "float32")


def write_tiny_seq2seq(folder: Path, vocabulary: int = 300, causal: bool = True, seed: int = 0) -> Path:
    """A random encoder-decoder of 2 + 2 layers whose token 0 begins and ends outputs; not causal for a drafter."""
    from tokenizers import Tokenizer, models

    from parsimony.models.seq2seq import EncoderDecoder, Seq2SeqConfig

    torch.manual_seed(seed)
    network = EncoderDecoder(Seq2SeqConfig(vocabulary, 32, 4, 64, 2, 2, causal=causal))
    for name, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0, std=0.2)
    network.save(folder)
    words = {"<end>": 0, "<unknown>": 1, "<pad>": 2} | {f"<{i}>": i for i in range(3, vocabulary)}
    Tokenizer(models.BPE(vocab=words, merges=[])).save(str(folder / "tokenizer.json"))
    return folder


def write_tiny_codecs(folder: Path, K: int) -> Path:
    """Random image codecs of 10 latent channels, under all names that methods ask for, with many kinds of symbols."""
    from safetensors.numpy import save_file as save_arrays

    from parsimony.models.image_codecs import CodecNetwork
    from parsimony.models.latent_coding import Tables, export

    names = [f"rate_{r}_seed_0" for r in (1, 2, 3, 4)] + ["rate_3_seed_1", "rate_3_seed_2"]
    arrays = {f"gaussians.{key}": array for key, array in Tables.of_gaussians().arrays().items()} if K else {}
    for n, name in enumerate(names):
        torch.manual_seed(n)
        network = CodecNetwork(4, 10, K)
        with torch.no_grad():
            for layer, factor in [(network.g_a[6], 40), (network.g_s[0], 0.2), *([(network.h_s[4], 8)] if K else [])]:
                layer.weight.mul_(factor)
            network.prior.quantiles.copy_(torch.tensor([-9.0, 0.3, 12.0]))
        arrays |= export(network, name)
    sizes = {"N": 4, "M": 10, "K": K}
    save_arrays(arrays, folder / "codecs.safetensors", {"networks": json.dumps(dict.fromkeys(names, sizes))})
    return folder


@pytest.fixture(scope="session")
def tiny_image(tmp_path_factory) -> MaskedImage:
    """A tiny random generator of images, in float32."""
    folder = write_tiny_model(tmp_path_factory.mktemp("image"), masked_image.VOCABULARY)
    torch.manual_seed(0)
    save_file(masked_image.VectorQuantiser().state_dict(), folder / "quantiser.safetensors")
    return MaskedImage.load(folder, "float32")


def write_tiny_prior(path: Path, levels: int, mapped: bool = True, bits: int = 6) -> Path:
    """A random prior of RECOMBINER over patches of 16 pixels, a dozen latents a block."""
    torch.manual_seed(0)
    layout = Layout(fourier=4, channels=2, latent=2, up=2, hidden=4, layers=1)
    network, parted = Network(layout, mapped), []
    for tensor in network.maps:
        torch.nn.init.normal_(tensor, std=len(tensor) ** -0.5)
    for level in range(levels):
        mean = 0.1 * torch.randn(layout.weights if level else layout.total)
        block = torch.arange(len(mean)) % (len(mean) // 12)
        parted.append(Level(mean, torch.full_like(mean, 0.1), torch.full_like(mean, 0.05), block))
    Prior(layout, network, parted, bits, 0.02).save(path)
    return path


@pytest.fixture(scope="session")
def tiny_seq2seq(tmp_path_factory) -> Seq2Seq:
    """A tiny random encoder-decoder in float32."""
    return Seq2Seq.load(write_tiny_seq2seq(tmp_path_factory.mktemp("seq2seq")), ["<end>"], "float32")


@pytest.fixture
def project(root, tiny_folder, tmp_path):
    """A copy of the project with a tiny model, to run, kill and break."""
    from project import Project

    return Project(tmp_path, root, tiny_folder)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one mebibyte, and a function that gives it more of them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a full disk is made with `mount -t tmpfs`, which is not permitted here")
    yield disk, lambda size=16: subprocess.run(["mount", "-o", f"remount,size={size}m", str(disk)], check=True)
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A real SLURM of one node."""
    from one_node_slurm import started

    yield from started(tmp_path_factory.mktemp("slurm"))
