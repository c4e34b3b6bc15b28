"""Files of Hugging Face repositories: at a commit, verified, resumed, and none that could run code.

Files arrive in ``resources/.hub/<asset>/<commit>``, each under its name once it is whole and verified, and move from
there into the asset; a killed fetch goes on at the byte where the last one stopped.  The client's own cache does not do
that (it begins a file anew), so its cache is not used; all requests are the client's, which honours ``HF_ENDPOINT``,
``HF_HUB_OFFLINE`` and the token where `hf auth login` puts it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path

from parsimony.assets.lock import read_lock, write_row
from parsimony.assets.store import NO_SPACE, alone, fetch, inside, sha256
from parsimony.config import Asset, LockedFile
from parsimony.errors import UserError, nearest

SAFE = (".safetensors", ".json", ".jsonl", ".parquet", ".txt", ".model", ".jinja")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack")
PARAMS = {"repo_type": ("model", "dataset"), "auto_map": ("unused",)}
"""What a row may say, and the values that each may have."""
WAITS = (1, 4)  # seconds before the second and third try of a request
TIMEOUT = 30  # seconds without an answer


def fetch_files(key: str, asset: Asset, out: Path, resources: Path, inputs: dict[str, Path]) -> None:
    """The files of a locked row, from what an earlier try left or from the hub."""
    _check_names(key, asset)
    if not asset.locked:
        raise UserError(
            f"asset {key!r} is not locked yet: run `parsimony lock {key}` once, where the hub can be reached, and "
            "commit configs/assets.lock.yaml"
        )
    folder = _download(key, asset, resources)
    for name in asset.files:
        os.replace(folder / name, inside(out, name, key))
    shutil.rmtree(resources / ".hub" / key)


def lock(key: str, rows: dict[str, Asset], resources: Path, lock_file: Path) -> bool:
    """Resolve the revision of a hub row to a commit, download its files, write commit, sizes and SHA-256, and fetch.

    A row that names a branch or tag gets the commit that this is now, and new checksums; one that names a commit keeps
    those it has.

    Returns
    -------
    bool
        False when there was nothing to do, because the row was locked before.

    Raises
    ------
    UserError
        When the hub cannot be reached, a file is refused, or what arrives is not what the hub says it holds.
    """
    if key not in rows:
        raise UserError(f"configs/assets.lock.yaml has no asset {key!r}{nearest(key, rows)}")
    asset = rows[key]
    if asset.source != "hub":
        raise UserError(f"asset {key!r} is {asset.source}: only assets from the hub are locked with `parsimony lock`")
    _check_names(key, asset)
    if asset.locked:
        return False
    with alone(key, resources):
        from huggingface_hub import HfApi

        with _one_sentence(key, asset, asset.origin):
            info = _patiently(
                lambda: HfApi().repo_info(
                    asset.origin, revision=asset.revision, repo_type=_kind(asset), timeout=TIMEOUT
                )
            )
        if info.sha != asset.revision:
            files = {name: LockedFile(member=locked.member) for name, locked in asset.files.items()}
            asset = asset.model_copy(update={"revision": info.sha, "files": files})
        folder = _download(key, asset, resources, [sibling.rfilename for sibling in info.siblings or ()])
        facts = {n: {"size": (folder / n).stat().st_size, "sha256": sha256(folder / n)} for n in asset.files}
        write_row(lock_file, key, facts, info.sha)
    fetch(key, read_lock(lock_file), resources)
    return True


def _check_names(key: str, asset: Asset) -> None:
    """Refuse by name what could run code when it is loaded."""
    for name, locked in asset.files.items():
        for path in (name, locked.member or name):
            if not path.lower().endswith(SAFE):
                raise UserError(
                    f"asset {key!r}: {path} is refused, because only {', '.join(SAFE)} files can be loaded without "
                    "running code; ask for a safetensors revision"
                )
    if wrong := {name: value for name, value in asset.params.items() if value not in PARAMS.get(name, ())}:
        known = " and ".join(f"{name}: {' or '.join(values)}" for name, values in PARAMS.items())
        raise UserError(f"asset {key!r}: params {wrong} do not fit the hub, which takes {known}")


def _check_content(key: str, asset: Asset, member: str, path: Path) -> None:
    """Refuse what says that it is safe and is not: another format under the name, or a request for remote code."""
    from safetensors import SafetensorError, safe_open

    names = (path.name.lower(), member.lower())
    if any(name.endswith(".safetensors") for name in names):
        try:
            with safe_open(path, "np"):
                pass
        except SafetensorError as error:
            path.unlink()
            raise UserError(
                f"asset {key!r}: {member} of {asset.origin} is refused: not safetensors ({error})"
            ) from None
    if any(name.endswith("config.json") for name in names):
        try:
            wanted = json.loads(path.read_text()).get("auto_map")
        except (ValueError, AttributeError):
            raise UserError(f"asset {key!r}: {member} of {asset.origin} is refused: not a JSON object") from None
        if wanted and "auto_map" not in asset.params:
            raise UserError(
                f"asset {key!r}: {member} of {asset.origin} is refused: its auto_map asks for remote code "
                f"({json.dumps(wanted)[:100]}), which is never run; ask for a repository without, or where a "
                "class of this project reads the architecture, add the param `auto_map: unused`"
            )


def _download(key: str, asset: Asset, resources: Path, siblings: list[str] | None = None) -> Path:
    """The folder that holds all files of a row at its commit, verified."""
    from huggingface_hub import hf_hub_url

    folder = resources / ".hub" / key / asset.revision
    # Weights last: what is refused is refused before gigabytes arrive.
    for name, locked in sorted(asset.files.items(), key=lambda item: item[0].endswith(".safetensors")):
        member, path = locked.member or name, inside(folder, name, key)
        what = f"{member} of {asset.origin}"
        with _one_sentence(key, asset, what, siblings):
            url = hf_hub_url(asset.origin, member, repo_type=_kind(asset), revision=asset.revision)
            _bring(f"asset {key!r}: {what}", url, path, locked, asset.revision)
        _check_content(key, asset, member, path)
    return folder


def _bring(what: str, url: str, path: Path, locked: LockedFile, commit: str) -> None:
    """One file to its path, unless it is there; without a locked SHA-256 the hub's own checksum must fit."""
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if locked.sha256 and path.exists() and sha256(path) == locked.sha256:
        return
    head = _patiently(lambda: get_hf_file_metadata(url, timeout=TIMEOUT))
    etag, remedy = str(head.etag), "mend the row in configs/assets.lock.yaml if that is intended"
    if head.commit_hash != commit:
        raise UserError(f"{what}: {url} answers with commit {head.commit_hash}, not {commit}; check HF_ENDPOINT")
    if locked.size not in (None, head.size):
        raise UserError(f"{what} has {head.size} bytes, the lock says {locked.size}; {remedy}")
    if locked.sha256 and len(etag) == 64 and etag != locked.sha256:
        raise UserError(f"{what} has SHA-256 {etag[:12]}..., the lock says {locked.sha256[:12]}...; {remedy}")
    expected = locked.sha256 or etag
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", expected):
        raise UserError(f"{what}: {url} names no checksum, so it cannot be locked; check HF_ENDPOINT")
    if path.exists() and _digest(path, expected) == expected:
        return
    partial = path.with_name(f"{path.name}.incomplete")
    if partial.exists() and head.size is not None and partial.stat().st_size > head.size:
        partial.unlink()
    # Compressed, the bytes that are there would not be those to go on after.
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}

    def get():
        # Plain HTTP also for files in Xet storage: only that can go on in the middle of a file.
        with open(partial, "ab") as file:
            http_get(
                url,
                file,
                resume_size=file.tell(),
                headers=headers,
                expected_size=head.size,
                displayed_filename=path.name,
            )

    _patiently(get)
    if (found := _digest(partial, expected)) != expected:
        partial.unlink()
        raise UserError(
            f"{what} arrived with checksum {found[:12]}... instead of {expected[:12]}... and was discarded; run again; "
            "if it stays, what is served is not what was locked"
        )
    os.replace(partial, path)


def _digest(path: Path, like: str) -> str:
    """SHA-256 of a file, or where ``like`` is a SHA-1 that by which git knows it, as the hub does small files."""
    if len(like) == 64:
        return sha256(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(b"blob %d\0" % path.stat().st_size)).hexdigest()


def _patiently(call):
    """The result of a request that is tried again when the connection breaks or the hub has a fault of its own."""
    from httpx2 import HTTPError

    for wait in (*WAITS, None):
        try:
            return call()
        except HTTPError as error:
            answer = getattr(error, "response", None)
            if wait is None or answer is not None and answer.status_code < 500:
                raise
        time.sleep(wait)


@contextlib.contextmanager
def _one_sentence(key: str, asset: Asset, what: str, siblings: list[str] | None = None):
    """Turn what goes wrong between here and the hub into one sentence that says how to mend it."""
    from httpx2 import HTTPError, InvalidURL

    try:
        yield
    except (HTTPError, InvalidURL, OSError, ValueError) as error:
        if any(words in str(error) for words in NO_SPACE):
            raise
        reason = _reason(key, asset, error, siblings or [])
        raise UserError(f"asset {key!r}: {what} cannot be had from the hub: {reason}") from None


def _reason(key: str, asset: Asset, error: Exception, siblings: list[str]) -> str:
    from huggingface_hub import constants, errors

    repository, revision, login = f"{_kind(asset)} repository {asset.origin}", asset.revision, "`hf auth login`"
    match error:
        case errors.GatedRepoError():
            page = f"{constants.ENDPOINT}/{'datasets/' if _kind(asset) == 'dataset' else ''}{asset.origin}"
            return f"it is gated; accept its terms on {page}, log in with {login} and run again"
        case errors.RepositoryNotFoundError():
            return f"there is no {repository} for you; mend origin or params.repo_type, or log in with {login}"
        case errors.RevisionNotFoundError():
            remedy = f"set revision to a branch and run `parsimony lock {key}`"
            return f"{repository} has no revision {revision!r} (any more); {remedy}"
        case errors.EntryNotFoundError():
            pickled = [name for name in siblings if name.lower().endswith(PICKLED)]
            beside = f"; its pickled {', '.join(pickled)[:100]} is refused" if pickled else ""
            return f"{repository} at {revision[:12]} has no such file{beside}; mend the row's files"
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set; unset it and run again"
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"it answers {error.response.status_code}; log in with {login} and a token that may read it"
        case errors.HfHubHTTPError():
            return f"it answers {error.response.status_code}; run again later"
    cause = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{cause.rstrip('.')}; check the network, HF_ENDPOINT if it is set, and origin, and run again"


def _kind(asset: Asset) -> str:
    return str(asset.params.get("repo_type", "model"))
