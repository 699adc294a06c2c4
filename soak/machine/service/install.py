# SPDX-License-Identifier: GPL-2.0-only
"""`dax-soak install`: writes or removes the systemd units and their files. It starts nothing."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

import soak
from soak.errors import UsageError
from soak.machine.service.units import (
    DEFAULT_CONFIG,
    MARKER,
    PLACES,
    SYSUSERS,
    TMPFILES,
    UNIT_DIRECTORY,
    UNITS,
    Service,
    example_config,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_FILE_MODE: Final = 0o644
# The exporter's unit hides these (ProtectHome=, PrivateTmp=), whatever their modes.
_HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - to refuse them
_WANTS: Final = UNIT_DIRECTORY / "multi-user.target.wants"
_NEXT: Final = f"""
Configure what to soak in {{config}}, then, as root:
    systemd-sysusers {SYSUSERS}
    systemd-tmpfiles --create {TMPFILES}
    systemctl daemon-reload
    systemctl enable --now {" ".join(UNITS)}
"""


def install(
    *, root: Path | None = None, config: Path | None = None, listen: str, dry_run: bool = False
) -> int:
    """Write the units, below `root` if given; with `dry_run` only print them.

    Raises:
        UsageError: a check failed and nothing was written, or a file cannot be written.
    """
    service = Service(_interpreter(), _config_place(config, root), listen)
    files = service.files()
    if dry_run:
        for place, text in files.items():
            print(f"==> {place} <==\n{text}")  # noqa: T201 - the command's output
        return 0
    _refuse_others(root)
    if root is None:
        refuse_hidden(_program_places())
    wanted = {below(root, place): text for place, text in files.items()}
    _refuse_foreign(wanted)
    example = below(root, service.config)
    if not _is_there(example):
        wanted[example] = example_config()
    _write(wanted)
    for path in wanted:
        print(f"wrote {path}")  # noqa: T201 - the same
    print(_NEXT.format(config=service.config))  # noqa: T201 - the same
    return 0


def uninstall(*, root: Path | None = None, dry_run: bool = False) -> int:
    """Remove the files of `install`, except the configuration and the runs.

    Raises:
        UsageError: a check failed and nothing was removed, or a file cannot be removed.
    """
    paths = [path for place in PLACES if _is_there(path := below(root, place))]
    enabled = [name for name in UNITS if below(root, _WANTS / name).is_symlink()]
    _refuse_foreign(paths)
    if not dry_run:
        _refuse_others(root)
        if enabled:
            raise UsageError(
                f"Still enabled: {', '.join(enabled)}. Run 'systemctl disable --now "
                f"{' '.join(UNITS)}' first."
            )
    for path in paths:
        if not dry_run:
            _unlink(path)
        print(f"{'would remove' if dry_run else 'removed'} {path}")  # noqa: T201 - the same
    print(  # noqa: T201 - the same
        "The configuration, the runs and the group dax-soak remain. Now run, as root: "
        "systemctl daemon-reload"
    )
    return 0


def below(root: Path | None, place: PurePosixPath) -> Path:
    return Path(place) if root is None else root / place.relative_to("/")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None


def refuse_hidden(places: Iterable[Path]) -> None:
    """Refuse a program that the exporter's dynamic user cannot read.

    Raises:
        UsageError: with the unreadable directory.
    """
    for place in places:
        hidden = any(place.is_relative_to(directory) for directory in _HIDDEN)
        # Following a link needs search permission on its own path and on its target's.
        for path in {*place.parents, place, *place.resolve().parents, place.resolve()}:
            if hidden or not path.stat().st_mode & stat.S_IXOTH:
                raise UsageError(
                    f"dax-soak is installed in {place}, which the exporter's user cannot read: install "
                    f"it in a directory that all users can read, such as /opt/dax-soak."
                )


def _program_places() -> list[Path]:
    """Return the directories of this program, its interpreter and its libraries."""
    package = Path(soak.__file__).parent.absolute()
    return [_interpreter().parent, Path(sys.base_prefix), package]


def _interpreter() -> Path:
    # Unresolved: through the link of its environment the interpreter finds the environment's packages.
    return Path(sys.executable).absolute()


def _config_place(config: Path | None, root: Path | None) -> PurePosixPath:
    if config is None:
        return DEFAULT_CONFIG
    if root is not None and not config.is_absolute():
        raise UsageError(
            f"--config {str(config)!r} is relative; with --root it must be an absolute path below it."
        )
    return PurePosixPath(config.absolute())


def _refuse_others(root: Path | None) -> None:
    if root is None and os.geteuid() != 0:
        raise UsageError(
            "Only root may change the services of this machine: use sudo, --root DIR to write to "
            "another directory, or --dry-run."
        )
    if root is not None and not (_is_there(root) and root.is_dir()):
        raise UsageError(f"--root {str(root)!r} is not a directory: make it first.")


def _refuse_foreign(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            if path.is_symlink() or (path.exists() and not _is_ours(path)):
                raise UsageError(
                    f"{path} was not written by 'dax-soak install': move it away, then try again."
                )
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}.") from error


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline().startswith(MARKER.encode())


def _write(files: Mapping[Path, str]) -> None:
    """Replace each file as a whole, so that no reader sees half of one."""
    for path, text in files.items():
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                unfinished.write_text(text, encoding="utf-8")
                unfinished.chmod(_FILE_MODE)
                unfinished.rename(path)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}.") from error


def _unlink(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise UsageError(f"{path} cannot be removed: {error.strerror}.") from error
