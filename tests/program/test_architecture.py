# SPDX-License-Identifier: GPL-2.0-only
"""The shape of the program: who may import whom, and what must stand nowhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING

import pytest

from soak.workload.expectations import EXPECTATIONS
from tests.support.program import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST_LINES = 500
# Longer than it should be; what has become short is taken out.
TOO_LONG: set[str] = set()

# The rooms of the program from the ground up: a room imports from those on lower floors alone.
FLOORS = (
    ("soak.errors", "soak.log", "soak.model", "soak.abi"),
    ("soak.files",),
    ("soak.process", "soak.config", "soak.ledger", "soak.journal"),
    ("soak.verdict",),
    ("soak.regions", "soak.run_directory", "exporter"),
    ("soak.machine", "soak.workload"),
    ("soak.detectors", "soak.report"),
    ("soak.supervisor",),
    ("soak.lab",),
    ("soak.cli",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MOST_ROOMS = 20
LICENCE = "SPDX-License-Identifier: GPL-2.0-only"


@cache
def modules() -> dict[str, Path]:
    """Return all modules of the program by name."""
    found = {}
    for package in ("soak", "exporter"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    return "exporter" if module.startswith("exporter") else ".".join(module.split(".")[:2])


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """Return what these statements import, submodules of a package by their own name."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(modules())
            names |= submodules or {node.module}
            if len(submodules) < len(node.names):
                names.add(node.module)
    return names


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text())


def all_imports(module: str) -> set[str]:
    """Return everything that a module imports, wherever it says so."""
    return imported(ast.walk(tree(module)))


def imports_when_loaded(module: str) -> set[str]:
    """Return what is imported by importing the module: not in functions, not for types alone."""

    def statements(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            yield child
            yield from statements(child)

    return imported(statements(tree(module)))


def own(names: set[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0] in {"soak", "exporter"}}


def test_modules_and_imports_are_found() -> None:
    assert {"soak", "soak.cli", "soak.abi.btf", "soak.lab.guest.init", "exporter.server"} <= set(
        modules()
    )
    assert "soak.ledger.layout" in own(all_imports("soak.ledger.schema"))
    # Those in functions are seen as well.
    assert "soak.lab.guest.faults" in all_imports("soak.cli")
    assert "soak.lab.guest.faults" not in imports_when_loaded("soak.cli")


def test_each_module_belongs_to_a_room() -> None:
    rooms = {room_of(module) for module in modules() if module != "soak"}
    assert rooms == FLOOR_OF.keys()
    assert len(rooms) <= MOST_ROOMS


def test_imports_point_down() -> None:
    """To a lower floor, or to the same room: also those in functions, and those for types."""
    wrong = {
        f"{module} imports {name}"
        for module in modules()
        for name in own(all_imports(module)) - {"soak"}
        if room_of(module) != room_of(name) and FLOOR_OF[room_of(module)] <= FLOOR_OF[room_of(name)]
    }
    assert wrong == set()


def test_imports_have_no_cycle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path, module))}"
        if module in done or module not in modules():
            return
        for name in own(all_imports(module)) - {module}:
            visit(name, (*path, module))
        done.add(module)

    for module in modules():
        visit(module, ())


def test_guest_init_needs_only_the_standard_library() -> None:
    """The first process of a guest says on the console what is missing: it must not miss anything."""
    queue, seen = ["soak.lab.guest.init"], set()
    while queue:
        module = queue.pop()
        if module in seen:
            continue
        seen.add(module)
        names = imports_when_loaded(module)
        foreign = {name.partition(".")[0] for name in names - own(names)}
        assert foreign <= {*sys.stdlib_module_names, "__future__"}, module
        # Importing a module imports the packages around it, too.
        for name in own(names):
            parts = name.split(".")
            queue += [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    assert "soak.lab.protocol" in seen


def test_no_file_is_too_long() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules().values()
    }
    assert {name for name, length in lengths.items() if length > MOST_LINES} == TOO_LONG


@pytest.mark.parametrize("row", EXPECTATIONS, ids=lambda row: f"{row.operations[0]}-{row.region}")
def test_every_expectation_has_a_reason(row: object) -> None:
    reason = vars(row)["reason"]
    assert len(reason.split()) > 5


def tracked_files() -> list[Path]:
    """Return the project's own files: those of the repository, or of an unpacked archive."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        names = [name for name in listed.stdout.split("\0") if name]
    else:
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
        names = [str(path) for path in paths if not any(part.startswith(".v") for part in path.parts)]
    # A file that was removed and not yet committed is listed, and is not there.
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_each_file_names_its_licence() -> None:
    """In one of its first lines; the licence itself need not."""
    missing = {
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path.name != "LICENSE" and LICENCE not in "".join(path.read_text().splitlines()[:2])
    }
    assert missing == set()


def test_no_package_registry_is_named() -> None:
    """Where packages come from is the machine's business: it may have a mirror, or no network."""
    # Put together here, or this file would name them.
    hosts = [
        ".".join(parts).encode()
        for parts in (
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("deb", "debian", "org"),
            ("snapshot", "debian", "org"),
            ("archive", "ubuntu", "com"),
            ("npmjs", "org"),
            ("crates", "io"),
            ("rubygems", "org"),
            ("proxy", "golang", "org"),
        )
    ]
    files = tracked_files()
    assert ROOT / "pyproject.toml" in files
    named = {
        f"{path.relative_to(ROOT)}: {host.decode()}"
        for path in files
        for host in hosts
        if host in path.read_bytes()
    }
    assert named == set()
