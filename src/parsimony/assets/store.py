"""The shared cache of assets: a folder each, complete and verified or not there at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path

from parsimony.config import Asset
from parsimony.errors import UserError, nearest

MANIFEST = "manifest.json"
NO_SPACE = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


class Unavailable(UserError):
    """The asset cannot be had on this machine; studies that need it skip what depends on it, with this reason."""


def fetch(key: str, lock: dict[str, Asset], resources: Path) -> Path:
    """Bring an asset into ``resources/<key>`` unless it is there already; its inputs must be.

    The work is done in a folder beside it, verified, and renamed: a killed fetch leaves nothing half-made, and
    archives that arrived whole are not downloaded again.  A Debian file that is not served here leaves a folder that
    says so (what is made from it, too), and is tried again by the next fetch.

    Raises
    ------
    UserError
        When a checksum differs, the network or disk fails, or an input is missing.
    """
    if key not in lock:
        raise UserError(f"configs/assets.lock.yaml has no asset {key!r}{nearest(key, lock)}")
    resources = Path(resources)
    with alone(key, resources):
        if _complete(resources / key, lock[key]):
            verify(key, lock, resources)
        else:
            _make(key, lock, resources)
    return resources / key


@contextlib.contextmanager
def alone(key: str, resources: Path):
    """Work on an asset: of two processes that want the same one, the second waits and finds it there.

    Raises
    ------
    UserError
        When the disk fills up meanwhile.
    """
    try:
        resources.mkdir(parents=True, exist_ok=True)
        with open(resources / f".{key}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except Exception as error:
        # Libraries and tools wrap the error of the operating system in their own; its words stay.
        if any(words in str(error) for words in NO_SPACE):
            raise UserError(
                f"no space left for asset {key!r} on the disk that holds {resources}: free some and run again"
            ) from None
        raise


def _make(key: str, lock: dict[str, Asset], resources: Path) -> None:
    from parsimony.assets import sources

    asset, folder, partial = lock[key], resources / key, resources / f".{key}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        facts = {"source": asset.source, "revision": asset.revision, "licence": asset.licence, "row": asset.content()}
        try:
            inputs = {name: load_path(name, lock, resources) for name in asset.requires}
            sources.SOURCES[asset.source](key, asset, partial, resources, inputs)
            facts["files"] = _check(key, asset, partial)
        except Unavailable as reason:
            facts["unavailable"] = str(reason)
        (partial / MANIFEST).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def verify(key: str, lock: dict[str, Asset], resources: Path) -> None:
    """Compare every file of a fetched asset with its checksum: the lock's, or the manifest's where the lock has none.

    Raises
    ------
    UserError
        Naming asset, file, what differs and how to mend it.
    """
    folder = Path(resources) / key
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if not isinstance(manifest, dict):
            raise ValueError(manifest)
    except FileNotFoundError:
        verb = "asset" if lock[key].locked else "lock"
        raise UserError(f"asset {key!r} is not in {resources}; run `parsimony {verb} {key}`") from None
    except ValueError:
        raise UserError(f"asset {key!r}: {folder / MANIFEST} is damaged; run `rm -r {folder}` and run again") from None
    if manifest.get("row") != lock[key].content():
        raise UserError(f"asset {key!r} in {resources} was made from another lock row; run `parsimony asset {key}`")
    if "unavailable" in manifest:
        return
    for name, locked in lock[key].files.items():
        path, made = folder / name, manifest["files"][name]
        size, digest = locked.size or made["size"], locked.sha256 or made["sha256"]
        remedy = f"run `rm -r {folder}` and run again"
        if not path.exists():
            raise UserError(f"asset {key!r}: file {path} is missing; {remedy}")
        if path.stat().st_size != size:
            raise UserError(f"asset {key!r}: file {path} has {path.stat().st_size} bytes instead of {size}; {remedy}")
        if (found := sha256(path)) != digest:
            raise UserError(
                f"asset {key!r}: file {path} has SHA-256 {found[:12]}... instead of {digest[:12]}...; {remedy}"
            )


def load_path(key: str, lock: dict[str, Asset], resources: Path) -> Path:
    """Folder of a fetched asset, verified.

    Raises
    ------
    Unavailable
        When the asset cannot be had on this machine.
    UserError
        When it is missing or damaged.
    """
    verify(key, lock, resources)
    folder = Path(resources) / key
    manifest = json.loads((folder / MANIFEST).read_text())
    if "unavailable" in manifest:
        raise Unavailable(manifest["unavailable"])
    return folder


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare(what: str, path: Path, size: int | None, digest: str | None, remedy: str) -> dict:
    """Size and SHA-256 of a file, after comparing them with the locked ones."""
    facts = {"size": path.stat().st_size, "sha256": sha256(path)}
    if size is not None and facts["size"] != size:
        raise UserError(f"{what} has {facts['size']} bytes, the lock says {size}; {remedy}")
    if digest is not None and facts["sha256"] != digest:
        raise UserError(f"{what} has SHA-256 {facts['sha256'][:12]}..., the lock says {digest[:12]}...; {remedy}")
    return facts


def inside(out: Path, name: str, key: str) -> Path:
    """The path of a file of the asset, refusing names that leave its folder."""
    path = (out / name).resolve()
    if out.resolve() not in path.parents:
        raise UserError(f"asset {key!r}: file name {name!r} leaves the asset's folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _check(key: str, asset: Asset, folder: Path) -> dict:
    remedy = "what was fetched is not what was locked: mend the row in configs/assets.lock.yaml if that is intended"
    facts = {}
    for name, locked in asset.files.items():
        if not (folder / name).is_file():
            raise UserError(f"asset {key!r}: {asset.origin} gave no file {name!r}; mend configs/assets.lock.yaml")
        facts[name] = compare(f"asset {key!r}: file {name}", folder / name, locked.size, locked.sha256, remedy)
    return facts


def _complete(folder: Path, asset: Asset) -> bool:
    """Whether a folder holds what today's lock row asks for."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest["row"] == asset.content() and "files" in manifest
    except (OSError, ValueError, KeyError, TypeError):
        return False
