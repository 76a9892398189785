"""The fenced blocks of README.md and docs/: what a reader copies.

A block of YAML is one of three kinds, which a reader sees, too: manifests (each document has
`apiVersion:`), values of the chart (the first line is `# values.yaml`), or else a part of an
InferenceService, shown from `spec:` on.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
VALUES = "# values.yaml\n"

Kind = Literal["manifests", "values", "part"]
Object = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """`heading` is the one it stands under, `line` that of its first line in the page."""

    page: str
    line: int
    language: str
    heading: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def kind(self) -> Kind:
        """ValueError for a block of YAML that is none of the three."""
        if self.text.startswith(VALUES):
            return "values"
        found = documents(self.text)
        if all("apiVersion" in each and "kind" in each for each in found):
            return "manifests"
        if len(found) == 1 and set(found[0]) <= {"metadata", "spec"}:
            return "part"
        raise ValueError(
            f"{self}: a manifest has apiVersion and kind, values begin with {VALUES.strip()!r}, a "
            "part of an InferenceService begins with spec:"
        )


def blocks(page: Path) -> Iterator[Block]:
    """All of a page, those in lists too; ValueError for one that does not end."""
    heading, opened, lines = "", None, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = line.strip().startswith("```")
        if opened is None and fence:
            opened, lines = (number + 1, line.strip().removeprefix("```")), []
        elif opened is not None and fence:
            text = textwrap.dedent("\n".join(lines) + "\n")
            yield Block(page.relative_to(ROOT).as_posix(), *opened, heading, text)
            opened = None
        elif opened is not None:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    if opened is not None:
        raise ValueError(f"{page}:{opened[0]}: this block does not end")


def of_language(*languages: str) -> list[Block]:
    return [each for page in PAGES for each in blocks(page) if each.language in languages]


def documents(text: str) -> list[Object]:
    return [each for each in yaml.safe_load_all(text) if each is not None]


def of_kind(kind: Kind) -> list[Block]:
    return [each for each in of_language("yaml") if each.kind == kind]


def whole(part: Block) -> Object:
    """The InferenceService that a part is shown of, as small as it can be."""
    (shown,) = documents(part.text)
    return {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "part", **shown.get("metadata", {})},
        "spec": {"model": {"uri": "hf://example/model"}, **shown.get("spec", {})},
    }


def services() -> list[tuple[str, Object]]:
    """Every InferenceService of pages and examples, with where it stands."""
    found = [(str(each), whole(each)) for each in of_kind("part")]
    texts = [(str(each), each.text) for each in of_kind("manifests")]
    texts += [(path.name, path.read_text(encoding="utf-8")) for path in EXAMPLES]
    for where, text in texts:
        mine = [each for each in documents(text) if each["kind"] == "InferenceService"]
        found += [(where, each) for each in mine]
    return found
