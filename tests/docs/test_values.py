"""Values of the chart that pages show or set on the command line: Helm renders them."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.charts.test_chart import template
from tests.docs.blocks import Block, of_kind, of_language


def sets(block: Block) -> list[list[str]]:
    """The --set options of each `helm install` and `helm upgrade` in a block."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith(("helm install", "helm upgrade")):
            words = shlex.split(line, comments=True)
            pairs = itertools.pairwise(words)
            found.append([f"--set={after}" for before, after in pairs if before == "--set"])
    return found


COMMANDS = [(block, each) for block in of_language("sh") for each in sets(block) if each]


def rendered_with(*options: str) -> str:
    return yaml.safe_dump_all(itertools.chain.from_iterable(template(*options).values()))


@pytest.mark.parametrize(("block", "options"), COMMANDS, ids=[str(each) for each, _ in COMMANDS])
def test_what_is_set_is_rendered(block: Block, options: list[str]) -> None:
    rendered = rendered_with(*options)
    for option in options:
        assert option.rpartition("=")[2] in rendered, option


@pytest.mark.parametrize("block", of_kind("values"), ids=str)
def test_values_are_rendered(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(block.text, encoding="utf-8")
    rendered = rendered_with(f"--values={path}")
    for leaf in leaves(yaml.safe_load(block.text)):
        assert re.search(re.escape(str(leaf)), rendered), leaf


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves(each)]
    if isinstance(value, list):
        return [leaf for each in value for leaf in leaves(each)]
    return [value]


def test_there_are_some() -> None:
    assert COMMANDS and of_kind("values")
