"""Code versions: a hash of what a module and all it imports inside ``parsimony`` do, blind to comments and layout."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]


def code_version(*targets: str) -> str:
    """Version of the code behind dotted names inside ``parsimony`` (modules, classes or functions).

    A hash over the normalised syntax trees of the modules and of their static import closure inside the package.
    Comments never reach the tree; docstrings and protocols, which say and do nothing, are removed from it.
    """
    todo, seen = [_module_of(target) for target in targets], set()
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += _reads(_path_of(module))[1]
    return combine({module: _reads(_path_of(module))[0] for module in sorted(seen)})


def combine(value) -> str:
    """Short stable hash of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def exists(target: str) -> bool:
    """Whether the module of a dotted name is a file of the package and defines the name's last part."""
    try:
        text = _path_of(_module_of(target)).read_text()
    except FileNotFoundError:
        return False
    return bool(re.search(rf"^(class|def) {re.escape(target.rsplit('.', 1)[1])}\b", text, re.MULTILINE))


@functools.cache
def _path_of(module: str) -> Path:
    base = SOURCE.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _module_of(target: str) -> str:
    name = target.replace(":", ".")
    return name if _path_of(name).exists() else name.rsplit(".", 1)[0]


@functools.cache
def _reads(path: Path) -> tuple[str, tuple[str, ...]]:
    """Hash of one module's normalised tree, and the modules of the package that it imports."""
    tree = ast.parse(path.read_text())
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports += [f"{node.module}.{alias.name}" for alias in node.names]
        body = getattr(node, "body", None)
        if isinstance(body, list):
            rest = body[1:] if body and _is_docstring(body[0]) else body
            node.body = [part for part in rest if not _is_protocol(part)]
    inside = {_module_of(name) for name in imports if name.split(".")[0] == "parsimony"}
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(sorted(inside))


def _is_protocol(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "Protocol" for base in node.bases)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
