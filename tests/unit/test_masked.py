"""Masked diffusion models: published checkpoint formats, passes with stale caches, and what the sampler keeps."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from parsimony.interfaces import Inputs
from parsimony.methods.diffusion.adablock import AdaBlock
from parsimony.methods.diffusion.caches import PASSES, Exact
from parsimony.methods.diffusion.dilated_unmasking import Levels
from parsimony.methods.diffusion.entropy_bounded import Budget
from parsimony.methods.diffusion.factor_unmasking import WithinFactor
from parsimony.methods.diffusion.freedave import FreeDave
from parsimony.methods.diffusion.klass import Still
from parsimony.methods.diffusion.learn2pd import BLOCK, Learn2PD
from parsimony.methods.diffusion.localleap import Leap
from parsimony.methods.diffusion.remasking import HighestSoFar, ReMdm, RunningConfidence
from parsimony.methods.diffusion.sampler import BlockSampler, View
from parsimony.methods.diffusion.slowfast import Spans
from parsimony.methods.diffusion.static_unmasking import SCORES, Static, TopK
from parsimony.methods.diffusion.threshold_unmasking import AtLeast
from parsimony.methods.diffusion.watched import observe
from parsimony.methods.diffusion.wino import Shadowed, WideInNarrowOut, Wino
from parsimony.models.masked import Masked

RNG = np.random.default_rng(0)
D, H, G, M, V, LAYERS = 32, 4, 2, 48, 40, 2
LLADA = {
    "model_type": "llada", "n_layers": LAYERS, "d_model": D, "mlp_hidden_size": M, "n_heads": H, "n_kv_heads": H,
    "vocab_size": V - 4, "embedding_size": V, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "weight_tying": False,
}  # fmt: skip
DREAM = {
    "model_type": "Dream", "num_hidden_layers": LAYERS, "hidden_size": D, "intermediate_size": M,
    "num_attention_heads": H, "num_key_value_heads": G, "vocab_size": V, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "tie_word_embeddings": False,
}  # fmt: skip


def checkpoint(kind: str, tmp_path) -> tuple[dict, dict]:
    """A random checkpoint in the published format: its configuration and weights by their published names."""
    config, kv = (LLADA, H) if kind == "llada" else (DREAM, G)
    g, width = torch.Generator().manual_seed(0), D // H

    def random(*shape):
        return torch.randn(*shape, generator=g) / 4

    w = {}
    if kind == "llada":
        w["model.transformer.wte.weight"] = random(V, D)
        w["model.transformer.ln_f.weight"] = 1 + random(D)
        w["model.transformer.ff_out.weight"] = random(V, D)
        for i in range(LAYERS):
            p = f"model.transformer.blocks.{i}."
            shapes = {"q_proj": (D, D), "k_proj": (D, D), "v_proj": (D, D), "attn_out": (D, D)}
            shapes |= {"ff_proj": (M, D), "up_proj": (M, D), "ff_out": (D, M)}
            w |= {f"{p}{name}.weight": random(*shape) for name, shape in shapes.items()}
            w |= {f"{p}{name}.weight": 1 + random(D) for name in ("attn_norm", "ff_norm")}
    else:
        w["model.embed_tokens.weight"], w["model.norm.weight"] = random(V, D), 1 + random(D)
        w["lm_head.weight"] = random(V, D)
        for i in range(LAYERS):
            p = f"model.layers.{i}."
            for name, rows in (("q", H), ("k", kv), ("v", kv)):
                w[f"{p}self_attn.{name}_proj.weight"] = random(rows * width, D)
                w[f"{p}self_attn.{name}_proj.bias"] = random(rows * width)
            w[f"{p}self_attn.o_proj.weight"] = random(D, D)
            shapes = {"gate_proj": (M, D), "up_proj": (M, D), "down_proj": (D, M)}
            w |= {f"{p}mlp.{name}.weight": random(*shape) for name, shape in shapes.items()}
            w |= {f"{p}{n}.weight": 1 + random(D) for n in ("input_layernorm", "post_attention_layernorm")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(w, tmp_path / "model.safetensors")
    return config, w


def reference(kind: str, config: dict, w: dict, ids: torch.Tensor) -> torch.Tensor:
    """Logits [T, V], position by position and head by head, from the published names."""
    llada = kind == "llada"
    top = "model.transformer." if llada else "model."
    names = dict(zip(["q", "k", "v", "o", "gate", "up", "down", "n1", "n2"], (
        "q_proj k_proj v_proj attn_out ff_proj up_proj ff_out attn_norm ff_norm" if llada else
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj "
        "input_layernorm post_attention_layernorm").split(), strict=True))  # fmt: skip
    width, eps = D // H, config["rms_norm_eps"]
    kv = H if llada else G

    def norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w[name]

    def rotated(x, at):
        half = width // 2
        angle = at * config["rope_theta"] ** (-torch.arange(half) * 2.0 / width)
        a, b = x[:half], x[half:]
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()))

    x = w[top + ("wte.weight" if llada else "embed_tokens.weight")][ids]
    T = len(ids)
    for i in range(LAYERS):
        p = f"{top}blocks.{i}." if llada else f"{top}layers.{i}."

        def linear(name, x, p=p):
            y = x @ w[f"{p}{names[name]}.weight"].T
            bias = w.get(f"{p}{names[name]}.bias")
            return y if bias is None else y + bias

        h = norm(x, f"{p}{names['n1']}.weight")
        q, k, v = linear("q", h), linear("k", h), linear("v", h)
        heads = []
        for head in range(H):
            mine, shared = slice(head * width, (head + 1) * width), head // (H // kv)
            theirs = slice(shared * width, (shared + 1) * width)
            Q = torch.stack([rotated(q[t, mine], t) for t in range(T)])
            K = torch.stack([rotated(k[t, theirs], t) for t in range(T)])
            heads.append((Q @ K.T / width**0.5).softmax(-1) @ v[:, theirs])  # no causal mask
        x = x + linear("o", torch.cat(heads, -1))
        h = norm(x, f"{p}{names['n2']}.weight")
        x = x + linear("down", F.silu(linear("gate", h)) * linear("up", h))
    x = norm(x, top + ("ln_f.weight" if llada else "norm.weight"))
    return x @ w["model.transformer.ff_out.weight" if llada else "lm_head.weight"].T


@pytest.mark.parametrize("kind", ["llada", "dream"])
def test_published_formats_give_the_logits_of_a_reference_forward(kind, tmp_path):
    config, w = checkpoint(kind, tmp_path)
    model = Masked.load(tmp_path, "m", ["e"], "float32", shifted=kind == "dream")
    ids = torch.arange(3, 15)
    expected = reference(kind, config, w, ids)
    found = model.decoder.forward(ids[None], model.decoder.cache(16))[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    shifted = PASSES["none"](model).refresh(ids, 4)
    at = torch.arange(4, 12) - int(kind == "dream")  # Dream: the output at i - 1 predicts token i
    torch.testing.assert_close(shifted, expected[at], atol=1e-4, rtol=0)


def prompt(n: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(n).integers(2, 300, n))


@pytest.mark.parametrize("caching", ["prefix", "dual"])
def test_stale_passes_are_exact_as_long_as_nothing_changed(tiny_masked, caching):
    x = torch.cat((prompt(9), torch.full((12,), tiny_masked.mask_id)))
    exact, stale = PASSES["none"](tiny_masked), PASSES[caching](tiny_masked)
    whole = stale.refresh(x, 9)
    torch.testing.assert_close(whole, exact.refresh(x, 9))
    stale.enter(13, 17)
    for _ in range(2):
        torch.testing.assert_close(stale.step(x, 13, 17), whole[4:8], atol=1e-5, rtol=1e-5)
    changed = x.clone()
    changed[14] = 77  # inside the block: seen by the block, not by what is cached
    found = stale.step(changed, 13, 17)
    assert not torch.allclose(found, whole[4:8], atol=1e-4)
    assert (stale.full, stale.partial) == (1, 3) and stale.rows == 21 + 3 * (4 if caching == "dual" else 8)
    assert stale.nbytes() > exact.nbytes() == 0


@pytest.mark.parametrize("caching", PASSES)
@pytest.mark.parametrize("block", [None, 8, 5])
def test_everything_is_unmasked_block_by_block(tiny_masked, block, caching):
    class Watched(TopK):
        def commit(self, view):
            chosen = super().commit(view)
            sizes.append(len(view.tokens))
            assert not (chosen & ~view.masked).any()
            return chosen

    sizes: list[int] = []
    sampler = BlockSampler(tiny_masked, Watched("low_confidence", 2), block, caching)
    done = sampler.generate(prompt(7), 16, RNG)
    assert sum(done.cost.accepted_per_pass) == 16 and done.cost.passes == len(sizes)
    assert max(sizes) == (block or 16) and tiny_masked.mask_id not in done.tokens.tolist()
    assert all(token not in tiny_masked.stop_ids for token in done.tokens.tolist()[:-1])


def view(p: list[float], masked: list[bool]) -> View:
    """Positions with these confidences, of two tokens."""
    p = torch.tensor(p, dtype=torch.float64)
    logits = torch.stack((p, 1 - p), 1).log()
    return View(logits, torch.zeros(len(p), dtype=torch.int64), torch.tensor(masked), 0, np.random.default_rng(0))


def test_strategies_follow_their_rules():
    here = view([0.92, 0.95, 0.7, 0.99, 0.6], [True, True, True, False, True])
    assert AtLeast(0.9).commit(here).tolist() == [True, True, False, False, False]
    assert AtLeast(0.99).commit(here).tolist() == [False, True, False, False, False]
    # 1 - f / (i + 1) for f = 1: 0.5, 0.667, 0.75: 0.95 and 0.92 are in, 0.7 is not.
    assert WithinFactor(1.0).commit(here).tolist() == [True, True, False, False, False]
    assert WithinFactor(1.3).commit(here).tolist() == [True, True, True, False, False]
    assert WithinFactor(0.0).commit(here).tolist() == [False, True, False, False, False]
    tied = view([0.8, 0.8, 0.8], [True] * 3)
    for order in set(SCORES) - {"random"}:
        strategy = TopK(order, 2)
        strategy.begin(3)
        assert strategy.schedule == [2, 1]
        assert strategy.commit(tied).tolist() == [True, True, False], order


@pytest.mark.parametrize("caching", PASSES)
@pytest.mark.parametrize("block", [None, 6])
@pytest.mark.parametrize("drafts", [1, 2, 4, 8])
def test_freedave_is_the_static_decoder_with_the_same_cache_in_no_more_passes(tiny_masked, drafts, block, caching):
    static = Static(block=block, caching=caching).build(tiny_masked, Inputs())
    fast = FreeDave(drafts, block, caching).build(tiny_masked, Inputs())
    for n in (1, 5, 12):
        expected, found = static.generate(prompt(n), 16, RNG), fast.generate(prompt(n), 16, RNG)
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert expected.cost.passes / drafts <= found.cost.passes <= expected.cost.passes + (drafts == 1)
        assert sum(found.cost.accepted_per_pass) == 16 == sum(expected.cost.accepted_per_pass)
        assert found.cost.passes == len(found.cost.accepted_per_pass)


@pytest.mark.parametrize("caching", ["prefix", "dual"])
def test_branches_of_a_tree_give_what_rows_of_a_batch_do(tiny_masked, caching):
    one, other = (FreeDave(4, 6, caching, layout).build(tiny_masked, Inputs()) for layout in ("batch", "tree"))
    for n in (1, 9):
        found, expected = other.generate(prompt(n), 16, RNG), one.generate(prompt(n), 16, RNG)
        assert found.tokens.tolist() == expected.tokens.tolist() and found.cost.rows == expected.cost.rows
        assert found.cost.accepted_per_pass == expected.cost.accepted_per_pass


def test_freedave_plus_steps_like_threshold_decoding(tiny_masked):
    for n in (1, 5, 12):
        threshold = BlockSampler(tiny_masked, AtLeast(0.02), 8).generate(prompt(n), 16, RNG)
        alone = FreeDave(1, 8, tau=0.02).build(tiny_masked, Inputs()).generate(prompt(n), 16, RNG)
        assert alone.tokens.tolist() == threshold.tokens.tolist()  # one draft: that of the threshold
        more = FreeDave(4, 8, tau=0.02).build(tiny_masked, Inputs()).generate(prompt(n), 16, RNG)
        assert sum(more.cost.accepted_per_pass) == 16 and more.cost.passes <= threshold.cost.passes + 2
        strict, plain = (FreeDave(4, 8, tau=tau).build(tiny_masked, Inputs()) for tau in (1.1, None))
        strict, plain = strict.generate(prompt(n), 16, RNG), plain.generate(prompt(n), 16, RNG)
        assert strict.tokens.tolist() == plain.tokens.tolist() and strict.cost.passes == plain.cost.passes


def test_klass_waits_until_predictions_stand_still():
    rule = Still(0.9, 0.01, 2)
    rule.begin(3)
    moving, calm = view([0.95, 0.92, 0.5], [True] * 3), view([0.95, 0.99, 0.5], [True] * 3)
    assert rule.commit(moving).tolist() == [True, False, False]  # none has a past: the most confident one
    assert rule.commit(calm).tolist() == [False, True, False]
    assert rule.commit(calm).tolist() == [True, False, False]  # the first has not moved in two passes
    assert rule.commit(calm).tolist() == [True, True, False]


def test_the_entropy_budget_counts_all_but_the_largest():
    here = view([0.99, 0.98, 0.9, 0.5], [True, True, True, True])
    H = sorted(-p * np.log(p) - (1 - p) * np.log(1 - p) for p in (0.99, 0.98, 0.9, 0.5))
    assert Budget(0.0).commit(here).tolist() == [True, False, False, False]
    assert Budget(H[0] + 1e-6).commit(here).tolist() == [True, True, False, False]
    assert Budget(H[0] + H[1] + 1e-6).commit(here).tolist() == [True, True, True, False]
    assert Budget(9.0).commit(here).all()


def test_running_confidence_takes_a_place_back_when_a_surer_token_comes():
    rule = HighestSoFar(1)
    rule.begin(3)
    first = rule.commit(view([0.6, 0.5, 0.4], [True] * 3))
    assert first.tolist() == [True, False, False]
    later = View(view([0.6, 0.9, 0.8], [False, True, True]).logits, torch.zeros(3).long(),
                 torch.tensor([False, True, True]), 1, RNG)  # fmt: skip
    assert rule.commit(later).tolist() == [False, True, True]
    assert rule.take_back(later, first).tolist() == [True, False, False]


@pytest.mark.parametrize("per_step", [1, 2, 4])
def test_what_is_taken_back_is_decided_again(tiny_masked, per_step):
    plain = Static(per_step=per_step).build(tiny_masked, Inputs()).generate(prompt(5), 16, RNG)
    for method, passes in ((RunningConfidence(per_step), 0), (ReMdm(per_step, 3), 3)):
        found = method.build(tiny_masked, Inputs()).generate(prompt(5), 16, RNG)
        assert tiny_masked.mask_id not in found.tokens.tolist() and sum(found.cost.accepted_per_pass) == 16
        assert found.cost.passes == plain.cost.passes + passes
    never = ReMdm(per_step, 0).build(tiny_masked, Inputs()).generate(prompt(5), 16, RNG)
    assert never.tokens.tolist() == plain.tokens.tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 8, 16, 31, 32])
def test_dilated_levels_cover_a_block_in_log2_passes_and_begin_far_apart(size):
    rule = Levels(0.0)
    rule.begin(size)
    assert sorted(rule.level.unique().tolist()) == list(range(int(rule.level.max()) + 1))
    assert int(rule.level.max()) + 1 <= max(1, np.ceil(np.log2(size)))
    first = (rule.level == 0).nonzero()[:, 0]
    assert (first.diff() == max(1, size // 2)).all()
    left, passes = torch.ones(size, dtype=torch.bool), 0
    while left.any():
        chosen = rule.commit(View(torch.zeros(size, 2).double(), torch.zeros(size).long(), left, passes, RNG))
        assert chosen.any() and not (chosen & ~left).any()
        left, passes = left & ~chosen, passes + 1
    assert passes == int(rule.level.max()) + 1


def test_dilated_positions_in_doubt_wait_but_not_for_ever():
    rule = Levels(0.8)
    rule.begin(4)  # 0 and 2, then 1 and 3
    here = view([0.9, 0.7, 0.6, 0.7], [True] * 4)
    assert rule.commit(here).tolist() == [True, False, False, False]
    last = View(here.logits, here.tokens, torch.tensor([False, True, True, True]), 1, RNG)
    assert rule.commit(last).tolist() == [False, True, True, True]


def test_spans_are_fixed_where_estimates_agree_and_filled_before_the_next():
    rule = Spans(explore=3, tau_span=0.6, tau_fast=0.95)
    rule.begin(8)
    p = [0.8, 0.9, 0.7, 0.75, 0.5, 0.51, 0.5, 0.5]
    masked = [True] * 8
    for expected in (1, 0, 3):  # explores: the most confident one each time, though the span stands still at once
        chosen = rule.commit(view([0.5 if m is False else c for c, m in zip(p, masked, strict=True)], masked))
        assert chosen.nonzero().flatten().tolist() == [expected]
        masked[expected] = False
    assert (rule.first, rule.last, rule.fixed) == (0, 4, True)
    later = [0.5, 0.5, 0.7, 0.5, 0.99, 0.98, 0.5, 0.5]
    assert rule.commit(view(later, masked)).nonzero().flatten().tolist() == [2]  # fills the span and no more
    masked[2] = False
    assert rule.commit(view(later, masked)).nonzero().flatten().tolist() == [4, 5]
    assert rule.first == 4 and not rule.fixed


def test_a_shadow_sees_all_but_its_own_token_and_nobody_sees_shadows(tiny_masked, monkeypatch):
    mask, forward, first = tiny_masked.mask_id, tiny_masked.decoder.forward, []
    x = torch.cat((prompt(6), torch.tensor([mask, 20, 30, mask])))
    plain, shadowed = Exact(tiny_masked).refresh(x, 6), Shadowed(tiny_masked)
    keep = lambda layer, stream: first.append(stream[0].clone()) if layer == 0 else None  # noqa: E731
    monkeypatch.setattr(tiny_masked.decoder, "forward", lambda *a, **named: forward(*a, **named, hook=keep))
    found = shadowed.step(x, 6, 10)
    torch.testing.assert_close(found[[0, 3]], plain[[0, 3]])  # masked positions: as if there were no shadows
    assert not torch.allclose(found[[1, 2]], plain[[1, 2]])
    x[7] = 55
    shadowed.step(x, 6, 10)
    before, after = (stream[10:] for stream in first)  # of the four shadows behind the first layer
    torch.testing.assert_close(after[1], before[1])
    assert all(not torch.allclose(after[n], before[n]) for n in (0, 2, 3))
    assert shadowed.rows == 2 * (10 + 4)


def test_wino_takes_back_the_least_believed_but_fewer_than_were_accepted():
    rule = WideInNarrowOut(0.6, 0.9)
    rule.begin(6)
    chosen = rule.commit(view([0.7, 0.8, 0.65, 0.5, 0.4, 0.3], [True] * 6))
    assert chosen.tolist() == [True, True, True, False, False, False]
    assert not rule.take_back(view([0.7] * 6, [True] * 6), chosen).any() and rule.accepted == 3
    here = view([0.5, 0.95, 0.7, 0.9, 0.8, 0.3], [False, False, False, True, True, True])
    chosen = rule.commit(here)
    assert chosen.tolist() == [False, False, False, True, True, False]
    assert rule.take_back(here, chosen).tolist() == [True, False, True, False, False, False]
    alone = view([0.5] * 6, [False] * 5 + [True])
    assert not rule.take_back(alone, rule.commit(alone)).any()  # one token alone takes nothing back


def test_wino_comes_to_an_end(tiny_masked):
    for n in (2, 9):
        found = Wino(0.0, 1.1, block=16).build(tiny_masked, Inputs()).generate(prompt(n), 32, RNG)
        assert sum(found.cost.accepted_per_pass) == 32 and tiny_masked.mask_id not in found.tokens.tolist()


def test_the_oracle_gives_the_static_answer_in_no_more_passes(tiny_masked):
    static = BlockSampler(tiny_masked, TopK("low_confidence", 1), BLOCK)
    oracle = Learn2PD(gate="oracle").build(tiny_masked, Inputs())
    for n in (3, 8):
        one, other = static.generate(prompt(n), 40, RNG), oracle.generate(prompt(n), 40, RNG)
        assert one.tokens.tolist() == other.tokens.tolist() and other.cost.passes <= one.cost.passes
        assert sum(other.cost.accepted_per_pass) == 40


def test_what_is_observed_of_a_decoder_adds_up(tiny_masked):
    system = BlockSampler(tiny_masked, AtLeast(0.02), 8)  # a random model is never sure of more
    answer = system.generate(prompt(5), 24, RNG)
    truth = torch.full((24,), 7)
    truth[: len(answer.tokens)] = answer.tokens
    found = observe(system, prompt(5), truth, RNG)
    assert found["written"] == 24 and found["early_passes"] <= answer.cost.passes
    assert found["late_passes"] == 0 and found["near_1"] == 0  # nothing is certain
    wrong = observe(system, prompt(5), truth.where(truth == tiny_masked.mask_id, torch.tensor(-5)), RNG)
    assert wrong["early_passes"] == answer.cost.passes and wrong["excess"] > found["excess"]


def test_local_leap_relaxes_near_anchors_only():
    here = view([0.8, 0.6, 0.95, 0.8, 0.7, 0.8, 0.8], [True] * 7)
    assert Leap(0.9, 0.75, 2).commit(here).tolist() == [True, False, True, True, False, False, False]
    strict = AtLeast(0.9).commit(here)
    for rule in (Leap(0.9, 0.75, 0), Leap(0.9, 0.9, 4)):
        assert torch.equal(rule.commit(here), strict)
    wider = [Leap(0.9, 0.75, w).commit(here) for w in range(6)]
    assert all((small <= large).all() for small, large in zip(wider, wider[1:], strict=False))
    assert Leap(0.99, 0.5, 4).commit(here).tolist() == [False, False, True, False, False, False, False]  # no anchor
    decided = view([0.95, 0.8], [False, True])
    assert Leap(0.9, 0.5, 4).commit(decided).tolist() == [False, True]  # the best one; what is decided is no anchor


@pytest.mark.parametrize("window", ["code", "paper"])
def test_blocks_end_with_the_most_confident_delimiter_of_the_window(window):
    rule, rng = AdaBlock(block=4, tau_d=0.3, window=window), np.random.default_rng(0)
    p = torch.full((16, 3), 1e-9, dtype=torch.float64)
    p[:, 0] = 1.0
    for place, confidence in ((1, 0.4), (3, 0.6), (9, 0.9)):  # token 1 is the delimiter
        p[place, 1] = confidence / (1 - confidence)
    rest = View.of(p.log(), torch.full((16,), 2), 2, 0, 0.0, rng)
    tokens = rest.tokens.tolist()
    assert [n for n, token in enumerate(tokens) if token == 1] == [3, 9]
    # The window of the code is a quarter of 16 or 48 tokens, the paper's a quarter of what is done.
    assert rule.size({1}, rest, 0, 16) == 4 and rule.size({1}, rest, 32, 48) == (10 if window == "code" else 4)
    assert AdaBlock(block=5, tau_d=0.95, window=window).size({1}, rest, 32, 48) == 5
    assert rule.size(set(), rest, 32, 48) == 4 and rule.size(set(), rest, 46, 48) == 2


def test_adaptive_blocks_cover_the_answer_and_never_firing_ones_are_fixed(tiny_masked):
    fixed = BlockSampler(tiny_masked, AtLeast(0.9), 4)
    never = AdaBlock(block=4, tau_d=2.0, delimiters=["a"]).build(tiny_masked, Inputs())
    always = AdaBlock(block=4, tau_d=0.0, delimiters=[chr(n) for n in range(33, 127)]).build(tiny_masked, Inputs())
    for n in (3, 8):
        one, other = fixed.generate(prompt(n), 18, RNG), never.generate(prompt(n), 18, RNG)
        assert one.tokens.tolist() == other.tokens.tolist() and one.cost.passes == other.cost.passes
        assert sum(always.generate(prompt(n), 18, RNG).cost.accepted_per_pass) == 18
