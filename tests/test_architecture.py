"""The shape of the program: who may import whom, and what must stand nowhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING

import pytest

from soak.model.expectations import EXPECTATIONS
from tests.test_exporter_support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST_LINES = 500
# Longer than it should be; what has become short is taken out.
TOO_LONG: set[str] = set()

ABI = "soak.abi"
WORDS = {"soak.config.sections", "soak.errors", "soak.model.vocabulary"}
LEDGER = {"soak.ledger.memory", "soak.ledger.layout", "soak.ledger.schema", "soak.model.vocabulary"}
NOTIFYING = {"soak.process.notify", "soak.process.http_probe", "soak.process.watchdog"}

# What the modules of a part may import of this project, by name or as a whole package. `soak`
# stands for soak/__init__.py alone.
MAY_IMPORT: dict[str, set[str]] = {
    "soak.abi": {ABI},
    "soak.regions": {ABI, "soak.regions", "soak.process.helper", *WORDS},
    "soak.regions.transfer_disks": {ABI, "soak.errors", "soak.process.helper"},
    "soak.machine": {
        ABI,
        "soak.regions.transfer_disks",
        "soak.machine",
        "soak.regions",
        "soak.process.helper",
        *WORDS,
    },
    "soak.workload": {
        *(
            ABI,
            "soak.regions.transfer_disks",
            "soak.regions",
            "soak.workload",
            "soak.model.expectations",
            "soak.errors",
        ),
        *LEDGER,
    },
    "soak.detectors": {
        *(
            ABI,
            "soak.detectors",
            "soak.regions.transfer_disks",
            "soak.regions",
            "soak.model.expectations",
            "soak.process.helper",
        ),
        *("soak.model.known_issues", *LEDGER),
    },
    "exporter": {
        *("soak", "exporter", "soak.errors", "soak.config.listen", "soak.log", *NOTIFYING, *LEDGER),
    },
    "soak.machine.changes": {
        *(ABI, "soak.machine.changes", "soak.errors", "soak.process.helper", "soak.journal.writer"),
        "soak.files.process_lock",
    },
    "soak.files.process_lock": set(),
    # The words of the project depend on nothing that could depend on them.
    "soak.model.vocabulary": set(),
    "soak.errors": set(),
    "soak.config.listen": {"soak.errors"},
    "soak.log": set(),
    "soak.ledger.memory": {"soak.errors", "soak.ledger.layout", "soak.files.regular"},
    "soak.supervisor.control": {"soak.errors"},
    "soak.ledger.layout": {"soak.files.bounded_json", "soak.files.printable", "soak.files.regular"},
    "soak.files.bounded_json": set(),
    "soak.files.printable": set(),
    "soak.files.regular": set(),
    "soak.config.toml_text": set(),
    "soak.config.sections": {
        *("soak.config.values", "soak.errors", "soak.config.listen", "soak.files.printable"),
        *("soak.files.regular", "soak.config.toml_text", "soak.model.vocabulary"),
    },
    "soak.config.values": {"soak.config.listen", "soak.model.vocabulary"},
    "soak.ledger.schema": {"soak.ledger.layout", "soak.model.vocabulary"},
    "soak.process.helper": set(),
    "soak.journal.writer": {
        *(ABI, "soak.journal.backlog", "soak.journal.file", "soak.journal.line"),
        *("soak.journal.reading", "soak.model.vocabulary"),
    },
    "soak.journal.backlog": {"soak.model.vocabulary"},
    "soak.journal.file": {"soak.journal.reading", "soak.files.regular"},
    "soak.journal.reading": {"soak.errors", "soak.journal.line", "soak.files.regular"},
    "soak.journal.line": {"soak.files.bounded_json"},
    "soak.journal.events": {"soak.files.printable", "soak.model.vocabulary"},
    "soak.machine.service": {"soak", "soak.machine.service", "soak.config.sections", "soak.errors"},
    "soak.process.notify": {"soak.errors"},
    "soak.process.http_probe": {"soak.errors"},
    "soak.process.watchdog": {"soak.process.notify"},
    "soak.verdict": {"soak.journal.events", "soak.journal.reading", "soak.model.vocabulary"},
    "soak.model.expectations": {"soak.model.vocabulary", "soak.ledger.schema"},
    "soak.model.known_issues": {"soak.model.vocabulary", "soak.model.expectations"},
}


@cache
def modules() -> dict[str, Path]:
    """Return all modules of the program by name."""
    found = {}
    for package in ("soak", "exporter"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_in(module: str, part: str) -> bool:
    return module == part or (part != "soak" and module.startswith(f"{part}."))


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


def test_the_program_is_found() -> None:
    assert {"soak", "soak.cli", "soak.abi.btf", "soak.lab.guest.init", "exporter.server"} <= set(
        modules()
    )
    assert "soak.ledger.layout" in own(all_imports("soak.ledger.schema"))
    assert "soak.cli" not in imports_when_loaded("soak.lab.command")


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_point_one_way(part: str) -> None:
    allowed = {*MAY_IMPORT[part]}
    members = [module for module in modules() if is_in(module, part)]
    assert members
    wrong = {
        f"{module} imports {name}"
        for module in members
        for name in own(all_imports(module))
        if not any(is_in(name, place) for place in allowed)
    }
    assert wrong == set()


def test_only_the_lab_and_the_commands_know_the_lab() -> None:
    users = {
        module
        for module in modules()
        if not is_in(module, "soak.lab") and any(is_in(n, "soak.lab") for n in all_imports(module))
    }
    # The table of faults is printed from the place where they are.
    assert users <= {"soak.cli", "soak.report.tables"}


def test_only_the_lab_and_the_commands_know_the_exporter() -> None:
    users = {
        module
        for module in modules()
        if not is_in(module, "exporter") and any(is_in(n, "exporter") for n in all_imports(module))
    }
    commands = {"soak.cli", "soak.supervisor.local"}
    assert all(user in commands or is_in(user, "soak.lab") for user in users)


def test_nothing_imports_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path, module))}"
        if module in done or module not in modules():
            return
        for name in own(imports_when_loaded(module)) - {module}:
            visit(name, (*path, module))
        done.add(module)

    for module in modules():
        visit(module, ())


def test_the_guest_starts_with_the_standard_library_alone() -> None:
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


def test_no_file_is_too_long_to_be_read() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in modules().values()
    }
    assert {name for name, length in lengths.items() if length > MOST_LINES} == TOO_LONG


@pytest.mark.parametrize("row", EXPECTATIONS, ids=lambda row: f"{row.operations[0]}-{row.region}")
def test_every_expectation_says_why(row: object) -> None:
    reason = vars(row)["reason"]
    assert len(reason.split()) > 5


def tracked_files() -> list[Path]:
    """Return the project's own files: those of the repository, or of an unpacked archive."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"],
            cwd=ROOT, check=True, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        names = [name for name in listed.stdout.split("\0") if name]
    else:
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
        names = [
            str(path) for path in paths if not any(part.startswith(".v") for part in path.parts)
        ]
    # A file that was removed and not yet committed is listed, and is not there.
    return [ROOT / name for name in names if (ROOT / name).is_file()]


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
