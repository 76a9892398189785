"""The rules of the house (docs/architecture.md), as tests."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    "octavo_server": ROOT / "server" / "octavo_server",
    "octavo_kernels": ROOT / "kernels" / "octavo_kernels",
    "octavo_operator": ROOT / "operator" / "octavo_operator",
}
MODULES = sorted(path for folder in SOURCES.values() for path in folder.rglob("*.py"))
MAX_LINES = 450
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
# The operator's image holds no torch: these modules of the server are all that it may import.
TORCH_FREE = {
    "octavo_server",
    "octavo_server.distributed.shard",
    "octavo_server.errors",
    "octavo_server.gpu_plan",
    "octavo_server.memory_plan",
    "octavo_server.model_config",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def texts() -> Iterator[tuple[str, str]]:
    """Every text file that is or would be committed: (path, content)."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        try:
            if path.is_file():
                yield name, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, at any depth of its code.

    Relative imports stay within their package, so no rule here concerns them.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
            # `from octavo_server import memory_plan` names a module too.
            parent = path_of(node.module)
            for alias in node.names:
                if parent and (
                    (parent / f"{alias.name}.py").exists() or (parent / alias.name).is_dir()
                ):
                    found.add(f"{node.module}.{alias.name}")
    return found


def path_of(module: str) -> Path | None:
    package, *rest = module.split(".")
    return SOURCES[package].joinpath(*rest) if package in SOURCES else None


def test_the_operator_folder_is_not_a_package() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "tests" / "operator" / "__init__.py").exists()


@pytest.mark.parametrize("package", SOURCES)
def test_imports_go_one_way(package: str) -> None:
    allowed = {
        "octavo_kernels": {"octavo_kernels"},
        "octavo_server": {"octavo_server", "octavo_kernels"},
        "octavo_operator": {"octavo_operator", "octavo_server"},
    }[package]
    wrong = []
    for path in SOURCES[package].rglob("*.py"):
        for name in imports(path):
            top = name.split(".")[0]
            if top in SOURCES and top not in allowed:
                wrong.append(f"{relative(path)} imports {name}")
            if package == "octavo_operator" and top == "octavo_server" and name not in TORCH_FREE:
                wrong.append(f"{relative(path)} imports {name}")
    assert not wrong


BLOCKED_IMPORT = """
import importlib, importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "triton", "transformers", "numpy", "octavo_kernels"}:
            raise ImportError("blocked: " + name)
        return None

sys.meta_path.insert(0, Block())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def module_name(path: Path) -> str:
    package = next(folder for folder in SOURCES.values() if folder in path.parents)
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def test_the_operator_and_the_command_line_import_without_torch() -> None:
    names = [
        module_name(p) for p in SOURCES["octavo_operator"].rglob("*.py") if p.stem != "__main__"
    ]
    names += [name for name in TORCH_FREE if (path_of(name) or ROOT).with_suffix(".py").exists()]
    ran = subprocess.run(
        [sys.executable, "-c", BLOCKED_IMPORT, "octavo_server.cli", *sorted(names)],
        env={
            "PYTHONPATH": ":".join(str(p.parent) for p in SOURCES.values()),
            "PATH": "/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_files_are_short_and_their_names_say_something() -> None:
    wrong = []
    for path in [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > MAX_LINES:
            wrong.append(f"{relative(path)} has {lines} lines")
        if path.stem in VAGUE_NAMES or path.parent.name in VAGUE_NAMES:
            wrong.append(f"{relative(path)} has a name that says nothing")
    assert not wrong


def test_every_module_says_what_it_is() -> None:
    wrong = []
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if tree.body and not ast.get_docstring(tree):
            wrong.append(relative(path))
    assert not wrong


def test_architecture_names_every_module_and_no_other() -> None:
    """Headings of docs/architecture.md name a folder, the list below each one its modules."""
    named: set[str] = set()
    folder = ""
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = re.search(r"`([^`]+/)`", line)
            folder = heading.group(1) if heading else ""
        elif folder and (item := re.match(r"- `([\w.]+\.py)`: \S", line)):
            named.add(folder + item.group(1))
    # A package's empty __init__.py needs no line.
    there = {relative(path) for path in MODULES if path.stem != "__init__"}
    assert there - named == set(), "not in docs/architecture.md"
    assert {name for name in named if not (ROOT / name).exists()} == set(), "no longer there"


def test_no_text_names_a_registry_or_somebodys_machine() -> None:
    # Written in parts, so that this file does not name them either.
    hosts = ["pypi" + ".org", "python" + "hosted", "proxy.golang" + ".", "sum.golang" + "."]
    hosts += ["registry.npmjs" + ".", "deb.debian" + ".org", "repo1.maven" + "."]
    places = ["/work" + "/main", "/work" + "/shared", "/tmp" + "/octavo/"]
    wrong = [
        f"{name}: {word}" for name, text in texts() for word in [*hosts, *places] if word in text
    ]
    assert not wrong


def test_large_files_are_not_committed() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert not [relative(p) for p in paths if p.is_file() and p.stat().st_size > 1_000_000]


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_declared_dependency_is_pinned() -> None:
    project = _project()["project"]
    declared = [
        *project["dependencies"],
        *itertools.chain(*project["optional-dependencies"].values()),
    ]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", pin) for pin in pins)
    pinned = {normal(pin.split("==")[0]) for pin in pins}
    names = {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in declared}  # type: ignore[index]
    assert names <= pinned, names - pinned


def test_every_import_is_declared() -> None:
    """A package that only happens to be installed, through somebody else, may go away again."""
    project = _project()["project"]
    extras = project["optional-dependencies"]
    modules = {
        "huggingface-hub": "huggingface_hub", "prometheus-client": "prometheus_client",
        "pyyaml": "yaml", "pyzmq": "zmq",
    }  # fmt: skip
    for package, folder in SOURCES.items():
        extra = "operator" if package == "octavo_operator" else "server"
        requirements = [*project["dependencies"], *extras[extra]]
        names = [normal(re.match(r"[\w.-]+", r)[0]) for r in requirements]  # type: ignore[index]
        known = {modules.get(name, name) for name in names} | set(SOURCES)
        if extra == "server":
            known |= {"triton"}  # comes with torch on Linux, and only there
        known |= set(sys.stdlib_module_names)
        wrong = {
            f"{relative(path)} imports {name}"
            for path in folder.rglob("*.py")
            for name in imports(path)
            if name.split(".")[0] not in known
        }
        assert not wrong


def _first_manifest() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block, "README.md has no manifest"
    return block.group(1)


def test_the_readmes_manifest_is_a_valid_example_of_12_lines() -> None:
    manifest = _first_manifest()
    assert len(manifest.strip().splitlines()) == 12
    parsed = yaml.safe_load(manifest)
    examples = [
        document
        for path in (ROOT / "examples").glob("*.yaml")
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]
    assert parsed in examples


def test_the_manifests_page_names_every_field() -> None:
    crd = yaml.safe_load((ROOT / "crds" / "inferenceservice.yaml").read_text(encoding="utf-8"))
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    fields = set(spec["properties"])
    for parent in (
        "model",
        "engine",
        "autoscaling",
        "cache",
        "drain",
        "service",
        "apiKeySecretRef",
    ):
        fields |= {f"{parent}.{name}" for name in spec["properties"][parent]["properties"]}
    page = (ROOT / "docs" / "the-manifest.md").read_text(encoding="utf-8")
    assert {field for field in fields if f"| `{field}` |" not in page} == set()


def test_every_link_between_pages_leads_somewhere() -> None:
    wrong = []
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                wrong.append(f"{relative(page)} -> {target}")
    assert not wrong
