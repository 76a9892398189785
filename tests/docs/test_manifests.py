"""Every manifest that a reader can copy is one that the operator reads and renders."""

from __future__ import annotations

from typing import Any

import pytest
from tests.docs.blocks import Block, of_language, services

from octavo_operator import schema
from octavo_operator.render import render
from octavo_operator.spec import parse

SERVICES = services()


def test_every_block_is_of_a_kind() -> None:
    kinds = [each.kind for each in of_language("yaml")]  # raises for one that is of none
    assert {"manifests", "values", "part"} == set(kinds)
    assert not [str(each) for each in of_language("yml", "YAML")], "write ```yaml"


def test_a_block_of_no_kind_is_told() -> None:
    with pytest.raises(ValueError, match=r"docs/x\.md:7: a manifest has apiVersion"):
        _ = Block("docs/x.md", 7, "yaml", "", "cache: {size: 1Gi}\n").kind


@pytest.mark.parametrize(("where", "manifest"), SERVICES, ids=[where for where, _ in SERVICES])
def test_each_is_read_and_rendered(where: str, manifest: dict[str, Any]) -> None:
    assert not list(schema.problems(manifest))
    service = parse(manifest)
    deployment = next(each for each in render(service) if each["kind"] == "Deployment")
    assert deployment["metadata"]["name"] == manifest["metadata"]["name"]
