"""From a ``_target_`` to an object; only what lies inside ``parsimony`` can be named."""

from __future__ import annotations

import importlib
import inspect

from parsimony.errors import UserError, nearest


def instantiate(target: str, params: dict):
    """Call the class or function ``target`` with ``params``.

    Raises
    ------
    UserError
        When the target is outside ``parsimony.`` or does not take one of the parameters.
    """
    factory = locate(target)
    known = inspect.signature(factory).parameters
    for key in params:
        if key not in known:
            raise UserError(f"{target} has no parameter {key!r}{nearest(key, known)}")
    return factory(**params)


def locate(target: str):
    """The class or function behind a dotted name inside ``parsimony.``; any other is refused."""
    module, _, name = target.replace(":", ".").rpartition(".")
    if not module.startswith("parsimony."):
        raise UserError(f"_target_ {target!r} is outside 'parsimony.'; only our own classes can be named")
    return getattr(importlib.import_module(module), name)
