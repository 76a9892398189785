"""The template of --chat-template, refused before a model loads if it is no Jinja."""

from __future__ import annotations

from pathlib import Path

from octavo_server.errors import InvalidSettings


def read_chat_template(given: str | None) -> str | None:
    """The text of a file, or of the flag itself. Raises `InvalidSettings` in one line."""
    if given is None:
        return None
    name = "--chat-template"
    text = given
    if "{" not in given:
        name = f"--chat-template {given}"
        try:
            text = Path(given).read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidSettings(f"{name}: {error.strerror}") from error
        except ValueError as error:
            raise InvalidSettings(f"{name}: not a text file in UTF-8") from error
    _check_syntax(text, name)
    return text


def _check_syntax(text: str, name: str) -> None:
    from jinja2 import Environment, TemplateSyntaxError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser

    class Generation(Extension):
        """transformers' `{% generation %}`, which marks a template's answers."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        # autoescape would matter only if this rendered anything.
        Environment(extensions=[Generation, loopcontrols]).compile(text)
    except TemplateSyntaxError as error:
        message = " ".join(str(error.message).split())
        raise InvalidSettings(f"{name}: line {error.lineno}: {message}") from error
