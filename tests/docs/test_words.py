"""What pages name exists: flags, fields, values, metrics, annotations, variables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import click
import pytest
import yaml
from prometheus_client import generate_latest
from tests.docs.blocks import PAGES, ROOT, blocks, of_language

from octavo_operator import hub, lease, names, pinning, schema
from octavo_operator.drain import PRE_STOP_SECONDS, STOP_SECONDS
from octavo_operator.metrics import Metrics
from octavo_operator.queue import Queue
from octavo_operator.render.arguments import render_arguments
from octavo_operator.spec import parse
from octavo_server.cli import COMMANDS, group

# Of the programs beside octavo that pages call.
OTHERS = {
    "kubectl": {
        "--all-namespaces", "--docker-password", "--docker-server", "--docker-username", "--for",
        "--from-file", "--from-literal", "--namespace", "--overwrite", "--previous", "--raw",
        "--replicas",
        "--selector", "--server-side", "--timeout", "--validate",
    },
    "helm": {
        "--create-namespace", "--force-conflicts", "--install", "--reset-then-reuse-values",
        "--reuse-values", "--set", "--values",
    },
    "hf": {"--local-dir"},
    "kube-controller-manager": {"--kube-api-qps"},
}  # fmt: skip
FROM_VLLM = ROOT / "docs" / "from-vllm-serve.md"
MANIFEST = {
    "apiVersion": names.API_VERSION,
    "kind": names.KIND,
    "metadata": {"name": "a"},
    "spec": {"model": {"uri": "hf://org/model"}},
}


def code(text: str) -> Iterator[str]:
    """Spans and blocks of code."""
    yield from re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    yield from re.findall(r"`([^`]+)`", re.sub(r"```\w*\n.*?```", "", text, flags=re.DOTALL))


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))


def section(page: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert found, f"no section {heading}"
    return found.group(1)


def rows(text: str) -> list[list[str]]:
    """Of the tables in it, without their heads."""
    found = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in found]
    rules = [index for index, row in enumerate(cells) if set(row[0]) == {"-"}]
    heads = {index - 1 for index in rules} | set(rules)
    return [row for index, row in enumerate(cells) if index not in heads]


def known_flags() -> dict[str, set[str]]:
    """The flags of each subcommand."""
    context = click.Context(group)
    found = {}
    for name in COMMANDS:
        command = group.get_command(context, name)
        assert command is not None
        found[name] = {
            flag
            for each in command.params
            if isinstance(each, click.Option)
            for flag in (*each.opts, *each.secondary_opts)
        }
    return found


FLAGS = known_flags()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_exist(page: Any) -> None:
    text = page.read_text(encoding="utf-8")
    if page == FROM_VLLM:
        text = text.replace(section(text, "Refused"), "")
    scripts = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").rglob("*.py")
    )
    known = {"--help", "--version"}.union(*FLAGS.values(), *OTHERS.values(), flags_in(scripts))
    assert set().union(*map(flags_in, code(text))) - known == set()


def test_flags_of_other_programs_are_still_named() -> None:
    """A list of what is let through must not grow old."""
    named = set().union(
        *(flags_in(each) for page in PAGES for each in code(page.read_text(encoding="utf-8")))
    )
    assert set().union(*OTHERS.values()) - named == set()


def test_commands_have_the_flags_that_they_are_called_with() -> None:
    checked = 0
    for block in of_language("sh", "console", ""):
        text = block.text.replace("\\\n", " ")
        for name, rest in re.findall(r"\boctavo ([a-z-]+)((?: [^\n|;]*)?)", text):
            if name in FLAGS:
                assert flags_in(rest.split("#")[0]) <= FLAGS[name], f"{block}: octavo {name}"
                checked += 1
    assert checked > 5


def test_what_vllm_has_and_octavo_refuses() -> None:
    refused = flags_in(section(FROM_VLLM.read_text(encoding="utf-8"), "Refused"))
    assert len(refused) > 10
    assert refused & FLAGS["serve"] == set()


# A value other than the default of each field with a flag of its own.
SETTINGS = {
    "model.names": ["b"], "model.revision": "v1", "model.chatTemplate": "x",
    "engine.tensorParallelSize": 2, "engine.gpuMemoryUtilization": 0.5, "engine.maxModelLen": 16,
    "engine.maxNumSeqs": 1, "engine.maxNumBatchedTokens": 16, "engine.dtype": "float16",
    "engine.blockSize": 32, "engine.kvCacheMemory": "2Gi", "engine.enablePrefixCaching": False,
}  # fmt: skip


def test_flags_and_fields_are_the_same_settings() -> None:
    """What the table says is what the operator renders; each field that is a flag is there."""
    plain = render_arguments(parse(MANIFEST))
    told = {}
    for flags, field, *_ in rows(section(FROM_VLLM.read_text(encoding="utf-8"), "Flags")):
        for name in re.findall(r"`((?:engine|model)\.\w+)", field):
            told[name] = re.findall(r"`(--[a-z-]+)`", flags)
    assert set(SETTINGS) <= set(told)
    for path, value in SETTINGS.items():
        parent, name = path.split(".")
        spec = {"model": dict(MANIFEST["spec"]["model"]), "engine": {}}  # type: ignore[index]
        spec[parent][name] = value
        added = set(render_arguments(parse({**MANIFEST, "spec": spec}))) - set(plain)
        assert {each.partition("=")[0] for each in added} == set(told[path]), path
    typed = {
        "uri",
        "secretRef",
        "endpoint",
        "config",
        "extraArgs",
        "env",
        "image",
        "version",
        "device",
    }
    fields = {
        f"{parent}.{name}"
        for parent in ("model", "engine")
        for name in schema.object_schema()["properties"]["spec"]["properties"][parent]["properties"]
        if name not in typed
    }
    assert fields == set(SETTINGS)


def test_extra_arguments_are_taken() -> None:
    text = section(FROM_VLLM.read_text(encoding="utf-8"), "Flags")
    for flags, field, *_ in rows(text):
        for flag in re.findall(r"`(--[a-z-]+)`", flags) if "extraArgs" in field else ():
            assert flag in FLAGS["serve"]
            parse({**MANIFEST, "spec": {**MANIFEST["spec"], "engine": {"extraArgs": [flag]}}})  # type: ignore[dict-item]


SPEC = schema.object_schema()["properties"]["spec"]
STATUS = schema.object_schema()["properties"]["status"]


def walks(node: Mapping[str, Any], path: list[str]) -> bool:
    for step in path:
        if "items" in node:
            node = node["items"]
        if step not in node.get("properties", {}):
            # Native fields below podTemplate, and names of amounts.
            return bool(
                node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
            )
        node = node["properties"][step]
    return True


def test_fields_exist() -> None:
    checked = 0
    for page in PAGES:
        if page.name == "architecture.md":  # names of modules and functions
            continue
        for word in re.findall(r"`([a-zA-Z]+(?:\.[a-zA-Z]+)+)(?:: [^`]*)?`", page.read_text()):
            head, *rest = word.split(".")
            if head in SPEC["properties"] and word not in VALUES_NAMES:
                assert walks(SPEC, word.split(".")), f"{page.name}: {word}"
            elif head in ("spec", "status"):
                assert walks(SPEC if head == "spec" else STATUS, rest), f"{page.name}: {word}"
            else:
                continue
            checked += 1
    assert checked > 60
    assert not walks(SPEC, ["model", "url"]) and walks(SPEC, ["resources", "limits", "memory"])


def paths(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield above + key
        if isinstance(value, Mapping):
            yield from paths(value, f"{above}{key}.")


CHART = ROOT / "charts" / "octavo"
VALUES_NAMES = set(paths(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))))


def test_values_of_the_chart_exist() -> None:
    page = (ROOT / "docs" / "install-the-operator.md").read_text(encoding="utf-8")
    table = page[page.index("| value |") :].partition("\n\n")[0]
    named, parent = set(), ""
    for row in rows(table):
        for word in re.findall(r"`([\w.]+)`", row[0]):
            word = f"{parent}{word}" if word.startswith(".") else word
            named.add(word)
            parent = word.rpartition(".")[0]
    assert named <= VALUES_NAMES
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert {each.partition(".")[0] for each in named} == set(values), "each has a row"
    pages = [path.read_text(encoding="utf-8") for path in PAGES]
    told = re.findall(r"--set ([\w.]+)=", "".join(pages))
    told += re.findall(r"`((?:crds|image|monitoring)\.\w+)(?:=\w+)?`", "".join(pages))
    assert len(told) > 5
    assert set(told) - VALUES_NAMES == set()


def test_metrics_exist() -> None:
    own = generate_latest(Metrics(Queue()).registry).decode()
    server = (ROOT / "server" / "octavo_server" / "api" / "metrics.py").read_text(encoding="utf-8")
    asked = set()
    for page in PAGES:
        asked |= set(re.findall(r"\b(?:vllm:|octavo_operator_)[a-z0-9_]+", page.read_text()))
    given = set(re.findall(r"^# TYPE (\w+) ", own, re.MULTILINE))
    assert {each for each in given if not each.endswith("_created")} <= asked, "each has a row"
    for metric in asked:
        if metric.startswith("vllm:"):
            assert f'"{metric.removeprefix("vllm:")}"' in server, metric
        else:
            assert metric in given, metric


def test_annotations_and_variables_exist() -> None:
    known = {value for value in vars(names).values() if isinstance(value, str)}
    sources = [
        path.read_text(encoding="utf-8")
        for folder in ("server", "kernels", "operator", "tests", "images", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", "") and path.is_file() and "tests/docs" not in path.as_posix()
    ]
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    text = text.replace("inferenceservices.octavo.dev/", "")  # a path
    found = set(re.findall(r"octavo\.dev/[a-z][a-z-]*", text)) - {names.API_VERSION}
    assert found - {"octavo.dev/v"} - known == set() and len(found) > 4
    variables = set(re.findall(r"\bOCTAVO_[A-Z_]+", text))
    everything = "".join(sources)
    assert {each for each in variables if each not in everything} == set() and len(variables) > 4


def test_every_page_is_found_from_the_first() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8")
    there = {path.name for path in PAGES} - {"README.md"}
    assert there - set(re.findall(r"\(docs/([\w-]+\.md)[#)]", first)) == set()


def test_pages_are_short() -> None:
    """A page has one task. Those that list everything there is may be longer."""
    lists = {
        "README.md", "api.md", "architecture.md", "performance.md", "serve-a-model.md",
        "the-manifest.md", "troubleshooting.md",
    }  # fmt: skip
    wrong = [
        f"{page.name}: {lines}"
        for page in PAGES
        if page.name not in lists and (lines := page.read_text(encoding="utf-8").count("\n")) > 130
    ]
    assert not wrong


def test_headings_that_links_name_exist() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", page.read_text()):
            other = page.parent / target if target else page
            heads = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in heads}
            assert anchor in slugs, f"{page.name} -> {target}#{anchor}"


def test_blocks_are_found_in_lists() -> None:
    found = list(blocks(ROOT / "docs" / "gated-models.md"))
    assert any(each.language == "yaml" and each.text.startswith("apiVersion") for each in found)


def test_numbers_are_the_codes() -> None:
    upgrading = (ROOT / "docs" / "upgrading.md").read_text(encoding="utf-8")
    assert f"{pinning._LONGEST:,} characters" in upgrading
    manifest = (ROOT / "docs" / "the-manifest.md").read_text(encoding="utf-8")
    assert f"{PRE_STOP_SECONDS} s until proxies" in manifest
    assert f"then {STOP_SECONDS} s of slack" in manifest
    install = " ".join((ROOT / "docs" / "install-the-operator.md").read_text().split())
    assert f"the next waits {lease.DURATION_SECONDS} seconds" in install
    assert f"cannot renew it for {lease.RENEW_SECONDS:.0f} stops" in install
    troubleshooting = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert f"tries again in {hub.AGAIN_SECONDS / 60:.0f} minutes" in troubleshooting
