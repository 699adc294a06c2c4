# SPDX-License-Identifier: GPL-2.0-only
"""The units: systemd itself reads and judges them, and the command line knows what they start."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.cli import main, make_parser
from soak.config.listen import parse_listen
from soak.config.sections import Config, load_config
from soak.errors import UsageError
from soak.machine.service import install as install_module
from soak.machine.service.install import refuse_hidden
from soak.machine.service.units import MARKER, PLACES, UNITS, Service, command_line, example_config
from soak.model.exit_codes import PLAIN
from tests.support.soak import DEADLINE, deterministic

# Exposure levels as systemd-analyze takes them, in tenths. The soak is root and drives vfio, BPF and
# mounts; its unit says, setting by setting, what it cannot bear.
MOST_EXPOSED = {"dax-soak.service": 70, "dax-soak-exporter.service": 20}
SERVICE = Service(
    Path("/opt/dax-soak/bin/python"), PurePosixPath("/etc/dax-soak/soak.toml"), "127.0.0.1:9823"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "root"
    directory.mkdir()
    return directory


def unit_path(root: Path, name: str) -> Path:
    return root / "etc/systemd/system" / name


def settings(text: str) -> dict[str, list[str]]:
    """Return the settings of a unit; each may be said more than once."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def left_behind(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert shutil.which("systemd-analyze"), "run 'dax-soak check --install --for-tests' as root"
    return subprocess.run(
        ["systemd-analyze", *arguments], check=False, capture_output=True, text=True, timeout=DEADLINE
    )


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_units(root: Path, name: str) -> None:
    assert main(["install", "--root", str(root)]) == 0
    result = analyze("verify", "--man=no", str(unit_path(root, name)))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_systemd_rejects_a_broken_unit(root: Path) -> None:
    assert main(["install", "--root", str(root)]) == 0
    path = unit_path(root, UNITS[0])
    path.write_text(path.read_text().replace("WatchdogSec=2min", "WatchdogSecs=soon"))
    assert "WatchdogSecs" in analyze("verify", "--man=no", str(path)).stderr


@pytest.mark.parametrize(("name", "most"), MOST_EXPOSED.items())
def test_unit_exposure_stays_below_its_bound(root: Path, name: str, most: int) -> None:
    assert main(["install", "--root", str(root)]) == 0
    path = str(unit_path(root, name))
    words = ("security", "--no-pager", "--offline=true")
    result = analyze(*words, f"--threshold={most}", path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert analyze(*words, "--threshold=5", path).returncode != 0


def exec_start(text: str) -> list[str]:
    (line,) = settings(text)["ExecStart"]
    words = shlex.split(line)
    assert words[1:4] == ["-P", "-m", "soak.cli"]
    return [words[0], *words[4:]]


def test_units_start_valid_command_lines() -> None:
    files = {place.name: text for place, text in SERVICE.files().items()}
    interpreter, *words = exec_start(files["dax-soak.service"])
    assert interpreter == "/opt/dax-soak/bin/python"
    options = make_parser().parse_args(words)
    assert options.config == Path("/etc/dax-soak/soak.toml")
    assert options.resume
    assert parse_listen(options.watch_exporter) == ("127.0.0.1", 9823)
    _, *words = exec_start(files["dax-soak-exporter.service"])
    options = make_parser().parse_args(words)
    assert options.run == "/var/lib/dax-soak/runs/latest"
    assert options.listen == "127.0.0.1:9823"


def test_service_restarts_after_a_crash_only() -> None:
    (text,) = [text for place, text in SERVICE.files().items() if place.name == UNITS[0]]
    (codes,) = settings(text)["RestartPreventExitStatus"]
    prevented = {int(code) for code in codes.split()}
    assert settings(text)["Restart"] == ["on-failure"]
    assert prevented == {*PLAIN.verdicts.values(), PLAIN.usage} - {0}
    assert PLAIN.crash not in prevented


words = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" %$'\"\\;"), min_size=1)


@given(st.lists(words, min_size=1, max_size=3))
@deterministic
def test_quoted_words_read_back_equal(line: list[str]) -> None:
    """Quotes and backslashes mean here what they mean to a shell; % and $ come after them."""
    read = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(command_line(line))]
    assert read == line


@pytest.mark.parametrize("word", ["a\nb", "a\0", "\x1b"])
def test_an_unprintable_path_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="which a systemd unit cannot hold"):
        command_line([word])


def test_systemd_finds_a_path_with_spaces(tmp_path: Path, root: Path) -> None:
    program = tmp_path / "my own 100% python"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for place, text in Service(program, SERVICE.config, SERVICE.listen).files().items():
        (root / place.name).write_text(text)
    result = analyze("verify", "--man=no", *(str(root / name) for name in UNITS))
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("mark", "\"'\\$")
def test_program_path_invalid_for_systemd_is_refused(mark: str) -> None:
    service = Service(Path(f"/opt/{mark}/python"), SERVICE.config, SERVICE.listen)
    with pytest.raises(UsageError, match="Install dax-soak in another directory"):
        service.files()


def test_example_configuration_explains_every_key(tmp_path: Path) -> None:
    path = tmp_path / "soak.toml"
    path.write_text(example_config())
    assert load_config(path) == Config()
    said = [line for line in example_config().splitlines() if not line.startswith("# ")]
    path.write_text("\n".join(line.removeprefix("#") for line in said))
    config = load_config(path)
    assert {region.kind for region in config.regions} == {"device-dax", "fs-dax", "anonymous"}
    table = tomllib.loads(path.read_text())
    for section, keys in Config().to_table().items():
        assert section in table
        assert section in {"region", "known-issues"} or set(keys) <= set(table[section])


def test_uninstall_removes_installed_files(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install", "--root", str(root)]) == 0
    told = capsys.readouterr().out
    assert "systemctl enable --now" in told
    assert left_behind(root) == {
        "etc/dax-soak/soak.toml",
        "etc/systemd/system/dax-soak.service",
        "etc/systemd/system/dax-soak-exporter.service",
        "etc/sysusers.d/dax-soak.conf",
        "etc/tmpfiles.d/dax-soak.conf",
    }
    for place in PLACES:
        path = root / place.relative_to("/")
        assert path.read_text().startswith(MARKER)
        assert path.stat().st_mode & 0o777 == 0o644
    (root / "etc/dax-soak/soak.toml").write_text("[run]\nseed = 5\n")
    assert main(["install", "--root", str(root), "--exporter-listen", "[::1]:9000"]) == 0
    assert "--listen [::1]:9000" in unit_path(root, UNITS[1]).read_text()
    assert "--watch-exporter [::1]:9000" in unit_path(root, UNITS[0]).read_text()
    assert main(["install", "--root", str(root), "--uninstall"]) == 0
    assert left_behind(root) == {"etc/dax-soak/soak.toml"}
    assert (root / "etc/dax-soak/soak.toml").read_text() == "[run]\nseed = 5\n"
    assert main(["install", "--root", str(root), "--uninstall"]) == 0


def test_service_runs_the_given_configuration(root: Path) -> None:
    assert main(["install", "--root", str(root), "--config", "/srv/my soak.toml"]) == 0
    words = exec_start(unit_path(root, UNITS[0]).read_text())
    assert words[words.index("-c") + 1] == "/srv/my soak.toml"
    assert (root / "srv/my soak.toml").exists()


def test_dry_run_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install", "--root", str(root), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(f"==> {place} <==" in shown for place in PLACES)
    assert left_behind(root) == set()
    main(["install", "--root", str(root)])
    before = left_behind(root)
    assert main(["install", "--root", str(root), "--uninstall", "--dry-run"]) == 0
    assert left_behind(root) == before


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["install", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (sentence,) = captured.err.splitlines()
    return sentence


@pytest.mark.parametrize("more", [(), ("--uninstall",)])
def test_foreign_units_are_left_alone(
    root: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    path = unit_path(root, UNITS[1])
    path.parent.mkdir(parents=True)
    path.write_text("[Unit]\n")
    sentence = refusal(capsys, "--root", str(root), *more)
    assert str(path) in sentence
    assert left_behind(root) == {str(path.relative_to(root))}
    assert path.read_text() == "[Unit]\n"
    path.unlink()
    path.symlink_to("/dev/null")  # what 'systemctl mask' makes
    assert str(path) in refusal(capsys, "--root", str(root), *more)
    assert path.is_symlink()


def test_an_enabled_unit_is_not_removed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["install", "--root", str(root)])
    capsys.readouterr()
    wants = unit_path(root, "multi-user.target.wants")
    wants.mkdir()
    (wants / UNITS[0]).symlink_to(f"/etc/systemd/system/{UNITS[0]}")
    assert "systemctl disable --now" in refusal(capsys, "--root", str(root), "--uninstall")
    assert unit_path(root, UNITS[0]).exists()


@pytest.mark.parametrize("more", [(), ("--uninstall",)])
def test_install_needs_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    # Should it not be refused, nothing must reach this machine's own services.
    monkeypatch.setattr(install_module, "below", lambda _root, place: Path("/nonexistent") / place)
    assert "Only root" in refusal(capsys, *more)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--exporter-listen", "9823"], ["--exporter-listen", "'9823'", "HOST:PORT"]),
        (["--exporter-listen", "127.0.0.1:0"], ["--exporter-listen", "above 0"]),
        (["--root", "/no/such/root"], ["'/no/such/root'", "not a directory"]),
        (["--root", "/no/such/root", "--config", "soak.toml"], ["'soak.toml'", "absolute"]),
    ],
)
def test_invalid_arguments_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: list[str]
) -> None:
    sentence = refusal(capsys, *arguments)
    for word in told:
        assert word in sentence


def test_unwritable_directory_is_an_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "etc").write_text("")
    assert "cannot be written" in refusal(capsys, "--root", str(root))


def test_program_unreadable_for_the_exporter_is_refused(tmp_path: Path) -> None:
    refuse_hidden([Path("/usr/bin")])
    for hidden in (Path("/root/dax-soak"), Path("/home/me/dax-soak"), tmp_path):
        with pytest.raises(UsageError, match="which the exporter's user cannot read"):
            refuse_hidden([hidden])
