"""Flags, sizes, the termination message."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from octavo_server.api import serve
from octavo_server.api.sizes import parse_bytes
from octavo_server.api.termination import termination_line, write_termination
from octavo_server.errors import InvalidSettings, StartupError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1073741824", 2**30),
        ("1GiB", 2**30),
        ("1Gi", 2**30),
        ("512 MiB", 2**29),
        ("1.5gb", 1_500_000_000),
        ("2k", 2000),
        ("10B", 10),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "1 GiBs", "-1", "1ib", "nan"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)


def run(monkeypatch, *arguments):
    seen = {}
    monkeypatch.setattr(
        serve, "serve", lambda model, flags: seen.update(model=model, flags=flags) or 0
    )
    result = CliRunner().invoke(serve.command, arguments, standalone_mode=False)
    assert result.exception is None, result.output
    return (
        serve.engine_config(seen["model"], seen["flags"]),
        serve.serve_settings(seen["model"], seen["flags"]),
    )


def test_flags_become_settings(monkeypatch, tmp_path):
    monkeypatch.delenv("OCTAVO_API_KEY", raising=False)
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}")
    config, settings = run(
        monkeypatch,
        "org/model",
        *("--revision", "v1", "--kv-cache-memory-bytes", "64MiB", "--max-model-len", "-1"),
        *("--served-model-name", "a,b", "--served-model-name", "c", "--dtype", "float32"),
        *("--no-enable-prefix-caching", "--tensor-parallel-size", "2", "--shutdown-timeout", "5"),
        *("--chat-template", str(template), "--api-key", "k"),
    )
    assert (config.model, config.revision, config.max_model_len) == ("org/model", "v1", -1)
    assert (config.kv_cache_memory_bytes, config.dtype) == (64 * 2**20, "float32")
    assert config.block_size == 16
    assert (config.enable_prefix_caching, config.tensor_parallel_size) == (False, 2)
    assert config.trust_remote_code is False
    assert settings.served_model_names == ("a", "b", "c")
    assert settings.shutdown_timeout_seconds == 5
    assert settings.chat_template == "{{ messages }}"
    assert settings.api_keys == ("k",)
    config, settings = run(monkeypatch, "--model", "org/model")
    assert settings.served_model_names == ("org/model",)


def test_flags_of_overload_keys_and_pages(monkeypatch, tmp_path):
    monkeypatch.setenv("OCTAVO_API_KEY", "e1\ne2\n")
    (tmp_path / "keys").write_text("f\n")
    _, settings = run(
        monkeypatch,
        "m",
        *("--api-key", "a", "--api-key-file", str(tmp_path / "keys"), "--max-reqs-per-key", "3"),
        *("--max-num-queued-reqs", "0", "--max-num-queued-tokens", "9", "--max-body-bytes", "1MiB"),
        *("--allowed-origins", '["http://a"]', "--scheduling-policy", "priority"),
    )
    assert settings.api_keys == ("a", "f", "e1", "e2")
    assert (settings.max_num_queued_reqs, settings.max_num_queued_tokens) == (0, 9)
    assert (settings.max_reqs_per_key, settings.max_body_bytes) == (3, 2**20)
    assert settings.cors is not None and settings.cors.origins == ("http://a",)
    assert settings.priorities
    monkeypatch.delenv("OCTAVO_API_KEY")
    _, settings = run(monkeypatch, "m")
    assert (settings.max_num_queued_reqs, settings.max_num_queued_tokens) == (4096, 4 * 2**20)
    assert (settings.api_keys, settings.tls, settings.cors) == ((), None, None)
    assert not settings.priorities
    for flags in (
        ("--max-reqs-per-key", "3"),
        ("--api-key", ""),
        ("--ssl-keyfile", "k"),
        ("--ssl-certfile", "/no/such"),
        ("--allow-credentials",),
    ):
        with pytest.raises(InvalidSettings):
            run(monkeypatch, "m", *flags)


def test_settings_out_of_range(monkeypatch):
    for flags in (
        ("--gpu-memory-utilization", "1.5"),
        ("--max-model-len", "0"),
        ("--chat-template", "/no/such"),
    ):
        with pytest.raises(InvalidSettings):
            run(monkeypatch, "m", *flags)


@pytest.mark.parametrize(
    "flags",
    [("--no-such-flag",), ("--kv-cache-memory-bytes", "lots"), ("--block-size", "17")],
)
def test_wrong_flags_reach_the_termination_message(flags, monkeypatch, tmp_path):
    monkeypatch.setenv("OCTAVO_TERMINATION_LOG", str(tmp_path / "log"))
    assert CliRunner().invoke(serve.command, ["model", *flags]).exit_code == 2
    said = json.loads((tmp_path / "log").read_text())
    assert said["reason"] == "InvalidSettings"
    assert flags[0] in said["message"]


def test_a_busy_port_is_one_sentence():
    with serve.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(StartupError, match=f"port {port}: Address already in use"):
            serve.listen("127.0.0.1", port)


def test_termination_message(tmp_path, monkeypatch):
    path = tmp_path / "log"
    monkeypatch.setenv("OCTAVO_TERMINATION_LOG", str(path))
    write_termination("ModelNotFound", "no\nsuch model")
    assert json.loads(path.read_text()) == {"reason": "ModelNotFound", "message": "no such model"}
    for message in ("x" * 10_000, "\u4f60" * 9_000, '"\\' * 6_000):
        line = termination_line("EngineFailed", message)
        assert len(line) <= 4096
        assert json.loads(line)["message"].endswith("...")
    monkeypatch.setenv("OCTAVO_TERMINATION_LOG", "/no/such/folder/log")
    write_termination("ModelNotFound", "ignored")


def test_a_chat_template_that_is_no_jinja(monkeypatch, tmp_path):
    path = tmp_path / "t.jinja"
    path.write_text("fine\n{% for x in y %}\n{{ x")
    with pytest.raises(InvalidSettings, match=r"t\.jinja: line 3: ") as caught:
        run(monkeypatch, "m", "--chat-template", str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidSettings, match="--chat-template: line 1: "):
        run(monkeypatch, "m", "--chat-template", "{% if %}")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidSettings, match="UTF-8"):
        run(monkeypatch, "m", "--chat-template", str(path))


def test_a_chat_template_with_the_tags_of_transformers(monkeypatch):
    text = "{% for m in ms %}{% generation %}{{ m }}{% endgeneration %}{% break %}{% endfor %}"
    assert run(monkeypatch, "m", "--chat-template", text)[1].chat_template == text


@pytest.mark.parametrize("prefix", ["1a", "a-b", "a b", "a\n"])
def test_a_prefix_that_no_metric_can_have(monkeypatch, prefix):
    with pytest.raises(InvalidSettings, match="--metrics-prefix"):
        run(monkeypatch, "m", "--metrics-prefix", prefix)
    assert run(monkeypatch, "m", "--metrics-prefix", "")[1].metrics_prefix == ""


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".b", "1:2:z", "a..b"])
def test_a_host_that_does_not_resolve(host):
    with pytest.raises(StartupError, match=r"cannot listen on .*not an address or name"):
        serve.listen(host, 0)
