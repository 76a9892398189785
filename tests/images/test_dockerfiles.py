"""The images' recipes. None was built here (no container runtime): what can be read is checked."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from octavo_operator.render.deployment import USER_ID

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "images").glob("*/Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_there_are_two() -> None:
    assert [path.parent.name for path in RECIPES] == ["operator", "server"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_a_recipe(path: Path) -> None:
    steps = instructions(path)
    last = dict(steps)
    # Runs as the pods' user, never as root.
    assert last["USER"] == f"{USER_ID}:{USER_ID}"
    assert json.loads(last["ENTRYPOINT"]) == ["octavo"]
    # The base is the builder's choice, and no registry is named.
    assert all(rest.startswith("${PYTHON}") for word, rest in steps if word == "FROM")
    assert "/" not in last["ARG"].partition("=")[2] or path.parent.name == "server"
    (extra,) = re.findall(r"'\.\[(\w+)\]'", path.read_text(encoding="utf-8"))
    assert extra == path.parent.name
    assert extra in EXTRAS
    assert "-c constraints.txt" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_what_is_copied_is_there_and_is_not_ignored(path: Path) -> None:
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    for word, rest in instructions(path):
        if word == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                assert source in kept, source


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_what_the_package_is_built_of_is_copied(path: Path) -> None:
    copied = {each for word, rest in instructions(path) if word == "COPY" for each in rest.split()}
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {each.partition("/")[0] for each in [*wheel["packages"], *wheel["force-include"]]}
    needed |= {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert needed <= copied


def test_the_operators_image_has_no_torch() -> None:
    names = [re.split(r"[>=<;\[ ]", each)[0] for each in EXTRAS["operator"]]
    assert not {"torch", "transformers", "triton", "numpy"} & set(names)
