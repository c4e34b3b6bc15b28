"""The split of photographs: squares lie where they should, and no picture is on both sides."""

import numpy as np
import pytest
from PIL import Image

from parsimony.assets.photographs import OVERLAP, SIDE, crops, cut, starts
from parsimony.plan import read_lock


@pytest.mark.parametrize("length", range(SIDE, 1100, 7))
def test_squares_fit_and_share_little(length):
    begins = np.array(starts(length))
    assert begins.min() >= 0 and begins.max() + SIDE <= length
    assert (np.diff(begins) >= SIDE - OVERLAP).all()
    assert length < len(begins) * (SIDE - OVERLAP) + SIDE  # one more would not have fitted


def test_no_picture_is_measured_on_and_trained_on(root):
    lock = read_lock(root)
    rows = [row for row in lock.values() if row.origin == "parsimony.assets.photographs:cut"]
    test = [name for row in rows for name in row.params["test"]]
    train = [name for row in rows for name in (*row.params["train"], *row.params["halved"])]
    assert len(set(test) | set(train)) == len(test) + len(train)
    for name in test + train:
        asset, file = name.split("/")
        assert file in lock[asset].files


def test_what_is_cut_is_read_back(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (520, 600, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture[:300, :257]).save(tmp_path / "b.png")
    cut(tmp_path, {"here": tmp_path}, ["here/b.png"], ["here/b.png"], ["here/a.png"])
    names, squares = crops(tmp_path, "test")
    assert names == ["b_0_0"] and (squares[0] == picture[22 : 22 + SIDE, :SIDE]).all()
    names, squares = crops(tmp_path, "train")
    assert names == ["b_0_0", "a_0_0"]
    mean = picture[4:516].reshape(256, 2, 300, 2, 3).astype(float).mean((1, 3))[:, 22 : 22 + SIDE]
    assert np.abs(squares[1] - mean).max() <= 0.75
