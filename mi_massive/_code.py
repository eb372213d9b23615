"""Which code of this package computed a kept result.

A version number says too little where it stays while the code changes, and too much where it moves
with every commit. What decides a result is what its modules do: everything that they import from
this package, wherever the statement stands, and the package's data files. Comments, docstrings and
layout decide nothing. Does not show: versions of other packages; they stand in each provenance.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

_PACKAGE: Final = Path(__file__).parent


@cache
def code_digest(module: str, *, package: Path = _PACKAGE) -> str:
    """Hash of a module, of all that it imports from its package, and of the package's data.

    Args:
        module: Full name, such as `mi_massive.evaluation`.
        package: The package's folder.
    """
    digest = hashlib.sha256()
    for name in code_modules(module, package=package):
        digest.update(f"{name}\n{_read(name, package).statements}\n".encode())
    for path in sorted((package / "data").rglob("*")):
        if path.is_file() and path.suffix != ".py":
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def code_modules(module: str, *, package: Path = _PACKAGE) -> tuple[str, ...]:
    """A module and all that it imports from its package, directly or not, by name.

    Raises:
        ValueError: If the package has no such module.
    """
    if _file(module, package) is None:
        raise ValueError(f"module must be one of {package.name}, got {module!r}; correct it")
    found, left = set[str](), [module]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += _read(name, package).imports
    return tuple(sorted(found))


def _file(module: str, package: Path) -> Path | None:
    """Where a module's source lies; None for what is no module of the package."""
    first, *inner = module.split(".")
    path = package.joinpath(*inner)
    choices = (path.with_suffix(".py"), path / "__init__.py") if inner else ()
    return next((p for p in choices if first == package.name and p.is_file()), None)


class _Source(NamedTuple):
    """What a module says."""

    statements: str
    imports: tuple[str, ...]


@cache
def _read(module: str, package: Path) -> _Source:
    """A module, read once whatever imports it."""
    path = _file(module, package)
    assert path is not None  # only names that were found are asked for
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = tuple(_imports(tree, package))
    return _Source(ast.dump(_without_docstrings(tree)), imports)


def _imports(tree: ast.Module, package: Path) -> Iterator[str]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if _file(name, package) is not None)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """The tree without strings that stand alone: docstrings of modules, functions and fields."""
    for node in ast.walk(tree):
        body: Any = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [statement for statement in cast(list[Any], body) if not _is_text(statement)]
            cast(Any, node).body = kept
    return tree


def _is_text(node: object) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
