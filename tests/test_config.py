"""A configuration: what it may say, how its files merge, and what of it is shown."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_stack_lite.config import load, shipped
from llama_stack_lite.config.schema import schema
from llama_stack_lite.config.show import shown
from tests.support.configs import ENTRY, OPENAI, SECRET, SECRETIVE, isolate, lite, mistakes, read, write

VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


def test_mappings_merge_and_all_else_is_replaced() -> None:
    config = read(
        f"{ENTRY}server: {{port: 1, api_keys: [a, b]}}\ndescription: first\n",
        "server: {port: 2, api_keys: [c]}\ninference: {r: {loop: true}, s: {provider: scripted}}\n",
        overrides=("server.port=3", "server.port=4"),
    )
    assert list(config.inference) == ["r", "s"]
    assert config.inference["r"].settings == {"models": ["m"], "loop": True}
    assert config.server.port == 4 and config.description == "first"
    assert [key.get_secret_value() for key in config.server.api_keys] == ["c"]


def test_null_on_the_right_takes_a_key_away() -> None:
    config = read(
        f"{ENTRY}  s: {{provider: scripted}}\nserver: {{port: 1}}\n",
        "inference:\n  s:\n  r: {models: ~}\nserver:\n",
        overrides=("description=null",),
    )
    assert list(config.inference) == ["r"] and config.inference["r"].settings == {}
    assert config.server.port == 8321 and config.description is None


def test_null_is_as_good_as_nothing_but_reaches_a_provider() -> None:
    config = read(
        f"inference:\n  r: {{provider: '{SECRETIVE}', limit: null}}\ndefaults:\nserver: {{port: ~}}\n"
    )
    assert config.inference["r"].settings == {"limit": None}
    assert config.server.port == 8321


def test_swapping_a_provider_keeps_its_other_keys() -> None:
    overrides = ("inference.local.provider=openai", "inference.local.base_url=http://127.0.0.1:9/v1")
    config = load(["starter"], overrides=overrides)
    assert config.inference["local"].provider == "openai"
    assert config.inference["local"].settings == {
        "models": ["smollm2-135m"],
        "base_url": "http://127.0.0.1:9/v1",
    }


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("::", "::"),
        ("0", "0"),
        ("a: b", "a: b"),
        ("a # b", "a # b"),
        ("- x", "- x"),
        ("*x", "*x"),
        ("@x=y", "@x=y"),
        ('"7"', "7"),
        ("'[x]'", "[x]"),
        ("yes", "yes"),
        (" padded ", "padded"),
    ],
)
def test_an_override_needs_no_quotes_for_text(value: str, host: str) -> None:
    assert load([], overrides=[f"server.host={value}"]).server.host == host


def test_an_override_may_be_a_list_or_a_mapping() -> None:
    config = load(
        [], overrides=["server.api_keys=[a, '1']", "inference.r={provider: scripted, models: [x, y]}"]
    )
    assert [key.get_secret_value() for key in config.server.api_keys] == ["a", "1"]
    assert config.inference["r"].settings == {"models": ["x", "y"]}


def test_anchors_aliases_and_merge_keys() -> None:
    config = read(
        "inference:\n  a: &a {provider: scripted, models: &m [x], loop: false}\n"
        "  b: {<<: *a, loop: true}\n  c: {<<: [{loop: true}, *a]}\n  d: {provider: scripted, models: *m}\n"
    )
    settings = {name: entry.settings for name, entry in config.inference.items()}
    assert settings["b"] == settings["c"] == {"models": ["x"], "loop": True}
    assert settings["d"] == {"models": ["x"]}


def test_variables_expand_anywhere_in_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TEST_A": "alpha", "TEST_PORT": "99", "TEST_YES": "true", "TEST_EMPTY": ""}.items():
        monkeypatch.setenv(name, value)
    config = read(
        "description: ${env.TEST_A}-${env.TEST_B:=beta}-$${env.TEST_A}-${env.TEST_EMPTY:=}-${env.TEST_C:=}\n"
        "inference:\n  r: {provider: scripted, loop: '${env.TEST_YES}'}\n"
        "  s:\n    provider: ${env.TEST_P:=scripted}\n    loop: ${env.TEST_YES}\n"
        "    embedding_dimension: ${env.TEST_D:=12}\n"
        "server: {port: '${env.TEST_PORT}', host: '${env.TEST_EMPTY:=${env.TEST_A}'}\n"
    )
    assert config.description == "alpha-beta-${env.TEST_A}--"
    assert config.server.port == 99 and config.server.host == "${env.TEST_A"
    assert config.inference["s"].settings == {"loop": True, "embedding_dimension": 12}


@pytest.mark.parametrize("default", ["r/m", "m", "r/e", "org/m", "r/org/m", "remote/any/thing", "any"])
def test_a_default_that_some_provider_may_serve(default: str) -> None:
    config = read(
        "inference:\n  r: {provider: scripted, models: [m, org/m], embedding_models: [e]}\n"
        "  remote: {provider: openai, base_url: 'http://x/v1'}\n",
        overrides=(f"defaults.model={default}",),
    )
    assert config.defaults.model == default


def test_an_empty_default_alone_is_null() -> None:
    config = read(f"{OPENAI}    api_key: ${{env.TEST_KEY:=}}\nserver:\n  port: ${{env.TEST_PORT:=}}\n")
    assert config.inference["r"].settings["api_key"] is None
    assert config.server.port == 8321


def test_a_variable_that_an_override_replaces_need_not_be_set() -> None:
    config = read("server: {host: '${env.TEST_NO}'}\n", overrides=("server.host=h",))
    assert config.server.host == "h"


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_EMPTY", "")
    [line] = mistakes(write("description: ${env.TEST_EMPTY}\n"))
    assert "TEST_EMPTY is empty" in line


@pytest.mark.parametrize("quote", ["", '"', "'"])
@settings(deadline=None)
@given(
    value=VALUES
    | st.sampled_from(["null", "~", "0123", "1e3", "1:30", "yes", "a: b", "- x", "${env.TEST_V}"])
)
def test_text_from_a_variable_stays_that_text(quote: str, value: str) -> None:
    """No value becomes a number, a list, a key or another reference where text is wanted."""
    path = Path(f"reference{len(quote)}{ord(quote or 'p')}.yaml")
    path.write_text(
        f"description: {quote}${{env.TEST_V}}{quote}\n"
        f"inference:\n  r:\n    provider: {SECRETIVE}\n    api_key: {quote}${{env.TEST_V}}{quote}\n",
        encoding="utf-8",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_V", value)
        config = load([str(path)])
    assert config.description == config.inference["r"].settings["api_key"] == value


@settings(deadline=None)
@given(port=st.integers(0, 65535))
def test_a_number_from_a_variable_is_a_number(port: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_PORT", str(port))
        assert load([], overrides=["server.port=${env.TEST_PORT}"]).server.port == port


def test_what_is_shown_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "hush")
    config = read(SECRET)
    data = shown(config)
    assert data == {
        "name": config.name,
        "inference": {
            "r": {
                "provider": SECRETIVE,
                "url": "http://me:***@host/v1",
                "api_key": "***",
                "access-token": "***",
                "headers": {"Authorization": "***"},
                "accounts": [{"user": "me", "password": "***"}],
                "admin": {"user": "root", "password": "***"},
            }
        },
        "server": {"api_keys": ["***", "***"], "port": 1},
    }
    assert "hush" not in repr(config)


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_distribution_is_short_and_fits_the_schema(name: str) -> None:
    text = shipped()[name].read_text(encoding="utf-8")
    assert text.count("\n") <= 40
    jsonschema.Draft202012Validator(schema()).validate(yaml.safe_load(text))
    assert load([name]).description


def test_the_schema_is_valid_and_refuses_what_the_check_refuses() -> None:
    found = schema()
    jsonschema.Draft202012Validator.check_schema(found)
    fits = jsonschema.Draft202012Validator(found).is_valid
    remote: dict[str, Any] = {"provider": "openai", "base_url": "http://x/v1"}
    assert fits({"inference": {"r": remote | {"timeout": "${env.T:=5}", "api_key": None}}})
    assert fits({"inference": {"r": {"provider": SECRETIVE, "anything": 1}}, "server": {"port": "${env.P}"}})
    misfits: list[dict[str, Any]] = [
        {"inference": {"r": remote | {"apikey": "x"}}},
        {"inference": {"r": remote | {"timeout": "soon"}}},
        {"inference": {"r": {"provider": "openai"}}},
        {"inference": {"r": {"provider": "opnai"}}},
        {"inference": {"r": {"models": []}}},
        {"inference": {"a/b": remote}},
        {"infrence": {}},
        {"server": {"port": 70000}},
    ]
    for wrong in misfits:
        assert not fits(wrong), wrong


def test_a_good_configuration_is_checked_shown_and_described() -> None:
    file = write(OPENAI + "    api_key: hush\ndescription: ö\n")
    checked = lite("config", "check", file)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "The configuration is valid.\n", "")
    as_yaml, as_json = lite("config", "show", file), lite("config", "show", "--json", file)
    entry = {"provider": "openai", "base_url": "http://x/v1", "api_key": "***"}
    assert yaml.safe_load(as_yaml.stdout) == json.loads(as_json.stdout)
    assert json.loads(as_json.stdout) == {
        "name": Path(file).stem,
        "description": "ö",
        "inference": {"r": entry},
    }
    assert json.loads(lite("config", "schema").stdout) == schema()
