"""What a platform team gives all pods of services: one file, read when the operator starts.

The fields are the pods' own, checked as far as a typing mistake goes; the API server judges the
rest when a Deployment is applied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

_TOLD = 5

Text = Annotated[str, Field(min_length=1, max_length=4096)]
LabelKey = Annotated[
    str, Field(pattern=r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?$")
]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?$")]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]


class UnreadableDefaults(ValueError):
    """The file is missing, is no YAML or has a wrong field; the message is a line with its name."""


class _Part(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, populate_by_name=True, strict=True
    )


class Variable(_Part):
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", max_length=256)]
    value: str | None = None
    value_from: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.value is not None and self.value_from is not None:
            raise ValueError("give value or valueFrom, not both")
        return self


class Toleration(_Part):
    key: str | None = None
    operator: str | None = None
    value: str | None = None
    effect: str | None = None
    toleration_seconds: int | None = None


class PullSecret(_Part):
    """Of the service's namespace."""

    name: ObjectName


class CaBundle(_Part):
    """A ConfigMap of the service's namespace, and the key of its certificates."""

    config_map: ObjectName
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = "ca.crt"


class PodDefaults(_Part):
    """All may be absent. `inherit_labels` are those that pods get from their InferenceService."""

    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    annotations: dict[LabelKey, str] = Field(default_factory=dict)
    inherit_labels: list[LabelKey] = Field(default_factory=list)
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    image_pull_secrets: list[PullSecret] = Field(default_factory=list)
    runtime_class_name: ObjectName | None = None
    priority_class_name: ObjectName | None = None
    env: list[Variable] = Field(default_factory=list)
    ca_bundle: CaBundle | None = None

    @model_validator(mode="after")
    def _no_variable_twice(self) -> Self:
        names = [each.name for each in self.env]
        if twice := {each for each in names if names.count(each) > 1}:
            raise ValueError(f"env has {sorted(twice)[0]} twice")
        return self


def read_pod_defaults(path: Path) -> PodDefaults:
    """UnreadableDefaults for whatever is wrong with the file; an empty one says nothing."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return PodDefaults.model_validate({} if found is None else found)
    except OSError as error:
        raise UnreadableDefaults(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        wrong = [
            ": ".join(filter(None, (_path(each["loc"]), _sentence(each["msg"]))))
            for each in error.errors()
        ]
        more = f"; and {len(wrong) - _TOLD} more" if len(wrong) > _TOLD else ""
        raise UnreadableDefaults(f"{path}: {'; '.join(wrong[:_TOLD])}{more}") from None
    except yaml.MarkedYAMLError as error:
        # NOTE: never the line itself, as the error's own text has it: it may hold a password.
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        said = error.problem or error.context or "it cannot be read"
        raise UnreadableDefaults(f"{path}: not YAML: {said}{where}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableDefaults(f"{path}: not YAML: {type(error).__name__}") from None
    except ValueError as error:
        raise UnreadableDefaults(f"{path}: not YAML: {error}") from None  # an impossible date


def _path(steps: tuple[int | str, ...]) -> str:
    """("env", 0, "value") -> env[0].value"""
    text = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in steps)
    return text.lstrip(".")


def _sentence(message: str) -> str:
    known = {
        "Extra inputs are not permitted": "unknown field",
        "Input should be a valid dictionary or instance of PodDefaults": "must be an object",
    }
    return known.get(message, message.removeprefix("Value error, "))
