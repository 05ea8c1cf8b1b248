"""The user's own code: which files a module is made of, and their digests without comments."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

from gradscope.ablation.own_modules import is_own, spec_of, with_packages


def code_of(module: str) -> dict[str, str]:
    """Digests of the files of a module and of all that it imports of the user's own project.

    Own is what lies neither in the standard library nor among installed packages. Imports are read
    from the source, those inside functions too; what is imported by a computed name is not seen.
    Comments and blank lines do not count.

    Args:
        module: dotted name; none of it is imported.

    Returns:
        File, as its module is named (``nets/blocks.py``) -> digest, hex.
    """
    found: dict[str, str] = {}
    waiting, seen = [module], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        spec = spec_of(name)
        if spec is None or not spec.has_location or not is_own(Path(str(spec.origin))):
            continue
        path = Path(str(spec.origin))
        source = path.read_bytes()
        is_package = spec.submodule_search_locations is not None
        stem = name.replace(".", "/") + ("/__init__" if is_package else "")
        found[stem + path.suffix] = digest(_code(source) if path.suffix == ".py" else source)
        if path.suffix == ".py":
            package = name if is_package else name.rpartition(".")[0]
            waiting += [
                part for target in _imported(source, package) for part in with_packages(target)
            ]
    return found


def _imported(source: bytes, package: str) -> Iterator[str]:
    """Names of modules that a source imports, or might: ``from a import b`` may mean ``a.b``."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # its import says so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                try:
                    base = importlib.util.resolve_name("." * node.level + base, package)
                except ImportError:  # beyond the top
                    continue
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _code(source: bytes) -> bytes:
    """A Python source without comments and blank lines."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        lines = source.decode(encoding).splitlines(keepends=True)
        tokens = list(tokenize.generate_tokens(iter(lines).__next__))
    except (SyntaxError, ValueError, tokenize.TokenError):
        return source
    for token in tokens:
        row, column = token.start
        before = token.line[:column].strip()
        if token.type == tokenize.COMMENT:
            lines[row - 1] = lines[row - 1][:column].rstrip() + "\n" if before else ""
        elif token.type == tokenize.NL and not before:
            lines[row - 1] = ""
    return "".join(lines).encode()


def digest(*parts: bytes) -> str:
    """Sixteen hex digits that stand for some bytes."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]
