"""Label selectors as they stand in a query: `a=b,c!=d,e in (f,g),h,!i`. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

Selector = Callable[[Mapping[str, str]], bool]

_KEY = r"(?:[A-Za-z0-9.-]{1,253}/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?"
_EQUALS = re.compile(rf"({_KEY})\s*(==|=|!=)\s*({_VALUE})")
_SET = re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^()]*)\)")
_EXISTS = re.compile(rf"(!?)\s*({_KEY})")
_MOST_LETTERS = 4096


class BadSelector(ValueError):
    """Its text is what is wrong with it."""


def read_selector(text: str) -> Selector:
    """True of labels that meet every requirement; BadSelector."""
    if len(text) > _MOST_LETTERS:
        raise BadSelector(f"a label selector has at most {_MOST_LETTERS} letters")
    requirements = [_read(each.strip()) for each in _split(text)] if text.strip() else []
    return lambda labels: all(meets(labels) for meets in requirements)


def _split(text: str) -> list[str]:
    """At the commas outside brackets."""
    return re.split(r",(?![^()]*\))", text)


def _read(text: str) -> Selector:
    if found := _EQUALS.fullmatch(text):
        key, how, value = found.groups()
        if how == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if found := _SET.fullmatch(text):
        key, how, listed = found.groups()
        values = {each.strip() for each in listed.split(",")}
        if not all(re.fullmatch(_VALUE, each) for each in values):
            raise BadSelector(f"{text!r} lists what is no label's value")
        if how == "notin":
            return lambda labels: labels.get(key) not in values
        return lambda labels: labels.get(key) in values
    if found := _EXISTS.fullmatch(text):
        without, key = found.groups()
        return lambda labels: (key not in labels) == bool(without)
    raise BadSelector(f"{text!r} is no requirement of a label selector")
