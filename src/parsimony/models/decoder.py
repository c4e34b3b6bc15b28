"""One transformer for the Llama, Mistral and Qwen families, in plain tensor operations.

    x -> [RMSNorm -> fused QKV (-> QK norm) -> RoPE -> attention over the KV cache -> O] + x
      -> [RMSNorm -> fused gate and up -> SiLU(gate) * up -> down] + x            (each layer)
      -> RMSNorm -> head (tied with the embedding, or not)

Shapes: B sequences, T new tokens, L cached tokens, H query heads, G key-value heads, R = H / G, d head width.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from parsimony.errors import UserError
from parsimony.models.kv_cache import KVCache
from parsimony.models.packed import Packed, linear, pack


@dataclass(frozen=True)
class DecoderConfig:
    """The architecture, read from a Hugging Face ``config.json``."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    width: int
    vocabulary: int
    epsilon: float
    rope_theta: float
    tied: bool
    windows: tuple[int | None, ...]
    rope_scaling: dict | None = None
    source: dict | None = None
    causal: bool = True

    @classmethod
    def from_hf(cls, c: dict, causal: bool = True) -> DecoderConfig:
        """Read the fields that matter; unknown rotary types and model types are refused in one sentence."""
        if c.get("model_type") not in ("llama", "mistral", "qwen2", "qwen3"):
            known = "llama, mistral, qwen2, qwen3"
            raise UserError(f"model_type {c.get('model_type')!r} is not one the decoder can load: {known}")
        rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        layers = c["num_hidden_layers"]
        window = c.get("sliding_window")
        kinds = c.get("layer_types")
        if c["model_type"].startswith("qwen") and not c.get("use_sliding_window"):
            windows = (None,) * layers
        elif kinds:
            windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
        else:
            windows = (window,) * layers
        return cls(
            layers=layers,
            hidden=c["hidden_size"],
            heads=c["num_attention_heads"],
            kv_heads=c.get("num_key_value_heads") or c["num_attention_heads"],
            width=c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
            vocabulary=c["vocab_size"],
            epsilon=c["rms_norm_eps"],
            rope_theta=rope.get("rope_theta") or c.get("rope_theta", 10000.0),
            tied=bool(c.get("tie_word_embeddings", False)),
            windows=windows,
            rope_scaling=None if kind == "default" else rope,
            source=c,
            causal=causal,
        )

    def frequencies(self) -> tuple[Tensor, float]:
        """Inverse frequencies ([d/2] float32) and the attention factor of scaled rotary embeddings."""
        if self.rope_scaling is None:
            return self.rope_theta ** -(torch.arange(0, self.width, 2).float() / self.width), 1.0
        from transformers import AutoConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        kind = self.rope_scaling.get("rope_type", self.rope_scaling.get("type"))
        config = AutoConfig.for_model(**self.source)
        return ROPE_INIT_FUNCTIONS[kind](config, "cpu")


@contextlib.contextmanager
def checkpoint(folder: Path) -> Iterator[Callable[[str], Tensor | None]]:
    """The tensors of a folder's safetensors (one file, or shards) by name; None for a name that none has."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safe_open(f, framework="pt")) for f in sorted(Path(folder).glob("*.safetensors"))]
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a dict)
        yield lambda name: where[name].get_tensor(name) if name in where else None


@dataclass
class Layer:
    """Weights of one layer; the three projections of attention and the two of the MLP are fused.

    Matrices may be packed: only `linear` reads them.
    """

    norm: Tensor
    qkv: Tensor | Packed
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Tensor | Packed
    mlp_norm: Tensor
    gate_up: Tensor | Packed
    down: Tensor | Packed
    window: int | None
    device: torch.device


class Decoder:
    """The network; holds no state of a sequence (that is in the `KVCache`).

    Parameters
    ----------
    config : DecoderConfig
    weights : callable str -> Tensor or None
        Returns the tensor of a Hugging Face name, or None where the checkpoint has none.
    dtype : torch.dtype
        float32, bfloat16 or float16.
    devices : str, or sequence of str
        Where the matrices of the layers lie, in equal runs.  Embedding, caches and attention are on the first, and so
        are all tensors that come out; token ids and positions may come from anywhere.
    """

    begin = None
    """The output follows the prompt; that of an encoder-decoder begins with a token of its own."""

    def __init__(self, config: DecoderConfig, weights: Callable[[str], Tensor | None], dtype, devices="cpu"):
        self.devices = [devices] if isinstance(devices, (str, torch.device)) else devices
        device = torch.device(self.devices[0])

        def get(name: str) -> Tensor | None:
            tensor = weights(name)
            return None if tensor is None else tensor.to(device=device, dtype=dtype)

        def fused(prefix: str, names: tuple[str, ...], kind: str) -> Tensor | None:
            parts = [get(f"{prefix}.{name}.{kind}") for name in names]
            return None if parts[0] is None else torch.cat(parts)

        def packed(prefix: str, *names: str) -> Tensor | Packed:
            return pack(fused(prefix, names, "weight"))

        self.config, self.dtype, self.device = config, dtype, device
        self.embedding = get("model.embed_tokens.weight")
        self.norm = get("model.norm.weight")
        self.head = pack(self.embedding if config.tied else get("lm_head.weight"))
        self.layers = []
        for i in range(config.layers):
            p, device = f"model.layers.{i}", torch.device(self.devices[i * len(self.devices) // config.layers])
            self.layers.append(
                Layer(
                    norm=get(f"{p}.input_layernorm.weight"),
                    qkv=packed(f"{p}.self_attn", "q_proj", "k_proj", "v_proj"),
                    qkv_bias=fused(f"{p}.self_attn", ("q_proj", "k_proj", "v_proj"), "bias"),
                    q_norm=get(f"{p}.self_attn.q_norm.weight"),
                    k_norm=get(f"{p}.self_attn.k_norm.weight"),
                    o=packed(f"{p}.self_attn", "o_proj"),
                    mlp_norm=get(f"{p}.post_attention_layernorm.weight"),
                    gate_up=packed(f"{p}.mlp", "gate_proj", "up_proj"),
                    down=packed(f"{p}.mlp", "down_proj"),
                    window=config.windows[i],
                    device=device,
                )
            )
        self._inverse, self._factor = config.frequencies()
        self._rotations: tuple[Tensor, Tensor] | None = None
        self._masks: dict[tuple, tuple[Tensor, Tensor | None]] = {}

    @classmethod
    def load(cls, folder: Path, dtype=torch.float32, devices="cpu", causal: bool = True) -> Decoder:
        """Load ``config.json`` and the safetensors of a folder (one file, or shards with an index)."""
        config = DecoderConfig.from_hf(json.loads((Path(folder) / "config.json").read_text()), causal)
        with checkpoint(folder) as weights:
            return cls(config, weights, dtype, devices)

    def first_layers(self, count: int) -> Decoder:
        """The network that leaves after its first ``count`` layers: same tensors, final norm and head."""
        if not 0 < count <= self.config.layers:
            raise UserError(f"a network of {self.config.layers} layers has no first {count}; choose from 1 on")
        early = copy.copy(self)
        early.config = replace(self.config, layers=count, windows=self.config.windows[:count])
        early.layers, early._masks = self.layers[:count], {}
        return early

    def cache(self, capacity: int, batch: int = 1) -> KVCache:
        """An empty cache for this network."""
        c = self.config
        return KVCache(c.layers, batch, c.kv_heads, capacity, c.width, self.dtype, self.device)

    def embed(self, ids: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Input vectors [B, T, D]; ids from V on stand for the rows of ``vectors``."""
        if vectors is None:
            return F.embedding(ids, self.embedding)
        V = self.config.vocabulary
        x = F.embedding(ids.clamp(max=V - 1), self.embedding)
        ours = ids >= V
        x[ours] = vectors[ids[ours] - V].to(x.dtype)
        return x

    def rope(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate ``x`` ([B, H, T, d]) to ``positions`` ([B, T]; negative ones rotate back)."""
        angles = positions[:, None, :, None] * self._inverse.to(x.device).repeat(2)
        half = torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)
        return (x.float() * angles.cos() + half.float() * angles.sin()).to(x.dtype)

    @torch.inference_mode()
    def forward(
        self,
        ids: Tensor,
        cache: KVCache,
        *,
        positions: Tensor | None = None,
        pads: Tensor | None = None,
        tree: Tensor | None = None,
        vectors: Tensor | None = None,
        want: str = "all",
        hook: Callable[[int, Tensor], Tensor | None] | None = None,
        attention: list | None = None,
    ) -> Tensor | None:
        """Run T new tokens behind the cached ones and add them to the cache.

        Parameters
        ----------
        ids : Tensor [B, T] int64
        positions : Tensor [B, T] int64, optional
            Default: behind the last cached position of each sequence.
        pads : Tensor [B] int64, optional
            Number of left padding tokens of each sequence in this call (only into an empty cache).
        tree : Tensor [T, T] bool, optional
            ``tree[i, j]``: new token i sees new token j. Default: causal (or full, for a bidirectional network).
        vectors : Tensor [m, D], optional
            Input vectors that are no token's embedding; ids V, V + 1, ... stand for them.
        want : {"all", "last", "hidden", "none"}
            Logits [B, T, V] of all tokens, [B, 1, V] of the last, final hidden states [B, T, D], or nothing.
        hook : callable (layer, x) -> x or None
            Sees, and may replace, the residual stream [B, T, D] behind each layer.
        attention : list, optional
            Receives the attention weights [B, H, T, L + T] of each layer.
        """
        c = self.config
        B, T = ids.shape
        start = len(cache)
        cache.reserve(T)
        straight = tree is None and positions is None and pads is None
        ids, positions, pads = (each if each is None else each.to(self.device) for each in (ids, positions, pads))
        if positions is None:
            positions = self._next_positions(cache, B, T, pads)
        plain = cache.plain
        general = not (plain and B == 1 and pads is None and all(w is None or start + T <= w for w in c.windows))
        if plain and (straight or (tree is None and bool((positions == start + self._steps(T)).all()))):
            cache.in_order += T
        elif tree is None and plain:
            general = True
        cache.note_positions(positions)
        cos, sin = self._rotation(positions)
        R, d, rotated = c.heads // c.kv_heads, c.width, c.heads + c.kv_heads
        mask = None if general else self._plain_mask(start, T, R, tree)
        built: dict[tuple, Tensor] = {}

        x = self.embed(ids, vectors)  # [B, T, D]
        for i, w in enumerate(self.layers):
            x = x.to(w.device)
            qkv = linear(F.rms_norm(x, (c.hidden,), w.norm, c.epsilon), w.qkv, w.qkv_bias)
            qkv = qkv.view(B, T, rotated + c.kv_heads, d)
            qk = qkv[:, :, :rotated]
            if w.q_norm is not None:
                q = F.rms_norm(qk[:, :, : c.heads], (d,), w.q_norm, c.epsilon)
                qk = torch.cat((q, F.rms_norm(qk[:, :, c.heads :], (d,), w.k_norm, c.epsilon)), 2)
            qk, v = qk.to(self.device), qkv[:, :, rotated:].to(self.device)
            qk = qk * cos + qk.roll(d // 2, -1) * sin  # the sign of the rotated half is in `sin`
            if general:
                key = (cache.lengths[i], w.window, 0 if cache.uniform else i)
                if key not in built:
                    built[key] = self._general_mask(cache, i, positions, T, R, tree, w.window)
                mask = built[key]
            k, v = qk[:, :, c.heads :].transpose(1, 2), v.transpose(1, 2)
            # Query heads that share a key-value head become rows of it: [B, G, R*T, d].
            q = qk[:, :, : c.heads].view(B, T, c.kv_heads, R, d).permute(0, 2, 3, 1, 4).reshape(B, c.kv_heads, R * T, d)
            if attention is None:
                y = cache.attend(i, q, k, v, mask)
            else:
                K, V = cache.write(i, k, v)
                scores = q.float() @ K.float().transpose(-1, -2) / math.sqrt(d)
                weights = (scores if mask is None else scores + mask.float()).softmax(-1)
                attention.append(weights.view(B, c.heads, T, -1))
                y = (weights @ V.float()).to(x.dtype)
            y = y.view(B, c.kv_heads, R, T, d).permute(0, 3, 1, 2, 4).reshape(B, T, c.heads * d)
            x = x + linear(y.to(w.device), w.o)
            gate, up = linear(F.rms_norm(x, (c.hidden,), w.mlp_norm, c.epsilon), w.gate_up).chunk(2, -1)
            x = x + linear(F.silu(gate) * up, w.down)
            if hook is not None and (replaced := hook(i, x.to(self.device))) is not None:
                x = replaced
        x = x.to(self.device)
        if want == "none":
            return None
        x = F.rms_norm(x[:, -1:] if want == "last" else x, (c.hidden,), self.norm, c.epsilon)
        return x if want == "hidden" else self.logits(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of final hidden states [..., D] (those that ``want="hidden"`` returns)."""
        return linear(hidden, self.head)

    def prefill(self, ids: Tensor, cache: KVCache, *, pads: Tensor | None = None, want: str = "last", chunk: int = 512):
        """Run a prompt ([B, T]) in chunks of at most ``chunk`` tokens; returns what `forward` returns for ``want``."""
        cache.reserve(ids.shape[1])
        pieces = ids.split(chunk, 1)
        out = []
        for n, piece in enumerate(pieces):
            last = n == len(pieces) - 1
            here = None if pads is None else (pads - n * chunk).clamp(0)
            kind = want if want != "last" or last else "none"
            out.append(self.forward(piece, cache, pads=here, want=kind))
        return out[-1] if want in ("last", "none") else torch.cat(out, 1)

    def _steps(self, T: int) -> Tensor:
        return torch.arange(T, device=self.device)

    def _next_positions(self, cache: KVCache, B: int, T: int, pads: Tensor | None) -> Tensor:
        steps = self._steps(T)
        if len(cache) == 0:
            positions = steps.expand(B, T) if pads is None else steps - pads[:, None]
            return positions.clamp(min=-1)
        if cache.plain:
            return (steps + len(cache)).expand(B, T)
        last = cache.positions[0, :, : cache.lengths[0]].amax(-1, keepdim=True)  # [B, 1]
        positions = last + 1 + steps
        return positions if pads is None else (positions - pads[:, None]).where(steps >= pads[:, None], -1)

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine at ``positions``: [B, T, 1, d] each, from a table that grows as needed."""
        needed = int(positions.max()) + 1
        if self._rotations is None or self._rotations[0].shape[0] < needed:
            angles = torch.arange(max(needed, 1024) * 2)[:, None] * self._inverse.repeat(2)
            sign = torch.cat((-torch.ones(self.config.width // 2), torch.ones(self.config.width // 2)))
            table = angles.cos() * self._factor, angles.sin() * self._factor * sign
            self._rotations = tuple(t.to(device=self.device, dtype=self.dtype) for t in table)
        at = positions.clamp(min=0)
        return self._rotations[0][at][:, :, None], self._rotations[1][at][:, :, None]

    def _order(self, T: int, tree: Tensor | None) -> Tensor:
        """Which new token sees which ([T, T] bool)."""
        if tree is None:
            return torch.ones(T, T, dtype=torch.bool, device=self.device).tril()
        return tree.to(self.device)

    def _plain_mask(self, start: int, T: int, R: int, tree: Tensor | None) -> Tensor | None:
        """Additive mask [R*T, L + T] for one unpadded sequence: all cached is seen; a view of a kept buffer."""
        if T == 1 or (tree is None and not self.config.causal):
            return None
        key = (T, None if tree is None else id(tree))
        buffer, _ = self._masks.get(key, (None, None))
        if buffer is None or buffer.shape[1] < start + T:
            columns = start + T if T > 128 else max(2 * (start + T), 1024)
            seen = self._order(T, tree)
            block = torch.zeros(T, T, dtype=self.dtype, device=self.device).masked_fill(~seen, -torch.inf)
            buffer = F.pad(block.repeat(R, 1), (columns - T, 0))
            if len(self._masks) >= 32:
                self._masks.clear()
            if T <= 128:
                self._masks[key] = buffer, tree  # keeping the tree keeps its id unique
        return buffer[:, buffer.shape[1] - start - T :]

    def _general_mask(self, cache, layer, positions, T, R, tree, window) -> Tensor:
        """Additive mask [B, 1, R*T, L + T] from positions: padding, eviction, windows, trees."""
        L = cache.lengths[layer]
        past = cache.positions[layer, :, :L][:, None, :]  # [B, 1, L]
        query = positions[:, :, None]  # [B, T, 1]
        new = positions[:, None, :]  # [B, 1, T]
        old_seen = (past >= 0).expand(-1, T, -1)
        new_seen = (new >= 0).expand(-1, T, -1)
        if self.config.causal:
            old_seen = old_seen & (past <= query)
            new_seen = new_seen & self._order(T, tree)
        elif tree is not None:
            new_seen = new_seen & tree.to(self.device)
        if window is not None:
            old_seen = old_seen & (query - past < window)
            new_seen = new_seen & (query - new < window)
        # A padding row sees itself, so that its softmax is defined; nobody sees its key.
        new_seen = new_seen | torch.eye(T, dtype=torch.bool, device=self.device)
        seen = torch.cat((old_seen, new_seen), 2)
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=self.device).masked_fill(~seen, -torch.inf)
        return mask.repeat(1, R, 1)[:, None]
