"""Files of ``configs/``: YAML in which a key stands once, and numbers such as 1e-7 are numbers, as Hydra reads it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from parsimony.errors import UserError


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Without pickle's tags, as the one it extends."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_rows(path: Path):
    """What a file holds.

    Raises
    ------
    UserError
        When it is not YAML, or says a key twice.
    """
    try:
        return yaml.load(path.read_text(), Loader=Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
