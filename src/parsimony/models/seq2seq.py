"""A compact encoder-decoder Transformer (pre-norm, shared embedding), for training and for incremental decoding.

    encoder:  x -> x + attention(norm x) -> x + MLP(norm x)                                     (each layer)
    decoder:  y -> y + attention(norm y) -> y + attention(norm y, memory) -> y + MLP(norm y)    (each layer)

Source and target share vocabulary and embedding, which is the output head as well; the encoder sees the source and an
end token, the decoder begins with the end token (as in fairseq).  Queries and keys are rotated by their positions, in
cross-attention too: the difference of target and source position is what a model that mostly copies looks at.

Shapes: B sequences, S source tokens, T new target tokens, L cached ones, H heads, d head width, D = H d.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from parsimony.errors import UserError
from parsimony.models.kv_cache import KVCache
from parsimony.models.language import DTYPES
from parsimony.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Seq2SeqConfig:
    """The architecture, as it stands in ``config.json``.

    Attributes
    ----------
    end, unknown, pad : int
        Ids of the token that ends a sequence (and begins the decoder's input), of the one that masks a target slot
        for a non-autoregressive drafter, and of padding.
    causal : bool
        False: the decoder's self-attention sees both ways (a drafter).
    """

    vocabulary: int
    hidden: int
    heads: int
    inner: int
    encoder_layers: int
    decoder_layers: int
    end: int = 0
    unknown: int = 1
    pad: int = 2
    causal: bool = True


class CrossCache(KVCache):
    """Self-attention cache of the decoder, which can be cut, and the cross-attention cache, which stays."""

    def __init__(self, config: Seq2SeqConfig, batch: int, capacity: int, dtype, device):
        width = config.hidden // config.heads
        super().__init__(config.decoder_layers, batch, config.heads, capacity, width, dtype, device)
        self.cross: list[tuple[Tensor, Tensor]] = []
        """Keys and values [1, H, S, d] of the memory, per layer."""

    def clear(self) -> None:
        """Forget everything, and hold one sequence again."""
        super().clear()
        self.cross = []
        if self.data.shape[2] > 1:
            self.spread(torch.zeros(1, dtype=torch.int64))

    def spread(self, sequences: Tensor) -> None:
        """Go on with some of the sequences ([B'] int64, repeats allowed); the memory is common to all."""
        self.data, self.positions = self.data[:, :, sequences], self.positions[:, sequences]

    def nbytes(self) -> int:
        """Bytes of the live entries of both caches."""
        return super().nbytes() + sum(keys.nbytes + values.nbytes for keys, values in self.cross)


class Layer(nn.Module):
    """One layer of the encoder or, with cross-attention, of the decoder."""

    def __init__(self, c: Seq2SeqConfig, cross: bool):
        super().__init__()
        D = c.hidden
        self.norm, self.qkv, self.o = nn.LayerNorm(D), nn.Linear(D, 3 * D), nn.Linear(D, D)
        if cross:
            self.cross_norm, self.cross_q, self.cross_o = nn.LayerNorm(D), nn.Linear(D, D), nn.Linear(D, D)
            self.cross_kv = nn.Linear(D, 2 * D)
        self.mlp_norm, self.up, self.down = nn.LayerNorm(D), nn.Linear(D, c.inner), nn.Linear(c.inner, D)

    def mlp(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.down(F.gelu(self.up(self.mlp_norm(x))))


class EncoderDecoder(nn.Module):
    """The network; holds no state of a sequence (that is in the `CrossCache`).

    Decoding loops use it as they use `Decoder`: `prefill` encodes a source, `forward` runs target tokens behind the
    cached ones, the first of which is `begin`.  Ids may come from anywhere; all that comes out is on `device`.
    """

    def __init__(self, config: Seq2SeqConfig, dropout: float = 0.0):
        super().__init__()
        c = self.config = config
        self.dropout, self.begin, self.device = dropout, c.end, torch.device("cpu")
        self.embedding = nn.Parameter(torch.randn(c.vocabulary, c.hidden) * c.hidden**-0.5)
        self.encoder = nn.ModuleList(Layer(c, cross=False) for _ in range(c.encoder_layers))
        self.decoder = nn.ModuleList(Layer(c, cross=True) for _ in range(c.decoder_layers))
        self.memory_norm, self.norm = nn.LayerNorm(c.hidden), nn.LayerNorm(c.hidden)
        self._rotations: tuple[Tensor, Tensor] | None = None

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32, devices="cpu") -> EncoderDecoder:
        """The network of a folder that `save` wrote, ready for inference on the first of ``devices``."""
        network = cls(Seq2SeqConfig(**json.loads((Path(folder) / "config.json").read_text())))
        network.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        network.device = torch.device(devices if isinstance(devices, str) else devices[0])
        return network.to(device=network.device, dtype=dtype).eval().requires_grad_(False)

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write ``config.json`` and ``model.safetensors``, the weights rounded to ``dtype``."""
        weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps(asdict(self.config), indent=1) + "\n")

    def cache(self, capacity: int, batch: int = 1) -> CrossCache:
        """An empty cache for this network."""
        return CrossCache(self.config, batch, capacity, self.embedding.dtype, self.device)

    @torch.inference_mode()
    def prefill(self, ids: Tensor, cache: CrossCache, *, want: str = "none") -> None:
        """Encode a source ([1, S] int64, no end token) and put its keys and values into the empty ``cache``.

        There are no logits to ``want``: the first come with the first pass of `forward`, over `begin`.
        """
        cache.cross = self.cross(self.encode(F.pad(ids, (0, 1), value=self.config.end)))

    @torch.inference_mode()
    def forward(self, ids: Tensor, cache: CrossCache, *, positions=None, tree=None, vectors=None) -> Tensor:
        """Logits [B, T, V] of target tokens ([B, T] int64) behind the cached ones, which they join.

        Raises
        ------
        ValueError
            For anything but a chain of tokens.
        """
        if positions is not None or tree is not None or vectors is not None:
            raise ValueError("an encoder-decoder verifies chains of tokens only: draft no trees and no vectors")
        cache.reserve(ids.shape[1])
        return self.decode(ids, cache.cross, cache=cache)

    def teach(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits [B, T, V] behind each of the decoder's inputs [B, T], given sources [B, S]; both padded."""
        seen = (source != self.config.pad)[:, None, None, :]
        # Without a causal mask, padding of the target has to be hidden as well.
        shown = None if self.config.causal else (target != self.config.pad)[:, None, None, :]
        return self.decode(target, self.cross(self.encode(source, seen)), seen, shown)

    def encode(self, source: Tensor, seen: Tensor | None = None) -> Tensor:
        """Memory [B, S, D] of source ids [B, S] (end token included); ``seen`` [B, 1, 1, S] is False at padding."""
        x = self._embed(source)
        for layer in self.encoder:
            q, k, v = self._heads(layer.qkv(layer.norm(x)), 3)
            x = x + self._drop(layer.o(_attend(self.rotate(q), self.rotate(k), v, seen)))
            x = x + self._drop(layer.mlp(x))
        return self.memory_norm(x)

    def cross(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Rotated keys and values [B, H, S, d] of the memory, per decoder layer."""
        pairs = [self._heads(layer.cross_kv(memory), 2) for layer in self.decoder]
        return [(self.rotate(k), v) for k, v in pairs]

    def decode(self, ids: Tensor, cross, seen: Tensor | None = None, mask: Tensor | None = None, cache=None) -> Tensor:
        """Logits [B, T, V] of target ids [B, T], behind those of ``cache`` if there is one.

        ``seen`` [B, 1, 1, S] and ``mask`` [B, 1, 1, T] are False at padding of source and target.
        """
        (B, T), start = ids.shape, 0 if cache is None else len(cache)
        if self.config.causal and T > 1:
            mask = torch.ones(T, start + T, dtype=torch.bool, device=self.device).tril(start)
        x = self._embed(ids)
        for i, layer in enumerate(self.decoder):
            q, k, v = self._heads(layer.qkv(layer.norm(x)), 3)
            k = self.rotate(k, start)
            if cache is not None:
                k, v = cache.write(i, k, v)
            x = x + self._drop(layer.o(_attend(self.rotate(q, start), k, v, mask)))
            (q,) = self._heads(layer.cross_q(layer.cross_norm(x)), 1)
            k, v = (each.expand(B, -1, -1, -1) for each in cross[i])
            x = x + self._drop(layer.cross_o(_attend(self.rotate(q, start), k, v, seen)))
            x = x + self._drop(layer.mlp(x))
        return F.linear(self.norm(x), self.embedding)

    def rotate(self, x: Tensor, start: int = 0) -> Tensor:
        """``x`` [B, H, T, d] rotated to positions start, start + 1, ..."""
        T, half = x.shape[2], x.shape[3] // 2
        table = self._rotations
        if table is None or len(table[0]) < start + T or (table[0].dtype, table[0].device) != (x.dtype, x.device):
            with torch.inference_mode(False):  # the table serves training as well
                angles = torch.arange(max(start + T, 512))[:, None] * 10000.0 ** -(torch.arange(half) / half)
                cos, sin = angles.cos().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), 1)
                self._rotations = table = cos.to(x.device, x.dtype), sin.to(x.device, x.dtype)
        cos, sin = (each[start : start + T] for each in table)
        return x * cos + x.roll(half, -1) * sin

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, T, parts D] -> ``parts`` tensors [B, H, T, d]."""
        c = self.config
        return x.view(*x.shape[:2], parts, c.heads, c.hidden // c.heads).permute(2, 0, 3, 1, 4).unbind(0)

    def _embed(self, ids: Tensor) -> Tensor:
        return self._drop(F.embedding(ids.to(self.device), self.embedding) * self.config.hidden**0.5)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of queries [B, H, T, d], heads joined again: [B, T, D]."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


@dataclass
class Seq2Seq:
    """An encoder-decoder as the methods receive it: network, tokenizer and roles (compare `Language`).

    Attributes
    ----------
    decoder : EncoderDecoder
    folder : Path
        Where weights, configuration and tokenizer lie.
    stop : tuple of str
        Tokens that end the output.
    """

    decoder: EncoderDecoder
    folder: Path
    stop: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path, stop, dtype: str, devices="cpu") -> Seq2Seq:
        """Load weights in ``dtype`` ("float32", "bfloat16" or "float16") on the first of ``devices``."""
        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        return cls(EncoderDecoder.load(folder, DTYPES[dtype], devices), Path(folder), tuple(stop))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.folder)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        return frozenset(map(self.tokenizer.id, self.stop))

    def chat(self, messages: list[dict]) -> Tensor:
        """Source ids ([S] int64, no end token) of the last message: the model knows no conversation."""
        return self.encode(messages[-1]["content"])

    def encode(self, text: str) -> Tensor:
        """Token ids ([T] int64) of a text, without special tokens."""
        return torch.tensor(self.tokenizer.encode(text), dtype=torch.int64)

    def decode(self, ids: Tensor) -> str:
        """The text of generated ids, without the tokens that end it."""
        return self.tokenizer.decode(ids.tolist(), special=False).strip()

    def next_logits(self, prompt: Tensor, answer: Tensor) -> Tensor:
        """Logits [V] behind the beginning of the output for a source ([S] int64)."""
        cache = self.decoder.cache(len(answer) + 1)
        self.decoder.prefill(prompt[None], cache)
        return self.decoder.forward(F.pad(answer, (1, 0), value=self.decoder.begin)[None], cache)[0, -1]
