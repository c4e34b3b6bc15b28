"""From overrides to the composed, untyped configuration, by Hydra where overrides ask for more than a suite."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from parsimony.config import Benchmark, Method, Model, Suite
from parsimony.errors import UserError, nearest
from parsimony.rows import read_rows

GROUPS = {"model": Model, "method": Method, "benchmark": Benchmark}


def compose(root: Path, overrides: list[str]) -> tuple[str, dict]:
    """The suite's name and the composed, untyped configuration of all groups but the papers.

    Hydra takes seconds for hundreds of rows, so that it composes the suite and the rows that overrides name only; it
    is not asked at all where they do no more than choose a suite (docs/decisions/011).
    """
    configs = root / "configs"
    suite = overrides[0].removeprefix("suite=") if len(overrides) == 1 else ""
    if (configs / "suite" / f"{suite}.yaml").is_file():
        rows = {group: _rows(configs, group) for group in GROUPS}
        return suite, {"suite": read_rows(configs / "suite" / f"{suite}.yaml")} | rows
    return _compose(configs, overrides)


def _rows(configs: Path, group: str, but: Iterable[str] = ()) -> dict[str, dict]:
    """The rows of a group as they stand in its files, by key."""
    files = sorted((configs / group).glob("*.yaml"))
    return {file.stem: read_rows(file) for file in files if file.stem not in but}


def _compose(configs: Path, overrides: list[str]) -> tuple[str, dict]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    keys = {group: sorted(f.stem for f in (configs / group).glob("*.yaml")) for group in GROUPS}
    named = {tuple(override.lstrip("+~").partition("=")[0].split(".")[:2]) for override in overrides}
    through = [(group, key) for group in keys for key in keys[group] if (group, key) in named]
    rows = [f"+{group}@{group}.{key}={key}" for group, key in through]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(configs), version_base="1.3"):
            composed = hydra_compose("config", overrides=rows + overrides, return_hydra_config=True)
            name = composed.hydra.runtime.choices.suite
            present = [key for key in ("suite", *GROUPS) if key in composed]
            raw = {key: OmegaConf.to_container(composed[key], resolve=True) for key in present}
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_sentence(error, overrides, configs)) from None
    except yaml.YAMLError as error:
        raise UserError(f"a file under {configs} is not YAML: {' '.join(str(error).split())}") from None
    for group in GROUPS:
        composed = raw.get(group, {})
        raw[group] = dict(sorted((_rows(configs, group, composed) | composed).items()))
    return name, raw


def _sentence(error: Exception, overrides: list[str], configs: Path) -> str:
    """Hydra's complaint as one sentence with the nearest valid name."""
    message = " ".join(str(error).split())
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group = key.split("@")[0]
        if (configs / group).is_dir() and value and not (configs / group / f"{value}.yaml").exists():
            known = [file.stem for file in (configs / group).glob("*.yaml")]
            return f"override {override!r}: no configs/{group}/{value}.yaml{nearest(value, known)}"
        if key in message or repr(key.rsplit(".", 1)[-1]) in message:
            return f"override {override!r} does not fit: {_hint(key, configs) or message}"
    return message


def _hint(key: str, configs: Path) -> str:
    """Where the path of an override leaves the configuration, and what would fit there."""
    parts = key.split(".")
    if parts[0] == "suite":
        return f"a suite has no key {'.'.join(parts[1:])!r}{nearest(parts[1], Suite.model_fields)}" if parts[1:] else ""
    if parts[0] not in GROUPS:
        return f"no group {parts[0]!r}{nearest(parts[0], ['suite', *GROUPS])}"
    known = [file.stem for file in (configs / parts[0]).glob("*.yaml")]
    if len(parts) > 1 and parts[1] not in known:
        return f"no {parts[0]} {parts[1]!r}{nearest(parts[1], known)}"
    node = read_rows(configs / parts[0] / f"{parts[1]}.yaml") if len(parts) > 1 else {}
    for part in parts[2:]:
        if not isinstance(node, dict) or part not in node:
            return f"configs/{parts[0]}/{parts[1]}.yaml has no key {part!r}{nearest(part, node or [])}"
        node = node[part]
    return ""
