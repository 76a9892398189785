"""Settings that cannot work do not reach pods that do."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.memory_cluster import MemoryCluster
from tests.operator.services import service

from octavo_operator import conditions, names
from octavo_operator.conditions import FITS_ACCELERATOR, Condition
from octavo_operator.fit import Unread, decide_fit
from octavo_server.model_config import ModelConfig, parse_config

CONFIG = parse_config(
    {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "torch_dtype": "bfloat16",
    }
)
AWAY = Unread(conditions.HUB_UNREACHABLE, "the Hub does not answer the operator")


def verdict(model: ModelConfig | Unread | None, size: int) -> Condition:
    return decide_fit(service(engine={"tensorParallelSize": size}), model, (81920,))


def size_of(cluster: MemoryCluster) -> str:
    flag = "--tensor-parallel-size="
    (found,) = (each for each in cluster.container["args"] if each.startswith(flag))
    return str(found.removeprefix(flag))


@pytest.fixture
def wrong() -> MemoryCluster:
    """Two GPUs a pod; then somebody writes three, which the operator has just found impossible."""
    cluster = MemoryCluster(replicas=2, engine={"tensorParallelSize": 2})
    cluster.fit = verdict(CONFIG, 2)
    cluster.pass_over()
    assert size_of(cluster) == "2"
    cluster.edit(engine={"tensorParallelSize": 3})
    cluster.fit = verdict(CONFIG, 3)
    told = cluster.pass_over()
    assert told["WorkloadReady"]["reason"] == "InvalidTensorParallelSize"
    assert size_of(cluster) == "2"
    return cluster


@pytest.mark.parametrize("model", [None, AWAY])
def test_a_restarted_operator_holds_on_to_the_verdict(
    wrong: MemoryCluster, model: Unread | None
) -> None:
    wrong.fit = verdict(model, 3)  # it has read nothing yet, or cannot
    told = wrong.pass_over()
    assert size_of(wrong) == "2"
    assert told["WorkloadReady"]["reason"] == "InvalidTensorParallelSize"
    assert told[FITS_ACCELERATOR]["status"] == "False"
    assert wrong.pass_over() == told


def test_an_edit_ends_it(wrong: MemoryCluster) -> None:
    wrong.edit(engine={"tensorParallelSize": 4})
    wrong.fit = verdict(CONFIG, 4)
    assert wrong.pass_over()["WorkloadReady"]["reason"] == "Progressing"
    assert size_of(wrong) == "4"


def test_an_edit_that_came_while_the_operator_was_away_waits_for_the_config() -> None:
    cluster = MemoryCluster(engine={"tensorParallelSize": 2})
    cluster.fit = verdict(CONFIG, 2)
    cluster.pass_over()
    cluster.edit(engine={"tensorParallelSize": 3})
    cluster.fit = verdict(None, 3)
    told = cluster.pass_over()
    assert size_of(cluster) == "2"
    # Not Ready with the new generation: its settings are not applied.
    assert told["WorkloadReady"]["status"] == "False"
    assert "waits until the model's config.json is read" in told["WorkloadReady"]["message"]
    assert not any(each.startswith("Warning") for each in cluster.events)
    cluster.fit = verdict(AWAY, 3)  # nothing says that it is wrong
    cluster.pass_over()
    assert size_of(cluster) == "3"


def test_a_restart_alone_changes_no_word() -> None:
    cluster = MemoryCluster(engine={"tensorParallelSize": 2})
    cluster.fit = verdict(CONFIG, 2)
    told = cluster.pass_over()
    cluster.fit = verdict(None, 2)
    assert cluster.pass_over() == told


def test_the_first_pods_wait_for_the_config_alone() -> None:
    cluster = MemoryCluster()
    cluster.fit = verdict(None, 1)
    cluster.pass_over()
    assert set(cluster.objects) == {"Service", "PodDisruptionBudget"}
    cluster.fit = verdict(AWAY, 1)
    cluster.pass_over()
    assert "Deployment" in cluster.objects


@pytest.mark.parametrize(
    ("change", "replicas", "resumed"),
    [({"replicas": 5}, 5, None), ({"suspend": True}, 0, "2"), ({"replicas": 0}, 0, None)],
)
def test_the_number_of_pods_is_free(
    wrong: MemoryCluster, change: dict[str, Any], replicas: int, resumed: str | None
) -> None:
    template = wrong.deployment["spec"]["template"]
    wrong.edit(**change)
    wrong.pass_over()
    assert wrong.deployment["spec"]["template"] == template
    assert wrong.deployment["spec"]["replicas"] == replicas
    assert wrong.deployment["metadata"]["annotations"].get(names.RESUME_ANNOTATION) == resumed


def test_what_runs_is_still_told_by_its_own_settings(wrong: MemoryCluster) -> None:
    """Put back to what runs: nothing rolls, and nothing is called changed."""
    revision = wrong.live["status"]["rollout"]["revision"]
    wrong.edit(engine={"tensorParallelSize": 2})
    wrong.fit = verdict(CONFIG, 2)
    wrong.pass_over()
    assert wrong.live["status"]["rollout"]["revision"] == revision
    assert wrong.live["status"]["rollout"]["reason"] == "created"


def test_a_refused_object_is_told_before_the_wait() -> None:
    cluster = MemoryCluster()
    cluster.fit = verdict(None, 1)
    cluster.refused = ("PodDisruptionBudget",)
    assert cluster.pass_over()["WorkloadReady"]["reason"] == "Forbidden"
