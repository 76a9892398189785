"""`octavo` itself: what a person sees before any subcommand runs."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import click
import pytest

from octavo_server import cli
from octavo_server.errors import InvalidSettings, OctavoError, OutOfMemory

ROOT = Path(__file__).resolve().parents[1]


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    path = ":".join(str(ROOT / folder) for folder in ("server", "kernels", "operator"))
    return subprocess.run(
        [sys.executable, "-m", "octavo_server.cli", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        check=False,
    )


def test_version() -> None:
    ran = run("--version")
    assert ran.returncode == 0
    assert ran.stdout.startswith("octavo, version 0.1.0")


def test_help_lists_every_command_without_importing_any() -> None:
    ran = run("--help")
    assert ran.returncode == 0
    for name, entry in cli.COMMANDS.items():
        assert name in ran.stdout
        assert entry.help in ran.stdout


def test_no_command_is_a_usage_error() -> None:
    ran = run()
    assert ran.returncode == 2
    assert "Commands:" in ran.stdout + ran.stderr


@pytest.mark.parametrize("argv", [["bogus"], ["--bogus"], ["serv"]])
def test_unknown_words_are_usage_errors(argv: list[str]) -> None:
    ran = run(*argv)
    assert ran.returncode == 2
    assert argv[0] in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_loads_and_has_help(name: str) -> None:
    ran = run(name, "--help")
    assert ran.returncode == 0, ran.stderr
    assert f"octavo {name}" in ran.stdout


def _command_that_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command()
    def command() -> None:
        raise error

    module = types.ModuleType("octavo_fake")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "octavo_fake", module)
    monkeypatch.setitem(cli.COMMANDS, "fake", cli.Entry("octavo_fake:command", "Fails.", "test"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OctavoError("plain"), 1),
        (OutOfMemory("the longest context that fits is 512"), 1),
        (InvalidSettings("--a contradicts --b"), 2),
        (KeyboardInterrupt(), 130),
        (click.ClickException("from click"), 1),
        (click.BadParameter("out of range"), 2),
        (SystemExit(7), 7),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    _command_that_raises(monkeypatch, error)
    with pytest.raises(SystemExit) as ended:
        cli.main(["fake"])
    assert ended.value.code == code
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    if isinstance(error, OctavoError):
        assert printed == f"error: {error}\n"


def test_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = cli.Entry("not_installed_anywhere:command", "Needs more.", "server")
    monkeypatch.setitem(cli.COMMANDS, "fake", entry)
    with pytest.raises(SystemExit) as ended:
        cli.main(["fake"])
    assert ended.value.code == 1
    assert "pip install '.[server]'" in capsys.readouterr().err
