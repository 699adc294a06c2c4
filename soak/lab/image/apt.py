# SPDX-License-Identifier: GPL-2.0-only
"""Fetches packages of any Debian suite with the machine's apt, and never installs them.

apt gets separate directories (sources, state, an empty dpkg status), so the machine's package database
stays unchanged. The mirror is that of the machine's apt.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from soak.errors import UsageError
from soak.files.printable import printable
from soak.process.output import put_error

if TYPE_CHECKING:
    from collections.abc import Callable

# The keys of all suites, from the package debian-archive-keyring.
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_INDEX_LIFETIME_SECONDS = 24 * 3600
_TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Mirror:
    """The URLs of Debian's archive and its security updates in the machine's apt."""

    archive: str
    security: str | None


def machine_mirror() -> Mirror:
    """Read the machine's own apt configuration.

    Raises:
        UsageError: apt is missing, or has no Debian archive in its sources.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise UsageError(
            "apt-get and dpkg-deb, which fetch kernels and the guest's root, were not found: run the lab "
            "on Debian or a derivative."
        )
    wanted = "$(ORIGIN)|$(RELEASE)|$(SITE)"
    listed = _run(["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"])
    if listed.returncode != 0:
        raise UsageError(
            f"apt on this machine cannot list its sources ({_last_line(listed.stderr)}): repair "
            f"'apt-get indextargets'."
        )
    sites: dict[bool, str] = {}
    for line in listed.stdout.splitlines():
        origin, _, rest = line.partition("|")
        release, _, site = rest.partition("|")
        if origin == "Debian":
            sites.setdefault(release.endswith("-security"), site)
    if False not in sites:
        raise UsageError(
            "apt on this machine has no Debian archive in its sources, or 'apt-get update' never ran: "
            "add one and run 'apt-get update'."
        )
    return Mirror(sites[False], sites.get(True))


class Suite:
    """One Debian suite, with its own apt directories below `directory`."""

    def __init__(self, name: str, directory: Path, mirror: Mirror) -> None:
        self.name = name
        self._directory = directory
        self._mirror = mirror
        self._options = [
            "-o",
            f"Dir::Etc::sourcelist={directory}/sources.list",
            "-o",
            "Dir::Etc::sourceparts=/dev/null",
            "-o",
            f"Dir::State={directory}/state",
            "-o",
            f"Dir::State::status={directory}/state/status",
            "-o",
            f"Dir::Cache={directory}/cache",
            # As root, apt would drop to a user who cannot read a private cache directory.
            "-o",
            "APT::Sandbox::User=root",
            "-o",
            "Debug::NoLocking=1",
            "-qq",
        ]

    def update(self) -> None:
        """Fetch the package index, unless a recent one is cached.

        If that fails, use an older index, with a warning.

        Raises:
            UsageError: the index cannot be fetched, and no older one is cached.
        """
        stamp = self._directory / "updated"
        fresh = stamp.exists() and time.time() - stamp.stat().st_mtime < _INDEX_LIFETIME_SECONDS
        if fresh:
            return
        for part in ("state/lists/partial", "cache/archives/partial"):
            (self._directory / part).mkdir(parents=True, exist_ok=True)
        (self._directory / "state/status").touch()
        signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
        sources = [f"deb {signed}{self._mirror.archive} {self.name} main"]
        if self._mirror.security and self.name.isalpha() and self.name != "sid":
            sources.append(f"deb {signed}{self._mirror.security} {self.name}-security main")
        (self._directory / "sources.list").write_text("\n".join(sources) + "\n")
        result = self._apt("apt-get", "update", "--error-on=any")
        if result.returncode == 0:
            stamp.touch()
            return
        why = _last_line(result.stderr)
        if not stamp.exists():
            raise UsageError(
                f"The package index of Debian's suite {self.name!r} could not be fetched ({why}): "
                f"check the network."
            )
        fetched = datetime.fromtimestamp(stamp.stat().st_mtime, UTC)
        put_error(
            f"dax-soak: warning: the package index of Debian's suite {self.name!r} could not be updated "
            f"({printable(why)}): using that of {fetched:%Y-%m-%d}, without newer packages."
        )

    def cached(self, query: str, resolve: Callable[[], tuple[list[str], str]]) -> tuple[list[str], str]:
        """Return the cached result of a query, as long as the index is unchanged: apt takes seconds."""
        stamp, result = self._directory / "updated", self._directory / f"{query}.json"
        if result.exists() and result.stat().st_mtime >= stamp.stat().st_mtime:
            names, version = json.loads(result.read_text())
            return names, version
        found = resolve()
        result.write_text(json.dumps(found))
        return found

    def depends(self, package: str) -> list[str]:
        """Return the names of the packages that the newest version of `package` depends on."""
        shown = self._apt("apt-cache", "show", "--no-all-versions", package)
        if shown.returncode != 0:
            raise UsageError(f"Debian's suite {self.name!r} has no package {package!r}.")
        line = re.search(r"^Depends: (.*)$", shown.stdout, re.MULTILINE)
        return [item.split()[0] for item in line[1].split(",")] if line else []

    def version(self, package: str) -> str:
        """Return the newest version of `package`."""
        shown = self._apt("apt-cache", "show", "--no-all-versions", package)
        line = re.search(r"^Version: (.*)$", shown.stdout, re.MULTILINE)
        if line is None:
            raise UsageError(f"Debian's suite {self.name!r} has no package {package!r}.")
        return line[1]

    def unpack(self, packages: list[str], target: Path) -> None:
        """Fetch these packages alone, and unpack them below `target`."""
        archives = self._fresh_archives()
        result = self._apt("apt-get", "download", *packages, cwd=archives)
        self._unpack_all(result, archives, target, frozenset())

    def unpack_with_dependencies(
        self, packages: list[str], target: Path, unwanted: frozenset[str]
    ) -> None:
        """Fetch these packages with their dependencies, and unpack all but the `unwanted` ones."""
        archives = self._fresh_archives()
        result = self._apt(
            "apt-get",
            "install",
            "--yes",
            "--no-install-recommends",
            "--download-only",
            "-o",
            f"Dir::Cache::archives={archives}",
            *packages,
        )
        self._unpack_all(result, archives, target, unwanted)

    def _fresh_archives(self) -> Path:
        archives = self._directory / "archives"
        shutil.rmtree(archives, ignore_errors=True)
        (archives / "partial").mkdir(parents=True)
        return archives

    def _unpack_all(
        self,
        fetched: subprocess.CompletedProcess[str],
        archives: Path,
        target: Path,
        unwanted: frozenset[str],
    ) -> None:
        if fetched.returncode != 0:
            raise UsageError(
                f"Packages of Debian's suite {self.name!r} could not be fetched: "
                f"{_last_line(fetched.stderr)}"
            )
        for package in sorted(archives.glob("*.deb")):
            if package.name.split("_")[0] not in unwanted:
                unpacked = _run(["dpkg-deb", "--extract", package, target])
                if unpacked.returncode != 0:
                    raise UsageError(
                        f"{package.name} of Debian's suite {self.name!r} could not be unpacked in "
                        f"{target}: {_last_line(unpacked.stderr)}"
                    )
        shutil.rmtree(archives)

    def _apt(
        self, tool: str, *arguments: str, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return _run([tool, *self._options, *arguments], cwd)


def file_name(version: str) -> str:
    """Return a package's version, usable in a file name."""
    return version.replace(":", "_").replace("~", "-")


def _run(words: list[str | Path], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run an apt program.

    Raises:
        UsageError: it cannot be started, or does not end in time.
    """
    try:
        return subprocess.run(
            words,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=cwd,
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"{words[0]} did not end within {_TIMEOUT_SECONDS} s: check the network and the load of this "
            f"machine."
        ) from None
    except OSError as error:
        raise UsageError(f"{words[0]} cannot be started: {error.strerror}.") from None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"
