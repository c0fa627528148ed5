"""Broken configurations: each mistake is one line, with its place and without a secret."""

import sys
from pathlib import Path

import pytest

from llama_stack_lite.config import shipped
from tests.support.configs import ENTRY, OPENAI, SECRET, isolate, lite, mistakes, write

LAUGHS = "".join(
    f"{name}: &{name} [{', '.join([f'*{before}' if before else 'ha'] * 10)}]\n"
    for before, name in zip(["", *"abcde"], "abcdef", strict=True)
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


MAPPING = "must be a mapping of keys to values"
BROKEN: dict[str, tuple[str | bytes, str]] = {
    # no YAML, or no text
    "unclosed bracket": (
        "server: [\n",
        "2:1: is no YAML: expected the node content, but found '<stream end>' while parsing a flow node",
    ),
    "colon too many": ("a: b: c\n", "1:5: is no YAML: mapping values are not allowed here"),
    "unclosed quote": (
        "a: 1\nb: 'x\n",
        "3:1: is no YAML: found unexpected end of stream while scanning a quoted scalar "
        "that begins in line 2",
    ),
    "tab": ("server:\n\tport: 1\n", "2:1: a tab cannot indent or begin a value; use spaces"),
    "empty": ("", "1:1: the file is empty; `llama-lite distro show starter` prints one that is not"),
    "comment": ("# no\n", "1:1: the file is empty; `llama-lite distro show starter` prints one that is not"),
    "list": ("- a\n", "1:1: must be a mapping of sections, such as `inference:`"),
    "text": ("  hello\n", "1:3: must be a mapping of sections, such as `inference:`"),
    "two documents": ("a: 1\n---\nb: 1\n", "2:1: a second document begins; one file holds one"),
    "latin-1": ("description: é\n".encode("latin-1"), "1:14: is not UTF-8; save the file as UTF-8"),
    "utf-16": ("description: e\n".encode("utf-16"), "1:1: is not UTF-8; save the file as UTF-8"),
    "control": ('a: 1\nb: "\x07"\n', "2:5: the character U+0007 is not allowed"),
    # YAML that is no configuration
    "same key": ("server:\n  port: 1\n  port: 2\n", "3:3 server.port: is given twice; first in line 2"),
    "list as key": ("? [a]\n: 1\n", "1:3: a key must be plain text"),
    "alias of itself": ("server: &s {host: *s}\n", "1:13 server.host: an alias that holds itself"),
    "billion laughs": (LAUGHS, "1:44 d[7]: aliases make more than 10000 values of this"),
    "no anchor": (
        "server: {host: *me}\n",
        "1:16: an alias without its anchor; put text that begins with * in quotes",
    ),
    "merge of text": ("server:\n  <<: x\n", "2:7 server.<<: must be an alias of a mapping"),
    "python tag": (
        "server: {host: !!python/object/apply:os.getcwd []}\n",
        "1:16 server.host: a tag means nothing here; put text that begins with ! in quotes",
    ),
    "tag": ("server: !x {}\n", "1:9 server: a tag means nothing here; put text that begins with ! in quotes"),
    "wrong tag": ("server: {port: !!int x}\n", "1:16 server.port: is no int"),
    "deep": (f"server: {'[' * 60}{']' * 60}\n", "1:58 server[0]: is nested deeper than 50 levels"),
    "deeper": (f"server: {'[' * 9000}{']' * 9000}\n", "1:1: is nested deeper than 50 levels"),
    # sections
    "section": ("infrence: {}\n", "1:1 infrence: unknown key (did you mean inference or enforce?)"),
    "no such shield": (
        "safety: {guard: {provider: canary}}\nenforce: {input: [guard, gaurd]}\n",
        "2:26 enforce.input[1]: there is no shield `gaurd` under `safety` (did you mean guard?)",
    ),
    "no such index": (
        "storage: sqlite\nvector_io: {faiss: {provider: faiss}}\ndefaults: {vector_io: fais}\n",
        "3:23 defaults.vector_io: there is no `fais` under `vector_io` (did you mean faiss?)",
    ),
    "no place of files": (
        "defaults: {files: local}\n",
        "1:19 defaults.files: there is no `local` under `files`; there is none",
    ),
    "no such rerank model": (
        f"{ENTRY}defaults: {{rerank_model: r/n}}\n",
        "3:26 defaults.rerank_model: provider `r` serves no model `n`; there is m",
    ),
    "files nowhere": (
        "files: {local: {provider: local}}\n",
        "1:1 files: `files` needs `storage`, such as `storage: sqlite`",
    ),
    "vectors nowhere": (
        "vector_io: {faiss: {provider: faiss}}\n",
        "1:1 vector_io: `vector_io` needs `storage`, such as `storage: sqlite`",
    ),
    "far section": (
        "zzz: 1\n",
        "1:1 zzz: unknown key; known: name, description, inference, safety, enforce, tools, agents, mcp, "
        "storage, files, vector_io, documents, turns, fetch, defaults, server",
    ),
    "key": ("server: {prot: 1}\n", "1:10 server.prot: unknown key (did you mean port or host?)"),
    "number": ("server: {port: soon}\n", "1:16 server.port: must be a whole number"),
    "fraction": ("server: {port: 1.5}\n", "1:16 server.port: must be a whole number"),
    "too big": ("server: {port: 70000}\n", "1:16 server.port: must be less than or equal to 65535"),
    "number as text": ("server: {host: 127}\n", "1:16 server.host: must be text"),
    "no list": ("server:\n  api_keys: k\n", "2:13 server.api_keys: must be a list"),
    "item": ("server: {cors_origins: [a, [b]]}\n", "1:28 server.cors_origins[1]: must be text"),
    "no mapping": ("server: 5\n", f"1:9 server: {MAPPING}"),
    "section as list": ("inference: [a]\n", f"1:12 inference: {MAPPING}"),
    "entry as text": ("inference:\n  r: openai\n", f"2:6 inference.r: {MAPPING}"),
    "name": (
        "inference:\n  a/b: {provider: scripted}\n",
        "2:3 inference.a/b: a name is made of letters, digits, _ and -",
    ),
    # plug-ins and their keys
    "no provider": ("inference:\n  r: {models: [m]}\n", "2:3 inference.r.provider: is missing"),
    "provider as list": ("inference: {r: {provider: [x]}}\n", "1:27 inference.r.provider: must be text"),
    "no such module": (
        "inference: {r: {provider: 'nowhere.at.all:Thing'}}\n",
        "1:27 inference.r.provider: provider `nowhere.at.all:Thing` "
        "needs nowhere: no such module can be imported",
    ),
    "no such class": (
        "inference: {r: {provider: 'json:Thing'}}\n",
        "1:27 inference.r.provider: provider `json:Thing`: module 'json' has no attribute 'Thing'",
    ),
    "no plug-in": (
        "inference: {r: {provider: 'json:JSONDecoder'}}\n",
        "1:27 inference.r.provider: provider `json:JSONDecoder` is no plug-in: "
        "it has no pydantic model `Config`",
    ),
    "its key": (f"{OPENAI}    apikey: x\n", "5:5 inference.r.apikey: unknown key (did you mean api_key?)"),
    "its type": (f"{OPENAI}    timeout: soon\n", "5:14 inference.r.timeout: must be a number"),
    "its range": (f"{OPENAI}    timeout: 0\n", "5:14 inference.r.timeout: must be greater than 0"),
    "its missing key": ("inference: {r: {provider: openai}}\n", "1:13 inference.r.base_url: is missing"),
    "its own check": (
        "inference:\n  r: {provider: openai, base_url: ftp://x}\n",
        "2:35 inference.r.base_url: write it as http://host:port/v1 or https://host/v1",
    ),
    "union": (
        f"{OPENAI}    models: [5]\n",
        "5:14 inference.r.models[0]: must be text or a mapping of keys to values",
    ),
    "union's key": (
        f"{OPENAI}    models: [{{id: a, kin: chat}}]\n",
        "5:22 inference.r.models[0].kin: unknown key (did you mean kind?)",
    ),
    "choice": (
        f"{OPENAI}    models: [{{id: a, kind: chatt}}]\n",
        "5:28 inference.r.models[0].kind: must be 'chat', 'embedding', 'rerank' or 'classifier'",
    ),
    "no models": (
        "inference: {e: {provider: onnx, models: []}}\n",
        "1:41 inference.e.models: must have at least 1 item, not 0",
    ),
    "model": (
        "inference: {e: {provider: onnx, models: [all-minilm-l6]}}\n",
        "1:42 inference.e.models[0]: There is no model `all-minilm-l6` (did you mean all-minilm-l6-v2?)",
    ),
    # defaults
    "no defaults": ("defaults: r/m\n", f"1:11 defaults: {MAPPING}"),
    "embedding default": (
        "inference: {r: {provider: scripted, embedding_models: [e]}}\ndefaults: {embedding_model: r/f}\n",
        "2:29 defaults.embedding_model: provider `r` serves no model `f`; there is scripted, e",
    ),
    "default's provider": (
        f"{ENTRY}  remote: {{provider: scripted}}\ndefaults: {{model: remot/m}}\n",
        "4:19 defaults.model: there is no inference provider `remot` (did you mean remote?)",
    ),
    "default of nothing": (
        "defaults: {embedding_model: e/m}\n",
        "1:29 defaults.embedding_model: there is no inference provider `e`; there is none",
    ),
    "default's model": (
        f"{ENTRY}defaults: {{model: r/n}}\n",
        "3:19 defaults.model: provider `r` serves no model `n`; there is m",
    ),
    "bare default": (
        f"{ENTRY}defaults: {{model: rm}}\n",
        "3:19 defaults.model: no provider serves a model `rm` (did you mean r/m?)",
    ),
    "ambiguous default": (
        f"{ENTRY}  s: {{provider: scripted, models: [m]}}\ndefaults: {{model: m}}\n",
        "4:19 defaults.model: `m` is served by several providers: say r/m or s/m",
    ),
    # environment
    "variable": (
        "server:\n  host: ${env.TEST_NO}\n",
        "2:9 server.host: environment variable TEST_NO is not set; set it, or write ${env.TEST_NO:=default}",
    ),
    "form": (
        "server: {host: '${env.TEST_NO:-x}'}\n",
        "1:16 server.host: write ${env.NAME} or ${env.NAME:=default}, or $${env. for the text itself",
    ),
    "unclosed form": (
        "server:\n  host: ${env.TEST_NO\n",
        "2:9 server.host: write ${env.NAME} or ${env.NAME:=default}, or $${env. for the text itself",
    ),
}


@pytest.mark.parametrize(("text", "line"), BROKEN.values(), ids=BROKEN)
def test_each_mistake_is_one_line_with_its_place(text: str | bytes, line: str) -> None:
    assert mistakes(write(text)) == [f"f.yaml:{line}"]


def test_an_unknown_provider_is_listed_with_the_known() -> None:
    [line] = mistakes(write("inference: {r: {provider: script}}\n"))
    assert line.startswith(
        "f.yaml:1:27 inference.r.provider: there is no inference provider `script` (did you"
    )
    assert "(did you mean scripted?); known: " in line and "openai" in line


def test_a_plug_in_whose_packages_are_missing_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "llama_stack_lite.providers.inference.onnx", raising=False)
    file = write("inference: {e: {provider: onnx, models: [all-minilm-l6-v2]}}\n")
    assert mistakes(file) == [
        "f.yaml:1:27 inference.e.provider: provider `onnx` needs onnxruntime: "
        "pip install 'llama-stack-lite[onnx]'"
    ]


def test_a_plug_in_that_fails_when_imported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    write("raise RuntimeError('no\\nGPU')\n", "failing_plugin.py")
    monkeypatch.syspath_prepend(Path.cwd())
    assert mistakes(write("inference: {r: {provider: 'failing_plugin:P'}}\n")) == [
        "f.yaml:1:27 inference.r.provider: provider `failing_plugin:P` cannot be imported: "
        "RuntimeError: no GPU"
    ]


def test_every_bad_model_is_named() -> None:
    lines = mistakes(write("inference: {e: {provider: onnx, models: [all-minilm-l6, ./no.onnx]}}\n"))
    assert [line.split(":")[2].split()[1] for line in lines] == [
        "inference.e.models[0]",
        "inference.e.models[1]",
    ]


def test_all_mistakes_come_at_once_in_the_order_of_the_sources() -> None:
    first = write("server: {port: x, prot: 1}\ninference:\n  r: {provider: openai, apikey: 1}\n", "1.yaml")
    second = write("description: ${env.TEST_NO}\ndefaults: {model: q/m, model: r/m}\n", "2.yaml")
    assert mistakes(first, second, overrides=("server.hots=a", "inference.s.provider=scripted")) == [
        "1.yaml:1:16 server.port: must be a whole number",
        "1.yaml:1:19 server.prot: unknown key (did you mean port or host?)",
        "1.yaml:3:3 inference.r.base_url: is missing",
        "1.yaml:3:25 inference.r.apikey: unknown key (did you mean api_key?)",
        "2.yaml:1:14 description: environment variable TEST_NO is not set; set it, or write "
        "${env.TEST_NO:=default}",
        "2.yaml:2:19 defaults.model: there is no inference provider `q`; there is r, s",
        "2.yaml:2:24 defaults.model: is given twice; first in line 2",
        "--set server.hots=...: unknown key (did you mean host or port?)",
    ]


SOURCES = {
    "startr": "startr: no such file, and no distribution of that name (did you mean starter?)",
    "./starter": "./starter: no such file, and no distribution of that name (did you mean starter?)",
    "q.yaml": f"q.yaml: no such file, and no distribution of that name; shipped: {', '.join(shipped())}",
    ".": ".: is a folder; name a YAML file in it",
    "a\0b": "a b: cannot be read: embedded null byte",
}


@pytest.mark.parametrize(("source", "line"), SOURCES.items())
def test_a_source_that_cannot_be_read(source: str, line: str) -> None:
    assert mistakes(source) == [line.replace("a b", "a\0b")]


OVERRIDES = {
    "server.port": "--set server.port: must be section.key=value, such as server.port=8080",
    "server..port=1": "--set server..port=...: must be section.key=value, such as server.port=8080",
    "server.port=soon": "--set server.port=...: must be a whole number",
    "server.port.x=1": "--set server.port.x=... server.port: must be a whole number",
    "server={prot: 1}": "--set server=... server.prot: unknown key (did you mean port or host?)",
    "server={port: 1, port: 2}": "--set server=... server.port: is given twice",
    "server.api_keys=[a": "--set server.api_keys=...: is no YAML: expected ',' or ']', but got "
    "'<stream end>' while parsing a flow sequence",
    "inference.r.models=[m]": "--set inference.r.models=... inference.r.provider: is missing",
    "server.host=${env.TEST_NO}": "--set server.host=...: environment variable TEST_NO is not set; set it, "
    "or write ${env.TEST_NO:=default}",
}


@pytest.mark.parametrize(("override", "line"), OVERRIDES.items())
def test_a_mistaken_override_is_named_without_its_value(override: str, line: str) -> None:
    assert mistakes(overrides=(override,)) == [line]


@pytest.mark.parametrize(
    "text",
    [
        SECRET.replace("user: me,", "usr: me,").replace("${env.TEST_KEY}", "hush"),
        SECRET.replace("${env.TEST_KEY}", "[hush]"),
        SECRET.replace("${env.TEST_KEY}", "*hush"),
        SECRET.replace("${env.TEST_KEY}", "!hush"),
        SECRET.replace("${env.TEST_KEY}", "!h!hush"),
        SECRET.replace("${env.TEST_KEY}", "&hush a\n    url: &hush b"),
        SECRET.replace("${env.TEST_KEY}", "hush\n    api_key: hush"),
        SECRET.replace("${env.TEST_KEY}", "${env.TEST_NO:+hush}"),
    ],
)
def test_no_mistake_tells_a_secret(text: str) -> None:
    assert not any("hush" in line for line in mistakes(write(text)))


@pytest.mark.parametrize("command", [["config", "check"], ["config", "show"], ["run"]])
def test_a_broken_configuration_exits_78_with_its_lines(command: list[str]) -> None:
    file = write("server: {prot: 1}\ninference:\n  r: {provider: openai}\n")
    result = lite(*command, file, "--set", "server.host=[]")
    assert (result.returncode, result.stdout) == (78, "")
    assert result.stderr.splitlines() == [
        "f.yaml:1:10 server.prot: unknown key (did you mean port or host?)",
        "f.yaml:3:3 inference.r.base_url: is missing",
        "--set server.host=...: must be text",
    ]
