"""The hub under fire: the real client against a local server that drops, lies, refuses and forgets."""

import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from hub_server import Hub, Repository
from safetensors.numpy import save

from parsimony.assets import fetch, hub, load_path, read_lock
from parsimony.assets.lock import write_row
from parsimony.config import Asset
from parsimony.errors import UserError

OLD, NEW = "0a" * 20, "1b" * 20
FACTS = {"size": 1, "sha256": "0" * 64}
CHUNK = 10 * 2**20  # bytes that the client writes at a time
WEIGHTS = {"w": np.random.default_rng(0).integers(0, 256, 25 * 2**20, np.uint8)}
LOCK = """\
# Rows of a test.
first:
  source: generated
  origin: parsimony.assets.smollm2:convert
  revision: "1"
  licence: MIT
  files: {a: {}}

net:  # a network
  source: hub
  origin: someone/net
  revision: main  # the branch of releases
  licence: MIT
  files:
    model.safetensors: {}  # the weights
    # small ones
    config.json:
      member: config.json

  note: kept as it is
"""
FETCH = """
import sys
from pathlib import Path
from parsimony.assets import fetch, read_lock
from parsimony.errors import UserError
root = Path(sys.argv[1])
try:
    fetch(sys.argv[2], read_lock(root / "configs" / "assets.lock.yaml"), root / "resources")
except UserError as error:
    sys.exit(f"parsimony: {error}")
"""


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def weights() -> bytes:
    return save(WEIGHTS)


class Shop:
    """A folder with a lock file, and a hub that holds the repositories of its rows."""

    def __init__(self, folder, served: Hub, root):
        self.folder, self.hub = folder, served
        self.resources, self.lock_file = folder / "resources", folder / "configs" / "assets.lock.yaml"
        (folder / "configs").mkdir()
        (folder / "configs" / "config.yaml").write_text("")
        self.lock_file.write_text(LOCK)
        self.environment = os.environ | {
            "PYTHONPATH": str(root / "src"), "PARSIMONY_ROOT": str(folder), "HF_ENDPOINT": served.url,
            "HF_HOME": str(folder / "home"), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"):
            self.environment.pop(name, None)

    def row(self, **changes) -> None:
        """Put one changed row `net` in place of the lock file."""
        row = {"source": "hub", "origin": "someone/net", "revision": "main", "licence": "MIT"}
        row |= {"files": {"config.json": {}}} | changes
        self.lock_file.write_text(yaml.safe_dump({"net": row}, sort_keys=False))

    def locked(self, files: dict[str, bytes], commit: str = OLD) -> None:
        self.row(revision=commit, files={n: {"size": len(d), "sha256": sha(d)} for n, d in files.items()})

    def start(self, verb: str, *keys: str) -> subprocess.Popen:
        fetch = [sys.executable, "-c", FETCH, str(self.folder), *keys]
        command = fetch if verb == "fetch" else [sys.executable, "-m", "parsimony.cli", verb, *keys]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    def run(self, verb: str, *keys: str) -> str:
        """Output of a command that succeeds."""
        process = self.start(verb, *(keys or ["net"]))
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return said

    def refusal(self, verb: str, *keys: str) -> str:
        """The one sentence of a command that fails, which leaves the lock file and no asset."""
        before = self.lock_file.read_text()
        process = self.start(verb, *(keys or ["net"]))
        _, errors = process.communicate(timeout=120)
        assert process.returncode in (1, 2) and "Traceback" not in errors, errors
        said = [line for line in errors.splitlines() if line.startswith("parsimony: ")]
        assert len(said) == 1 and errors.splitlines()[-1] == said[0], errors
        assert self.lock_file.read_text() == before
        assert not (self.resources / "net").exists() and not list(self.resources.glob(".*.partial"))
        return said[0].removeprefix("parsimony: ")

    def file(self, name: str) -> bytes:
        return (self.resources / "net" / name).read_bytes()


@pytest.fixture
def shop(tmp_path, root):
    with Hub() as served:
        yield Shop(tmp_path, served, root)


@pytest.fixture
def net(shop, weights):
    """The shop with a repository of large weights and a config, whose branch main is at the commit OLD."""
    files = {"model.safetensors": weights, "config.json": b'{"model_type": "llama"}', "README.md": b"# Net"}
    later = files | {"config.json": b'{"model_type": "mistral"}'}
    shop.hub.repositories["someone/net"] = Repository({OLD: files, NEW: later}, {"main": OLD, "v1": OLD})
    return shop


def test_lock_resolves_a_branch_once_and_writes_commit_sizes_and_checksums_and_nothing_else(net, weights):
    assert net.run("lock") == f"net: locked at {OLD}, 2 files, {len(weights) + 23} bytes\n"
    text = LOCK.replace("revision: main", f'revision: "{OLD}"')
    text = text.replace("safetensors: {}", f"safetensors: {{size: {len(weights)}, sha256: {sha(weights)}}}")
    digest = sha(b'{"model_type": "llama"}')
    text = text.replace("member: config.json\n", f"member: config.json\n      size: 23\n      sha256: {digest}\n")
    assert net.lock_file.read_text() == text
    assert read_lock(net.lock_file)["net"].locked
    assert net.file("config.json") == b'{"model_type": "llama"}' and net.file("model.safetensors") == weights
    assert not list((net.resources / ".hub").iterdir())
    net.hub.repositories["someone/net"].refs["main"] = NEW
    asked = len(net.hub.requests)
    assert net.run("lock").startswith(f"net: was locked at {OLD}")
    assert net.run("lock", "--all").startswith(f"net: was locked at {OLD}")
    net.run("fetch")
    assert len(net.hub.requests) == asked and net.lock_file.read_text() == text
    (net.resources / "net").rename(net.folder / "away")
    net.run("fetch")
    assert net.file("config.json") == b'{"model_type": "llama"}'
    for request in net.hub.requests[asked:]:
        assert OLD in request.path and "README" not in request.path


def test_a_row_that_names_a_branch_again_gets_its_commit_of_today(net):
    net.run("lock")
    net.hub.repositories["someone/net"].refs["main"] = NEW
    net.lock_file.write_text(net.lock_file.read_text().replace(f'"{OLD}"', "main"))
    assert net.run("lock").startswith(f"net: locked at {NEW}")
    assert net.file("config.json") == b'{"model_type": "mistral"}'
    locked = read_lock(net.lock_file)["net"].files["config.json"]
    assert locked.size == 25 and locked.sha256 == sha(b'{"model_type": "mistral"}')


def test_a_file_added_to_a_locked_row_is_locked_at_the_same_commit_and_the_others_are_held_to_theirs(net):
    config, files = b'{"model_type": "llama"}', net.hub.repositories["someone/net"].commits[OLD]
    files["vocab.txt"] = b"a\nb\n"
    facts = {"size": 23, "sha256": sha(config)}
    net.row(revision=OLD, files={"config.json": facts, "vocab.txt": {}})
    assert net.run("lock").startswith(f"net: locked at {OLD}, 2 files, 27 bytes")
    net.row(revision=OLD, files={"config.json": facts | {"sha256": "0" * 64}, "vocab.txt": {}})
    (net.resources / "net").rename(net.folder / "away")
    assert "config.json of someone/net arrived with checksum" in net.refusal("lock")


def test_data_sets_are_their_own_kind_of_repository(shop):
    table = pa.table({"text": ["one", "two"]})
    pyarrow.parquet.write_table(table, shop.folder / "t.parquet")
    data = (shop.folder / "t.parquet").read_bytes()
    files = {"data/train-00000-of-00001.parquet": data, "load.py": b"raise SystemExit"}
    shop.hub.repositories["datasets/someone/texts"] = Repository({OLD: files}, {"refs/convert/parquet": OLD})
    shop.row(origin="someone/texts", revision="refs/convert/parquet", params={"repo_type": "dataset"},
             files={"train.parquet": {"member": "data/train-00000-of-00001.parquet"}})  # fmt: skip
    shop.run("lock")
    assert pyarrow.parquet.read_table(shop.resources / "net" / "train.parquet") == table
    (shop.resources / "net").rename(shop.folder / "away")
    shop.row(origin="someone/texts")
    assert "no model repository someone/texts for you; mend origin or params.repo_type" in shop.refusal("lock")


@pytest.mark.parametrize("verb", ["lock", "fetch"])
def test_a_killed_download_goes_on_at_the_byte_where_it_stopped(net, weights, verb):
    files = net.hub.repositories["someone/net"].commits[OLD]
    if verb == "fetch":
        net.locked({name: files[name] for name in ("model.safetensors", "config.json")})
    net.hub.cut["model.safetensors"] = [(2 * CHUNK + 2**19, "stall")]
    process = net.start(verb, "net")
    assert net.hub.stalled.wait(60)
    partial = net.resources / ".hub" / "net" / OLD / "model.safetensors.incomplete"
    for _ in range(200):
        if partial.exists() and partial.stat().st_size == 2 * CHUNK:
            break
        threading.Event().wait(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = partial.stat().st_size
    assert there == 2 * CHUNK and not (net.resources / "net").exists()
    net.run(verb)
    assert net.file("model.safetensors") == weights
    first, second = net.hub.downloads("model.safetensors")
    assert first.range is None and second.range == f"bytes={there}-"
    assert second.sent == len(weights) - there
    assert len(net.hub.downloads("config.json")) == 1


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_broken_connection_is_taken_up_again_with_a_range(net, weights, how):
    net.hub.cut["model.safetensors"] = [(len(weights) - 2**19, how), (7, how)]
    net.run("lock")
    assert net.file("model.safetensors") == weights
    downloads = net.hub.downloads("model.safetensors")
    begins = [int(request.range.strip("bytes=-")) if request.range else 0 for request in downloads]
    assert begins[0] == 0 and begins[2] == begins[1] >= CHUNK and begins[1] % CHUNK == 0 and len(begins) == 3
    assert downloads[2].sent == len(weights) - begins[2]


def test_a_server_that_knows_no_ranges_sends_all_again_and_nothing_is_appended(net, weights):
    net.hub.ranges = False
    net.hub.cut["model.safetensors"] = [(2 * CHUNK, "close")]
    net.run("lock")
    assert net.file("model.safetensors") == weights
    assert net.hub.downloads("model.safetensors")[-1].sent == len(weights)


def test_a_partial_file_that_is_longer_than_the_file_is_begun_anew(net, weights):
    folder = net.resources / ".hub" / "net" / OLD
    folder.mkdir(parents=True)
    (folder / "model.safetensors.incomplete").write_bytes(weights + b"more")
    (folder / "config.json").write_bytes(b"{}")
    net.run("lock")
    assert net.file("model.safetensors") == weights and net.file("config.json") == b'{"model_type": "llama"}'


@pytest.mark.parametrize("verb", ["lock", "fetch"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_wrong_bytes_are_found_and_do_not_stay(net, verb, name):
    files = net.hub.repositories["someone/net"].commits[OLD]
    if verb == "fetch":
        net.locked({name: files[name]})
    net.hub.altered = {name}
    said = net.refusal(verb)
    assert said.startswith(f"asset 'net': {name} of someone/net arrived with checksum ")
    assert said.endswith("what is served is not what was locked")
    assert not list((net.resources / ".hub").rglob(f"{name}*"))
    net.hub.altered = set()
    net.run(verb)
    assert net.file(name) == files[name]


def test_other_content_than_locked_is_refused_before_it_is_downloaded(net, weights):
    net.row(revision=OLD, files={"model.safetensors": {"size": len(weights), "sha256": "0" * 64}})
    said = net.refusal("fetch")
    assert f"has SHA-256 {sha(weights)[:12]}..., the lock says 000000000000...; mend the row" in said
    net.row(revision=OLD, files={"model.safetensors": {"size": 3, "sha256": sha(weights)}})
    assert f"has {len(weights)} bytes, the lock says 3" in net.refusal("fetch")
    assert not net.hub.downloads("model.safetensors")


def test_a_revision_that_vanished_is_one_sentence_with_the_remedy(net):
    net.locked({"config.json": b'{"model_type": "llama"}'}, commit="2c" * 20)
    said = net.refusal("fetch")
    assert f"model repository someone/net has no revision '{'2c' * 20}' (any more)" in said
    assert said.endswith("set revision to a branch and run `parsimony lock net`")
    net.row(revision="mian")
    assert "has no revision 'mian'" in net.refusal("lock")


def test_a_file_that_is_not_there_is_named(net):
    net.row(files={"configs.json": {}})
    assert net.refusal("lock") == (
        "asset 'net': configs.json of someone/net cannot be had from the hub: model repository someone/net at "
        f"{OLD[:12]} has no such file; mend the row's files"
    )


@pytest.mark.parametrize("where", ["GET /api", "HEAD /someone", "GET /someone"])
def test_one_fault_of_the_hub_is_waited_out(net, where):
    net.row()
    net.hub.failures[where] = Counter({503: 1})
    net.run("lock")
    assert net.file("config.json") == b'{"model_type": "llama"}'


def test_a_hub_that_stays_down_is_one_sentence(net):
    net.row()
    net.hub.failures["GET /api"] = Counter({500: 9})
    assert net.refusal("lock").endswith("cannot be had from the hub: it answers 500; run again later")
    assert net.hub.failures["GET /api"][500] == 6


def test_no_network_and_offline_mode_are_one_sentence(net):
    net.environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    said = net.refusal("lock")
    assert "someone/net cannot be had from the hub: " in said and "check the network, HF_ENDPOINT if it is set" in said
    net.environment |= {"HF_ENDPOINT": net.hub.url, "HF_HUB_OFFLINE": "1"}
    assert net.refusal("lock").endswith("HF_HUB_OFFLINE is set; unset it and run again")
    assert not net.hub.requests


def test_what_is_not_a_hub_is_said(net):
    net.row(revision=OLD, files={"config.json": {"size": 23, "sha256": sha(b'{"model_type": "llama"}')}})
    net.hub.failures["HEAD /someone"] = Counter({200: 1})
    assert "answers with commit None, not 0a0a" in net.refusal("fetch")


def test_private_and_gated_repositories_say_how_to_get_in_and_the_token_stays_with_the_hub(net, weights):
    repository = net.hub.repositories["someone/net"]
    repository.needs = "login"
    assert "there is no model repository someone/net for you; mend origin" in net.refusal("lock")
    repository.needs = "terms"
    said = net.refusal("lock")
    assert f"it is gated; accept its terms on {net.hub.url}/someone/net, log in with `hf auth login`" in said
    net.environment["HF_TOKEN"] = "hf_stranger"
    assert "it answers 401; log in with `hf auth login`" in net.refusal("lock")
    del net.environment["HF_TOKEN"]
    (net.folder / "home").mkdir(exist_ok=True)
    (net.folder / "home" / "token").write_text(net.hub.token)
    net.hub.requests.clear()
    net.run("lock")
    assert net.file("model.safetensors") == weights
    at_store = [request for request in net.hub.requests if request.path.startswith(f"/someone/net/{OLD}")]
    assert at_store and not any(request.token for request in at_store)
    assert all(request.token == net.hub.token for request in net.hub.requests if request not in at_store)
    assert net.hub.token not in net.lock_file.read_text()


class Mark:
    """Unpickled, it leaves a mark."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def refused(tmp_path, **changes) -> list[str]:
    """What lock and fetch say to a row that they refuse before they ask the hub for anything."""
    row = {"source": "hub", "origin": "someone/net", "revision": OLD, "licence": "MIT", "files": {"config.json": {}}}
    rows, said = {"net": Asset.model_validate(row | changes)}, []
    for call in (
        lambda: hub.lock("net", rows, tmp_path, tmp_path / "no.yaml"),
        lambda: fetch("net", rows, tmp_path),
    ):
        with pytest.raises(UserError) as error:
            call()
        said.append(str(error.value))
    assert not any((tmp_path / name).exists() for name in ("net", ".net.partial", "no.yaml"))
    return said


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "a.ckpt", "b.PKL", "modeling_net.py", "w.h5", "run"])
def test_pickles_and_code_are_refused_by_name_before_anything_is_asked(tmp_path, name):
    for files in ({name: {}}, {name: FACTS}, {"config.json": FACTS | {"member": name}}):
        for said in refused(tmp_path, files=files):
            assert said.startswith(f"asset 'net': {name} is refused, because only .safetensors, .json")
            assert said.endswith("files can be loaded without running code; ask for a safetensors revision")


def test_params_that_the_hub_does_not_know_are_refused(tmp_path):
    for params in ({"repo_type": "space"}, {"trust_remote_code": True}):
        for said in refused(tmp_path, params=params):
            assert said.endswith("do not fit the hub, which takes repo_type: model or dataset and auto_map: unused")


def test_names_that_leave_the_folder_are_refused(tmp_path):
    for name in ("../out.json", "/tmp/out.json", "a/../../out.json"):
        row = {"source": "hub", "origin": "someone/net", "revision": OLD, "licence": "MIT", "files": {name: FACTS}}
        with pytest.raises(UserError, match="leaves the asset's folder"):
            fetch("net", {"net": Asset.model_validate(row)}, tmp_path / "resources")
    assert not list(tmp_path.rglob("out.json"))


def test_only_hub_rows_that_exist_are_locked_and_only_locked_ones_fetched(tmp_path):
    path = tmp_path / "assets.lock.yaml"
    path.write_text(LOCK)
    rows = read_lock(path)
    for key, words in (("nte", "did you mean 'net'?"), ("first", "'first' is generated: only assets from the hub")):
        with pytest.raises(UserError, match=re.escape(words)):
            hub.lock(key, rows, tmp_path, path)
    with pytest.raises(UserError, match="'net' is not locked yet: run `parsimony lock net` once"):
        fetch("net", rows, tmp_path)
    with pytest.raises(UserError, match="'net' is not in .*; run `parsimony lock net`"):
        load_path("net", rows, tmp_path)
    assert path.read_text() == LOCK


def test_a_repository_with_a_pickle_is_refused_by_its_name_and_the_pickle_is_never_asked_for(net, weights, tmp_path):
    mark = tmp_path / "mark"
    evil = pickle.dumps(Mark(mark))
    files = net.hub.repositories["someone/net"].commits[OLD]
    files |= {"pytorch_model.bin": evil}
    net.run("lock")  # beside safetensors, which are taken, it does no harm
    assert not [request for request in net.hub.requests if "pytorch_model" in request.path]
    del files["model.safetensors"]
    net.row(files={"model.safetensors": {}})
    (net.resources / "net").rename(net.folder / "away")
    assert "has no such file; its pickled pytorch_model.bin is refused; mend the row's files" in net.refusal("lock")
    for verb in ("lock", "fetch"):  # nor under another name
        files["model.safetensors"] = evil
        net.row(files={"model.safetensors": {}}) if verb == "lock" else net.locked({"model.safetensors": evil})
        assert "model.safetensors of someone/net is refused: not safetensors" in net.refusal(verb)
    assert not [request for request in net.hub.requests if "pytorch_model" in request.path]
    assert not mark.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_repository_with_remote_code_is_refused_by_name_before_its_weights_arrive(net, name):
    config = json.dumps({"model_type": "net", "auto_map": {"AutoModel": "modeling_net.Net"}}).encode()
    files = net.hub.repositories["someone/net"].commits[OLD]
    mark = net.folder / "mark"
    files |= {name: config, "modeling_net.py": f"open({str(mark)!r}, 'w')".encode()}
    for verb in ("lock", "fetch"):
        wanted = {"model.safetensors": files["model.safetensors"], name: config}
        net.row(files={key: {} for key in wanted}) if verb == "lock" else net.locked(wanted)
        said = net.refusal(verb)
        assert f'{name} of someone/net is refused: its auto_map asks for remote code ({{"AutoModel": ' in said
    assert not net.hub.downloads("model.safetensors")
    assert not [request for request in net.hub.requests if "modeling" in request.path] and not mark.exists()


def test_a_row_may_say_that_it_has_no_use_for_the_code_of_a_repository(net):
    """LLaDA's and Dream's configurations name code of their own; the decoder reads the architectures without."""
    files = net.hub.repositories["someone/net"].commits[OLD]
    files["config.json"] = json.dumps({"model_type": "net", "auto_map": {"AutoModel": "modeling_net.Net"}}).encode()
    net.row(files={"config.json": {}}, params={"auto_map": "wanted"})
    assert "do not fit the hub" in net.refusal("lock") and "auto_map: unused" in net.refusal("lock")
    net.row(files={"config.json": {}}, params={"auto_map": "unused"})
    net.run("lock")
    assert net.file("config.json") == files["config.json"]
    assert not [request for request in net.hub.requests if "modeling" in request.path]


def test_nothing_in_the_package_can_ask_for_remote_code(root):
    for path in (root / "src").rglob("*.py"):
        assert "trust_remote_code" not in path.read_text(), path


def test_two_locks_at_once_do_not_lose_each_others_row(net):
    text = net.lock_file.read_text()
    net.lock_file.write_text(text + text[text.index("\nnet:") :].replace("net:", "twin:"))
    both = [net.start("lock", key) for key in ("net", "twin")]
    for process in both:
        assert process.communicate(timeout=120) and process.returncode == 0
    rows = read_lock(net.lock_file)
    assert rows["net"].locked and rows["twin"].locked and rows["net"].files == rows["twin"].files


def test_a_full_disk_is_said_and_what_arrived_is_not_lost(net, small_disk, weights):
    disk, enlarge = small_disk
    net.resources.symlink_to(disk)
    assert "no space left for asset 'net'" in net.refusal("lock")
    enlarge(64)
    net.run("lock")
    assert net.file("model.safetensors") == weights
    assert net.hub.downloads("model.safetensors")[-1].range is not None


@pytest.mark.parametrize(
    ("row", "after"),
    [
        ("{revision: main, files: {a: {}, b: {member: x}}}", "{}, b: {member: x, size: 7, sha256: ff}"),
        ('{revision: "m", files: {b: {sha256: ~, size: 3}}}', "{sha256: ff, size: 7}"),
        (
            "  revision: main\n  files:\n    b:  # c\n      sha256: 00  # d\n      member: x  # e\n\n  note: n",
            "# c\n      sha256: ff  # d\n      member: x  # e\n      size: 7\n\n  note: n",
        ),
        ("  files:\n    b:\n      member: x\n  revision: main", "member: x\n      size: 7\n      sha256: ff\n  rev"),
        ('  files:\n    "b": {}\n  revision: 1.0', '"b": {size: 7, sha256: ff}\n'),
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_facts_are_written_into_a_row_of_any_form(tmp_path, row, after, last):
    path = tmp_path / "lock.yaml"
    row = row if row.startswith("{") else f"\n{row}"
    path.write_text(f"# top\na: {{x: 1}}\nk: {row}" + ("" if last else "\n\n# next\nz: {revision: main}  # end\n"))
    before = yaml.safe_load(path.read_text())
    write_row(path, "k", {"b": {"size": 7, "sha256": "ff"}}, OLD)
    text = path.read_text()
    assert after in text and text.startswith("# top\na: {x: 1}\nk: ")
    assert last or text.endswith("\n\n# next\nz: {revision: main}  # end\n")
    before["k"]["revision"] = OLD
    before["k"]["files"]["b"] |= {"size": 7, "sha256": "ff"}
    assert yaml.safe_load(text) == before


def test_rows_of_the_project_take_facts_and_change_nothing_else(root, tmp_path):
    path, text = tmp_path / "lock.yaml", (root / "configs" / "assets.lock.yaml").read_text()
    path.write_text(text)
    expected = yaml.load(text, Loader=yaml.CSafeLoader)
    for key in list(expected)[::9]:
        facts = {name: {"size": 7, "sha256": "f" * 64} for name in expected[key]["files"]}
        write_row(path, key, facts)
        for name, fact in facts.items():
            expected[key]["files"][name] |= fact
    assert yaml.load(path.read_text(), Loader=yaml.CSafeLoader) == expected
    assert len(path.read_text().splitlines()) >= len(text.splitlines())
    assert [line for line in path.read_text().splitlines() if "#" in line] == [
        line for line in text.splitlines() if "#" in line
    ]


def test_a_model_from_the_hub_is_planned_unlocked_and_measured_once_locked(project, tiny_folder, monkeypatch):
    key, cell = "smollm2_135m_instruct", "latency--smollm2_135m_instruct--greedy"
    path = project.folder / "configs" / "assets.lock.yaml"
    files = {file.name: file.read_bytes() for file in tiny_folder.iterdir()}
    row = {"source": "hub", "origin": "someone/tiny", "revision": "main", "licence": "MIT"}
    rows = yaml.safe_load(path.read_text())
    ours = {name for name, other in rows.items() if other["source"] == "hub"}  # which this hub does not have
    while more := {name for name, other in rows.items() if ours & set(other.get("inputs", ()))} - ours:
        ours |= more
    rows = {name: other for name, other in rows.items() if name not in ours}
    path.write_text(yaml.safe_dump(rows | {key: row | {"files": {n: {} for n in files}}}))
    project.edit("configs/suite/tiny.yaml", "- shipped", "- shipped\n- hub")
    with Hub({"someone/tiny": Repository({OLD: files}, {"main": OLD})}) as served:
        for name, value in {
            "HF_ENDPOINT": served.url,
            "NO_PROXY": "127.0.0.1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }.items():
            monkeypatch.setenv(name, value)
        status, said = project.parsimony("plan")
        assert status == 0 and f"(not locked: run `parsimony lock {key}`)" in said
        status, said = project.parsimony("run", "--dry-run", "--cores", "1")
        assert status == 0 and f"asset {key}" in said and f"cell {cell}" in said
        for verb, name in (("asset", key), ("cell", cell)):
            status, said = project.parsimony(verb, name)
            assert status == 2 and f"run `parsimony lock {key}`" in said.splitlines()[-1]
        assert not served.requests
        assert project.parsimony("lock", "--all")[0] == 0
    assert "not locked" not in project.parsimony("plan")[1]
    assert project.parsimony("cell", cell)[0] == 0
    assert (project.folder / "results" / "tiny" / "cells" / f"{cell}.parquet").is_file()
