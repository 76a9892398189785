import pytest
from tests.operator.local.pods import container, make_pod

from octavo_operator.local.environment import (
    command_line,
    container_environment,
    expand,
    field_value,
    resource_value,
)
from octavo_operator.local.resolver import MissingReference, Objects

OBJECTS = Objects(
    secrets={("default", "token"): {"key": b"s3cret"}},
    config_maps={("default", "settings"): {"color": b"red", "size": b"$(A)"}},
)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("$(A)", "1"),
        ("x$(A)y$(B)z", "x1y2z"),
        ("$(NONE)", "$(NONE)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(A", "$(A"),
        ("$()", "$()"),
        ("$((A))", "$((A))"),
    ],
)
def test_expand(text: str, result: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == result


async def environment(env: list[dict], env_from: list[dict] | None = None, **fields) -> dict:
    one = container(["x"], env=env, envFrom=env_from or [], **fields)
    pod = make_pod(one)
    pod["metadata"]["labels"] = {"octavo.dev/service": "smol"}
    return await container_environment(pod, one, OBJECTS, pod_ip="10.0.0.7", host_ip="10.0.0.1")


def from_(kind: str, **fields) -> dict:
    return {"name": "X", "valueFrom": {kind: fields}}


async def test_values_see_only_earlier_ones() -> None:
    env = [
        {"name": "B", "value": "$(A)"},
        {"name": "A", "value": "1"},
        {"name": "C", "value": "$(A)$(B)"},
        {"name": "EMPTY"},
    ]
    assert await environment(env) == {"B": "$(A)", "A": "1", "C": "1$(A)", "EMPTY": ""}


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (from_("secretKeyRef", name="token", key="key"), "s3cret"),
        (from_("configMapKeyRef", name="settings", key="color"), "red"),
        # What comes from elsewhere is not expanded.
        (from_("configMapKeyRef", name="settings", key="size"), "$(A)"),
        (from_("secretKeyRef", name="none", key="key", optional=True), None),
        (from_("secretKeyRef", name="token", key="none", optional=True), None),
        (from_("fieldRef", fieldPath="metadata.name"), "pod"),
        (from_("fieldRef", fieldPath="metadata.namespace"), "default"),
        (from_("fieldRef", fieldPath="status.podIP"), "10.0.0.7"),
        (from_("fieldRef", fieldPath="status.hostIP"), "10.0.0.1"),
        (from_("fieldRef", fieldPath="metadata.labels['octavo.dev/service']"), "smol"),
        (from_("fieldRef", fieldPath="metadata.annotations['none']"), ""),
    ],
)
async def test_value_from(entry: dict, value: str | None) -> None:
    assert (await environment([entry])).get("X") == value


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (from_("secretKeyRef", name="none", key="key"), 'secret "none" not found'),
        (from_("configMapKeyRef", name="none", key="key"), 'configmap "none" not found'),
        (
            from_("secretKeyRef", name="token", key="none"),
            "couldn't find key none in Secret default/token",
        ),
        (from_("fieldRef", fieldPath="spec.replicas"), "unsupported fieldPath: spec.replicas"),
    ],
)
async def test_missing_references(entry: dict, sentence: str) -> None:
    with pytest.raises(MissingReference, match="^" + sentence.replace("(", r"\(") + "$"):
        await environment([entry])


async def test_env_from_comes_first_and_loses() -> None:
    sources = [
        {"prefix": "CFG_", "configMapRef": {"name": "settings"}},
        {"secretRef": {"name": "none", "optional": True}},
    ]
    env = [{"name": "CFG_color", "value": "blue"}, {"name": "Y", "value": "$(CFG_size)"}]
    assert await environment(env, sources) == {"CFG_color": "blue", "CFG_size": "$(A)", "Y": "$(A)"}


@pytest.mark.parametrize(
    ("resource", "divisor", "value"),
    [
        ("limits.cpu", None, "2"),  # 1500m, rounded up
        ("limits.cpu", "1m", "1500"),
        ("limits.memory", "1Mi", "2048"),
        ("limits.memory", "0", str(2 * 2**30)),
        ("requests.cpu", None, "2"),  # defaults to the limit
        ("requests.memory", "1Mi", "512"),
        ("requests.ephemeral-storage", None, "0"),
    ],
)
def test_resource_fields(resource: str, divisor: str | None, value: str) -> None:
    limits = {"cpu": "1500m", "memory": "2Gi"}
    one = container(["x"], resources={"limits": limits, "requests": {"memory": "512Mi"}})
    reference = {"resource": resource, "divisor": divisor}
    assert resource_value(make_pod(one), one, reference) == value


def test_without_a_limit_the_machine_is_the_limit() -> None:
    one = container(["x"])
    assert int(resource_value(make_pod(one), one, {"resource": "limits.cpu"})) >= 1


def test_command_line() -> None:
    one = container(["sh", "-c"], args=["echo $(A) $$(A)", "$(NO)"])
    assert command_line(one, {"A": "1"}) == ["sh", "-c", "echo 1 $(A)", "$(NO)"]
    with pytest.raises(MissingReference, match="no command"):
        command_line({"name": "x", "args": ["y"]}, {})


def test_labels_as_a_file() -> None:
    pod = make_pod()
    pod["metadata"]["labels"] = {"b": "2", "a": "1"}
    assert field_value(pod, "metadata.labels", "", "") == 'a="1"\nb="2"'
