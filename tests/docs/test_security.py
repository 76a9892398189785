"""docs/security.md says of the operator's rights what the chart gives."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from tests.docs.blocks import ROOT
from tests.docs.test_words import rows, section

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def rules(*files: str) -> list[dict[str, Any]]:
    return [
        rule
        for file in files
        for each in yaml.safe_load_all(
            (ROOT / "charts" / "octavo" / "files" / file).read_text(encoding="utf-8")
        )
        for rule in each.get("rules", ())
    ]


RULES = rules("rbac.yaml", "rbac-routing.yaml")
PARTS = {"The operator": RULES, "The metrics API": rules("rbac-metrics-api.yaml")}


@pytest.mark.parametrize("part", PARTS)
def test_the_table_of_rights_is_the_charts(part: str) -> None:
    given: dict[str, set[str]] = {}
    for rule in PARTS[part]:
        for resource in rule["resources"]:
            given.setdefault(resource, set()).update(rule["verbs"])
    told = {
        resource: set(verbs.split(", "))
        for resources, verbs, _ in rows(section(PAGE, part))
        for resource in re.findall(r"`([\w/]+)`", resources)
    }
    assert told == given


def test_it_says_what_is_deleted() -> None:
    deletes = {each for rule in RULES if "delete" in rule["verbs"] for each in rule["resources"]}
    assert deletes == {
        "apiservices", "horizontalpodautoscalers", "httproutes", "inferencepools",
        "networkpolicies",
    }  # fmt: skip
    assert "`httproutes`, `inferencepools` |" in PAGE
    assert "Else it deletes NetworkPolicies and HorizontalPodAutoscalers of its own alone" in PAGE
    assert not any("secrets" in rule["resources"] for rule in RULES)
