"""Assets: verified, atomic, resumable, and clear about what is wrong."""

import hashlib
import zipfile

import pytest

from parsimony.assets import Unavailable, fetch, load_path, sources
from parsimony.config import Asset
from parsimony.errors import UserError

TEXT = b"hello\n" * 100


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder that pip takes wheels from, with one wheel; returns its lock row and the resources folder."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "parcel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("parcel/data.txt", TEXT)
        file.writestr("parcel/other.txt", b"x")
        file.writestr("parcel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: parcel\nVersion: 1.0\n")
        file.writestr("parcel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("parcel-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheel, tmp_path / "resources"


def row(wheel, **changes):
    base = {
        "source": "package",
        "origin": "parcel",
        "revision": "1.0",
        "licence": "MIT",
        "archive": {"sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()},
        "files": {"data.txt": {"member": "parcel/data.txt", "sha256": hashlib.sha256(TEXT).hexdigest()}},
    }
    return {"parcel": Asset.model_validate(base | changes)}


def test_only_the_listed_files_arrive_and_the_second_fetch_needs_no_network(shop, monkeypatch):
    wheel, resources = shop
    folder = fetch("parcel", row(wheel), resources)
    assert sorted(f.name for f in folder.iterdir()) == ["data.txt", "manifest.json"]
    before = (folder / "manifest.json").read_bytes()
    wheel.unlink()
    assert fetch("parcel", row_like(before, folder), resources) == folder
    assert (folder / "manifest.json").read_bytes() == before


def row_like(manifest, folder):
    import json

    return {"parcel": Asset.model_validate(json.loads(manifest)["row"] | {"licence": "MIT"})}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"archive": {"sha256": "0" * 64}}, "archive parcel 1.0 has SHA-256"),
        ({"files": {"data.txt": {"member": "parcel/data.txt", "sha256": "0" * 64}}}, "file data.txt has SHA-256"),
        ({"files": {"data.txt": {"member": "parcel/data.txt", "size": 3}}}, "has 600 bytes, the lock says 3"),
        ({"files": {"data.txt": {"member": "parcel/gone.txt"}}}, "has no file 'parcel/gone.txt'"),
        ({"files": {"../out.txt": {"member": "parcel/data.txt"}}}, "leaves the asset's folder"),
        ({"revision": "9.9"}, "download failed"),
    ],
)
def test_what_differs_stops_with_one_sentence_and_leaves_nothing(shop, changes, words):
    wheel, resources = shop
    with pytest.raises(UserError) as error:
        fetch("parcel", row(wheel, **changes), resources)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (resources / "parcel").exists() and not list(resources.glob(".*.partial"))
    assert not (resources.parent / "out.txt").exists()


def test_one_changed_byte_is_found_and_mended(shop):
    wheel, resources = shop
    lock = row(wheel)
    folder = fetch("parcel", lock, resources)
    data = bytearray((folder / "data.txt").read_bytes())
    data[5] ^= 1
    (folder / "data.txt").write_bytes(data)
    with pytest.raises(UserError, match=f"data.txt has SHA-256 .*`rm -r {folder}`"):
        load_path("parcel", lock, resources)
    import shutil

    shutil.rmtree(folder)
    wheel.unlink()  # the archive is still in the download cache
    assert (fetch("parcel", lock, resources) / "data.txt").read_bytes() == TEXT


def test_a_debian_file_that_is_not_served_is_a_reason_not_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.shutil, "which", lambda tool: None)
    changes = {"source": "debian", "origin": "handbook", "revision": "1", "licence": "x", "files": {"a.html": {}}}
    lock = {"handbook": Asset.model_validate(changes)}
    fetch("handbook", lock, tmp_path)
    with pytest.raises(Unavailable, match="needs apt-get, which is not here"):
        load_path("handbook", lock, tmp_path)


def test_an_origin_outside_the_package_is_refused(tmp_path):
    changes = {"source": "generated", "origin": "os:system", "revision": "1", "licence": "x", "files": {"a": {}}}
    with pytest.raises(UserError, match="must be 'parsimony.<module>:<function>'"):
        fetch("m", {"m": Asset.model_validate(changes)}, tmp_path)


def test_an_input_that_is_not_there_names_the_remedy(shop):
    wheel, resources = shop
    lock = row(wheel) | {
        "made": Asset.model_validate(
            {
                "source": "generated",
                "origin": "parsimony.assets.smollm2:convert",
                "revision": "1",
                "licence": "x",
                "inputs": ["parcel"],
                "files": {"a": {}},
            }
        )  # fmt: skip
    }
    with pytest.raises(UserError, match="run `parsimony asset parcel`"):
        fetch("made", lock, resources)
