"""A question answered from memory, or refused in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from octavo_operator.metrics_api.documents import (
    PODS,
    RESOURCES,
    SERVICES,
    Item,
    Object,
    Refusal,
    describe_group,
    describe_groups,
    describe_resources,
    describe_values,
)
from octavo_operator.metrics_api.figures import FIGURES, Figure
from octavo_operator.metrics_api.fleet import Fleet, Pod
from octavo_operator.metrics_api.judgement import Known, Unknown, judge_pod, judge_service
from octavo_operator.metrics_api.questions import EVERY, Group, Groups, Question, Resources, Values
from octavo_operator.metrics_api.selectors import BadSelector, Selector, read_selector

Found = Iterator[tuple[str, Known | Unknown]]
"""Names, and what is known of them."""


def answer(
    question: Question, query: Mapping[str, str], fleet: Fleet, *, now: float, time: float
) -> Object:
    """The document, or Refusal. `now` is the fleet's clock, `time` the world's."""
    match question:
        case Groups():
            return describe_groups()
        case Group():
            return describe_group()
        case Resources(version):
            return describe_resources(version)
        case Values():
            return _values(question, query, fleet, now, time)


def _values(
    question: Values, query: Mapping[str, str], fleet: Fleet, now: float, time: float
) -> Object:
    figure = FIGURES.get(question.metric)
    if question.resource not in RESOURCES or figure is None:
        raise Refusal(
            404,
            f"there is no metric {question.metric} of {question.resource}: there are "
            f"{', '.join(FIGURES)} of {SERVICES} and of {PODS}",
        )
    try:
        chosen = read_selector(query.get("labelSelector", ""))
        # No value of ours has labels of its own.
        some = read_selector(query.get("metricLabelSelector", ""))({})
    except BadSelector as error:
        raise Refusal(400, str(error)) from None
    look = _pods if question.resource == PODS else _services
    found = look(question, figure, chosen, fleet, now)
    items = []
    for name, told in found:
        if isinstance(told, Known):
            at = time - told.age_seconds
            items.append(
                Item(question.resource, question.namespace, name, figure.name, told.value, at)
            )
        elif question.name != EVERY:
            raise Refusal(503, f"{figure.name} of {question.namespace}/{name}: {told.why}")
    return describe_values(question.version, items if some else ())


def _services(
    question: Values, figure: Figure, chosen: Selector, fleet: Fleet, now: float
) -> Found:
    if question.name == EVERY:
        for key, service in sorted(fleet.services.items()):
            if key[0] == question.namespace and chosen(service.labels):
                yield key[1], judge_service(figure, fleet.tracks(key), service.scaling, now)
        return
    key = (question.namespace, question.name)
    found = fleet.services.get(key)
    if found is None:
        raise Refusal(404, f"there is no InferenceService {question.namespace}/{question.name}")
    yield question.name, judge_service(figure, fleet.tracks(key), found.scaling, now)


def _pods(question: Values, figure: Figure, chosen: Selector, fleet: Fleet, now: float) -> Found:
    """Of many, those that say nothing are left out: autoscalers know how many there are."""
    if question.name == EVERY:
        for pod in sorted(fleet.pods_in(question.namespace), key=lambda each: each.key):
            if chosen(pod.labels):
                yield pod.key[1], _judge(figure, pod, now)
        return
    found = fleet.pod((question.namespace, question.name))
    if found is None:
        raise Refusal(404, f"no InferenceService has a pod {question.namespace}/{question.name}")
    yield question.name, _judge(figure, found, now)


def _judge(figure: Figure, pod: Pod, now: float) -> Known | Unknown:
    return judge_pod(figure, pod.track if pod.asked else None, now)
