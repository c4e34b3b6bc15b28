"""Kernels against their references on irregular shapes (interpreted where there is no GPU), and their compilation."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch

from parsimony.cli import main
from parsimony.errors import UserError
from parsimony.kernels import (
    bench,
    build,
    cluster_assignment,
    confidence_entropy,
    log_matmul,
    low_bit_attention,
    page_scores,
    table,
    tree_attention,
)
from parsimony.kernels.common import NAMES, normal, tiles
from parsimony.kernels.low_bit_codes import Coded, Sparse
from parsimony.methods.kv_cache.quantise import Codes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEEDS = {"low_bit_attention": (0, 3, 4, 6, 7, 9, 11), "tree_attention": (0, 1, 3, 4, 6)}
"""Seeds that reach every branch; a GPU checks `bench.SEEDS` of them."""


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name in NAMES for seed in SEEDS.get(name, range(6))])
def test_parity_on_irregular_shapes(name, seed):
    case = importlib.import_module(f"parsimony.kernels.{name}").check(seed, DEVICE)
    assert case.error() <= case.tolerance, case.name
    assert case.bytes > 0 and case.operations > 0


def test_a_wrong_kernel_is_named(monkeypatch):
    right = confidence_entropy.kernel
    monkeypatch.setattr(confidence_entropy, "kernel", lambda x: right(x)._replace(entropy=right(x).entropy + 1e-3))
    with pytest.raises(UserError, match=r"confidence_entropy is wrong on .*seed 0 .* differs by"):
        bench.checked(confidence_entropy, DEVICE, 1)


def test_errors_see_shapes_and_numbers_that_are_none():
    case = log_matmul.case(3, 1, 4, 5, 1.0, DEVICE)
    case.ours = lambda: (case.reference()[0] * torch.nan,)
    assert case.error() == float("inf")
    case.ours = lambda: (case.reference()[0][:2],)
    with pytest.raises(ValueError, match="shapes differ"):
        case.error()


def test_the_first_of_equal_logits_wins_across_parts():
    x = torch.full((2, 9000), -1.0, device=DEVICE)
    x[0, [17, 4100, 8999]] = 5.0
    x[1, :3] = -torch.inf
    with tiles(confidence_entropy, block=1024):
        found = confidence_entropy.kernel(x)
    assert found.token.tolist() == [17, 3]
    assert torch.equal(found.first[0], found.second[0])
    assert float(found.entropy[1]) == pytest.approx(torch.tensor(8997.0).log().item(), abs=1e-5)


def test_a_certain_row_has_no_entropy():
    """H = log l - t / l does not cancel, where lse - sum p x would leave 1e-4 of logits in the thousands."""
    x = torch.tensor([[3000.0, 2900.0, -5000.0]], device=DEVICE)
    assert 0 <= float(confidence_entropy.kernel(x).entropy) < 1e-12


def test_the_exact_path_is_taken_where_scaling_loses():
    case = log_matmul.case(20, 2, 9, 30, 200.0, DEVICE, 5, hard=True)
    lost = case.rivals["torch with the maximum taken out"]()
    right = case.reference()[0]
    assert bool((lost.isinf() & right.isfinite()).any())
    assert case.error() <= case.tolerance
    assert bool(right[0, 0].isinf().all())


@pytest.mark.parametrize("budget", [0, 1, 37, 10**12])
def test_the_budget_is_spent_to_the_last_entry(budget):
    w = torch.rand(3, 70, generator=torch.Generator().manual_seed(0)).round(decimals=1).to(DEVICE)  # with equal ones
    sizes = torch.randint(0, 9, (3, 70), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    found = page_scores.taken_kernel(w, sizes, budget)
    assert found.sum(1).tolist() == [min(budget, int(row.sum())) for row in sizes]
    assert torch.equal(found, page_scores.taken_reference(w, sizes, budget))


@pytest.mark.parametrize(("bits", "axis", "group"), [(2, 1, 32), (4, 2, 16), (8, 1, 64)])
def test_codes_are_those_of_the_methods(bits, axis, group):
    codes = Codes.of(normal(0, 2, 64, 48, device="cpu"), bits, axis, group)
    assert torch.equal(Coded.of(codes).restore(), codes.restore())


def test_single_entries_land_where_they_should():
    H, n, d, draw = 2, 600, 24, torch.Generator().manual_seed(0)
    place = torch.randperm(H * n * d, generator=draw)[:500]
    delta = torch.randn(500, generator=draw).half()
    sparse = Sparse.of(place // (n * d), place // d % n, place % d, delta, H, n)
    dense = torch.zeros(H * n * d).index_put((place,), delta.float()).view(H, n, d)
    assert torch.equal(sparse.add_to(torch.zeros(H, n, d)), dense)


def test_codes_that_do_not_fit_go_to_the_reference(monkeypatch):
    monkeypatch.setattr(low_bit_attention, "usable", lambda x: True)
    monkeypatch.setattr(low_bit_attention, "kernel", None)
    coded = Coded.of(Codes.of(normal(0, 1, 40, 16, device="cpu"), 4, 1, 20))  # groups of 20 tokens are no tiles
    assert not coded.fits()
    y, lse = low_bit_attention.attend(normal(1, 1, 2, 16, device="cpu"), coded, coded, 40)
    assert y.shape == (1, 2, 16) and lse.shape == (1, 2)


def test_without_a_gpu_it_is_torch_to_the_last_bit():
    x, centres = normal(0, 2, 50, 8, device="cpu"), normal(1, 2, 5, 8, device="cpu")
    assert torch.equal(cluster_assignment.assign(x, centres), (x @ centres.mT).argmax(-1))
    q, K, V = (normal(seed, 1, 2, n, 8, device="cpu") for seed, n in ((2, 3), (3, 12), (4, 12)))
    mask = torch.zeros(3, 3).masked_fill(~torch.eye(3, dtype=torch.bool), -torch.inf)
    whole = torch.nn.functional.pad(mask, (9, 0))
    expected = torch.nn.functional.scaled_dot_product_attention(q, K, V, attn_mask=whole)
    assert torch.equal(tree_attention.attend(q, K, V, mask), expected)


def test_grids_and_tiles_may_change_without_changing_what_is_computed():
    case = tree_attention.case(1, 2, 2, 9, 150, 32, torch.float32, DEVICE)
    with tiles(tree_attention, entries=32, waves=2):
        assert case.error() <= case.tolerance
    assert tree_attention.TILES["waves"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_launches_are_recorded_without_a_device(name):
    found = importlib.import_module(f"parsimony.kernels.{name}").launches()
    assert found and all(launch.warps in (1, 2, 4, 8, 16) for launch in found)


def test_cubins_for_both_targets_with_a_manifest(tmp_path):
    """One kernel; `snakemake kernels` builds all."""
    command = [sys.executable, "-m", "parsimony.kernels.build", "--kernel", "page_scores", "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "0"})
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "manifest.json").read_text())["kernels"]
    assert {row["target"] for row in rows} == {"sm_80", "sm_90"}
    assert {row["kernel"].rpartition(".")[2] for row in rows} == {"bound_kernel", "mean_kernel", "taken_part"}
    for row in rows:
        cubin = (tmp_path / row["file"]).read_bytes()
        assert cubin[:4] == b"\x7fELF" and len(cubin) == row["bytes"]
        assert 0 < row["registers"] <= 255 and row["spill_stores"] == row["spill_loads"] == 0
        assert row["shared_bytes"] <= build.SHARED[int(row["target"][3:])]
    assert "| page_scores.bound_kernel | sm_90 |" in run.stdout


@pytest.mark.skipif(DEVICE == "cuda", reason="kernels are compiled here")
def test_what_is_interpreted_cannot_be_built(tmp_path):
    with pytest.raises(UserError, match="TRITON_INTERPRET"):
        build.build(tmp_path)


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU")
def test_gpu_check_without_a_gpu_says_so(capsys):
    assert main(["gpu-check"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
    assert main(["gpu-check", "--kernel", "unknown"]) == 2
    assert "there is no kernel 'unknown'" in capsys.readouterr().err
    assert main(["gpu-check", "--rehearse", "--kernel", "confidence_entropy"]) == 0
    assert "nothing timed" in capsys.readouterr().out


def test_the_page_of_a_result():
    row = {
        "case": "3 rows", "seconds": 2e-5, "tenth": 1.9e-5, "nine_tenths": 2.5e-5, "bound": 1e-5, "bytes": 1,
        "operations": 1, "error": 0.0, "others": {"reference": 6e-5},
        "tuned": {"tiles": {"block": 64}, "seconds": 1.5e-5},
    }  # fmt: skip
    entry = {"shapes": 24, "worst_share_of_tolerance": 0.25, "cases": [row, row | {"others": {"another": 1e-5}}]}
    result = {
        "device": "A GPU", "processors": 132, "torch": "2", "cuda": "13", "triton": "3",
        "rates": {"copy": 3e12, "float16": 7e14}, "kernels": {"tree_attention": entry},
    }  # fmt: skip
    page = table.as_markdown(result)
    assert "| 3 rows | 20.0 [19.0, 25.0] | 10.0 | 50% | 60.0 (3.00x) | - |" in page
    assert "| 3 rows | 20.0 [19.0, 25.0] | 10.0 | 50% | - | 10.0 (0.50x) |" in page
    assert "3.00 TB/s" in page and "700 TFLOP/s in float16" in page
    assert "Best tiles for 3 rows: block 64: 15.0." in page
