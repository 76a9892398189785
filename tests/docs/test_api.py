"""docs/api.md says what the code does: `OCTAVO_WRITE_GOLDEN=1` writes its tables anew."""

from __future__ import annotations

import os
import re

import click
from tests.docs.blocks import ROOT

from octavo_server.api.errors import Overloaded, Unauthorized, error_body
from octavo_server.api.parameters import render_tables
from octavo_server.api.protocol import ChatCompletionRequest, CompletionRequest
from octavo_server.api.refused import IGNORED, REFUSED
from octavo_server.errors import EngineDead, InvalidRequest

PAGE = ROOT / "docs" / "api.md"
MARK = "<!-- written by octavo_server.api.parameters -->\n"


def test_the_tables_are_the_codes() -> None:
    before, mark, tables = PAGE.read_text(encoding="utf-8").partition(MARK)
    assert mark, "the page has lost its mark"
    if os.environ.get("OCTAVO_WRITE_GOLDEN"):
        PAGE.write_text(before + mark + "\n" + render_tables(), encoding="utf-8")
        return
    assert tables == "\n" + render_tables()


def test_each_parameter_stands_in_one_table() -> None:
    fields = set(CompletionRequest.model_fields) | set(ChatCompletionRequest.model_fields)
    assert not fields & set(REFUSED) and not fields & set(IGNORED)
    assert not set(REFUSED) & set(IGNORED)
    assert len(fields) > 30 and len(REFUSED) > 20


def test_every_field_says_what_it_does() -> None:
    for kind in (CompletionRequest, ChatCompletionRequest):
        for name, field in kind.model_fields.items():
            assert field.description, name


def test_the_statuses_are_the_codes() -> None:
    text = PAGE.read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| (\d{3}) \| `([a-z_]+)`", text, re.MULTILINE))
    for error in (
        InvalidRequest("x"),
        Unauthorized("x"),
        Overloaded("x", status=429, seconds=1),
        Overloaded("x", status=503, seconds=1),
        EngineDead("x"),
    ):
        status, body = error_body(error)
        assert told[str(status)] == body["error"]["type"], status


def test_limits_named_are_flags() -> None:
    from octavo_server.api.serve import command

    flags = {
        flag for each in command.params if isinstance(each, click.Option) for flag in each.opts
    }
    assert set(re.findall(r"`(--[a-z-]+)", PAGE.read_text(encoding="utf-8"))) <= flags
