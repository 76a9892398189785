"""Which target an autoscaler should have: arrivals replayed against pods that take time to start.

    python -m benchmarks.autoscaling --output benchmarks/results

No cluster and no clock: the arithmetic of Kubernetes' HorizontalPodAutoscaler with the targets and
the behaviour that the operator renders. For each kind of arrivals: GPU hours, the 99th percentile
of the wait, and how often the number of pods turned round.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from benchmarks.scaling.controller import Controller, Metric
from benchmarks.scaling.pods import SLOTS, STARTUP_SECONDS, Outcome, simulate
from benchmarks.scaling.traces import TRACES

from octavo_operator.autoscaling import Autoscaling
from octavo_operator.render.autoscaler import BEHAVIOR
from octavo_operator.scaling_targets import decide_targets
from octavo_operator.spec import parse

LEAST, MOST = 1, 8


def shipped(**asked: Any) -> tuple[Metric, ...]:
    """What the operator makes of these fields of spec.autoscaling."""
    service = parse(
        {
            "apiVersion": "octavo.dev/v1alpha1",
            "kind": "InferenceService",
            "metadata": {"name": "simulated"},
            "spec": {
                "model": {"uri": "hf://example/model"},
                "engine": {"maxNumSeqs": SLOTS},
                "autoscaling": {"maxReplicas": MOST, **asked},
            },
        }
    )
    assert isinstance(service.spec.autoscaling, Autoscaling)
    return tuple(
        Metric(each.metric, each.value, "AverageValue" if each.shared else "Value")
        for each in decide_targets(service)
    )


POLICIES: dict[str, tuple[Metric, ...]] = {
    "queue depth 5 and demand (default)": shipped(),
    "queue depth 1 and demand": shipped(targetQueueDepth=1),
    "queue depth 20 and demand": shipped(targetQueueDepth=20),
    "queue depth 5 alone": (Metric("octavo_queue_depth", 5),),
    "demand 26": shipped(targetDemand=26),
    "demand 16": shipped(targetDemand=16),
    "wait 2 s": shipped(targetQueueWaitSeconds=2),
    "GPU busy 80%": (Metric("gpu", 0.8, "Utilization"),),
    "slots 80%": (Metric("slots", 0.8, "Utilization"),),
}


def run(trace_index: int, policy: str) -> Outcome:
    trace = TRACES[trace_index]
    if policy.startswith("fixed"):
        pods = int(policy.split()[-1])
        controller = Controller((Metric("octavo_demand", 1),), pods, pods, BEHAVIOR)
    else:
        controller = Controller(POLICIES[policy], LEAST, MOST, BEHAVIOR)
    return simulate(trace.requests(), trace.seconds, controller)


def describe(outcome: Outcome) -> dict[str, float]:
    return {
        "gpu_hours": round(outcome.gpu_hours, 2),
        "wait_p50_seconds": round(outcome.wait(0.5), 2),
        "wait_p99_seconds": round(outcome.wait(0.99), 1),
        "flaps": outcome.flaps,
        "most_pods": max(count for _, count in outcome.replicas),
    }


def draw(outcomes: dict[str, Outcome], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(len(outcomes), 1, figsize=(9, 9), sharex=False)
    for axis, (name, outcome) in zip(rows, outcomes.items(), strict=True):
        for label, points in (("demand", outcome.demand), ("waiting", outcome.queue)):
            axis.plot([at / 60 for at, _ in points], [count for _, count in points], label=label)
        twin = axis.twinx()
        twin.step(
            [at / 60 for at, _ in outcome.replicas],
            [count for _, count in outcome.replicas],
            "k", where="post", label="pods",
        )  # fmt: skip
        twin.set_ylim(0, MOST + 1)
        axis.set_title(name, loc="left", fontsize=9)
        axis.set_ylabel("requests")
        twin.set_ylabel("pods")
    rows[0].legend(loc="upper right")
    rows[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


@click.command()
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True)
def main(output: Path) -> None:
    """Simulate autoscaling by each target, and write autoscaling.json and autoscaling.png."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    drawn = {}
    policies = [*POLICIES, f"fixed {LEAST}", f"fixed {MOST}"]
    for index, trace in enumerate(TRACES):
        click.echo(f"{trace.name}: at most {trace.peak:g} requests a second")
        found[trace.name] = {}
        for policy in policies:
            outcome = run(index, policy)
            if policy == policies[0]:
                drawn[trace.name] = outcome
            told = found[trace.name][policy] = describe(outcome)
            click.echo(f"  {policy:36} " + "  ".join(f"{k} {v:g}" for k, v in told.items()))
    setting = {"slots": SLOTS, "startup_seconds": STARTUP_SECONDS, "least": LEAST, "most": MOST}
    text = json.dumps({"setting": setting, "traces": found}, indent=1)
    (output / "autoscaling.json").write_text(text + "\n", encoding="utf-8")
    draw(drawn, output / "autoscaling.png")


if __name__ == "__main__":
    main()
