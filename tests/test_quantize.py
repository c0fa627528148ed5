"""`llama-lite models quantize`, and the type that a model is loaded in."""

import logging
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from llama_stack_lite.api.models import ModelCard, ModelFile
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import ConfigError, InvalidRequest, StackError
from llama_stack_lite.models import card, catalogue, folder_of, format_size, installed, keep, paths
from llama_stack_lite.providers.inference.llama_cpp.loading import Weights
from llama_stack_lite.providers.inference.llama_cpp.quantizing import TYPES, prepared
from llama_stack_lite.quantization import quantize
from tests.support.lite import LITE, Lite
from tests.support.lite import env as env
from tests.support.lite import lite as lite
from tests.support.serving import models_home, serve
from tests.support.tiny import write_llama
from tests.support.waiting import wait_until

WORKING = ".smollm2-135m-iq4_nl.gguf.part"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_LITE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


@pytest.fixture
def tiny(home: Path) -> ModelCard:
    """A random F16 Llama, installed with facts of its own."""
    file = ModelFile(name="tiny.gguf", sources=["hf:me/models/tiny.gguf"])
    model = ModelCard(
        id="tiny",
        quantization="F16",
        temperature=0.3,
        tool_calling="assisted",
        files=[file],
        requantize="q4_0",
    )
    folder_of("tiny").mkdir(parents=True)
    write_llama(folder_of("tiny") / "tiny.gguf")
    keep(model)
    return model


def file_type(path: Path) -> int:
    """The `llama_ftype` that a file says it is."""
    weights = Weights(path, vocab_only=True)
    try:
        return int(weights.meta("general.file_type") or -1)
    finally:
        weights.close()


# a model of its own


def test_the_new_model_has_the_facts_of_the_old_one(tiny: ModelCard) -> None:
    seen: list[tuple[int, int]] = []
    made = quantize(tiny, "Q8_0", progress=lambda done, total: seen.append((done, total)))
    found = card("tiny-q8_0")
    assert found == made.card
    changed = {"id": "tiny-q8_0", "quantization": "Q8_0", "requantize": None}
    assert found.model_dump() == tiny.model_dump() | changed
    assert file_type(made.path) == TYPES["q8_0"]
    assert list(paths(found).values()) == [made.path]
    assert made.path.stat().st_size < paths(tiny)["tiny.gguf"].stat().st_size
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))
    assert made.remarks == []


def test_it_is_served_under_its_name(tiny: ModelCard) -> None:
    quantize(tiny, "q8_0")
    local = {"provider": "llama-cpp", "models": ["tiny-q8_0"], "context": 64, "slots": 1}
    with serve(StackConfig.model_validate({"inference": {"local": local}})) as running:
        body = {"model": "tiny-q8_0", "prompt": "The quick", "max_tokens": 3}
        reply = httpx.post(f"{running.url}/v1/completions", json=body)
        assert reply.json()["usage"]["completion_tokens"] >= 1, reply.text


def test_what_is_lost_is_said(tiny: ModelCard) -> None:
    once = quantize(tiny, "q4_0")
    assert once.remarks == ["1 of 21 tensors do not fit the blocks of q4_0, and have a type of more bits."]
    twice = quantize(once.card, "q8_0")
    assert twice.card.id == "tiny-q4_0-q8_0"
    assert twice.remarks[0].startswith("The source is quantized already (q4_0")


def test_a_file_anywhere_can_be_the_source(tmp_path: Path, home: Path) -> None:
    write_llama(tmp_path / "Mine.gguf")
    made = quantize(card(str(tmp_path / "Mine.gguf")), "bf16", identifier="team/mine")
    assert made.path == home / "team" / "mine" / "mine.gguf"
    assert card("team/mine").quantization == "BF16"


def test_a_name_that_is_taken(tiny: ModelCard) -> None:
    quantize(tiny, "q8_0", identifier="small")
    with pytest.raises(InvalidRequest, match="`small` is here already: --force replaces it"):
        quantize(tiny, "q4_0", identifier="small")
    assert card("small").quantization == "Q8_0"
    made = quantize(tiny, "q4_0", identifier="small", force=True)
    assert card("small").quantization == "Q4_0"
    assert file_type(made.path) == TYPES["q4_0"]
    for other in ("tiny", "smollm2-135m"):
        with pytest.raises(InvalidRequest, match=f"`{other}` is another model"):
            quantize(tiny, "q4_0", identifier=other, force=True)
    with pytest.raises(InvalidRequest, match="cannot be a model's id"):
        quantize(tiny, "q4_0", identifier="../out")


def test_a_failure_leaves_nothing(
    tiny: ModelCard, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = paths(tiny)["tiny.gguf"].read_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StackError, match=r"cannot make q8_0 of .*half\.gguf: .*not within the file bounds"):
        quantize(card(str(tmp_path / "half.gguf")), "q8_0")
    with pytest.raises(InvalidRequest, match=r"`q8_1` \(did you mean q8_0 .*; llama.cpp has .*q4_k_m"):
        quantize(tiny, "q8_1")
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
        with pytest.raises(StackError, match=r"kB are needed and 0 bytes are free"):
            quantize(tiny, "q8_0")
    assert [entry.card.id for entry in installed()] == ["tiny"]
    assert sorted(path.name for path in home.iterdir()) == [".locks", "tiny"]


def test_a_source_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="llama-lite pull smollm2-135m"):
        quantize(card("smollm2-135m"), "q8_0")
    (tmp_path / "model.onnx").write_bytes(b"weights")
    with pytest.raises(ConfigError, match=r"model has no \.gguf file"):
        quantize(card(str(tmp_path / "model.onnx")), "q8_0")


# the command


def test_the_command_says_what_it_does(tiny: ModelCard, lite: Lite) -> None:
    done = lite("models", "quantize", "tiny", "Q4_0")
    assert done.returncode == 0, done.stderr
    before, after = (
        format_size(path.stat().st_size)
        for name in ("tiny", "tiny-q4_0")
        for path in paths(card(name)).values()
    )
    assert done.stdout.startswith(f"tiny-q4_0 is ready: {after} in ")
    assert done.stderr.splitlines()[0] == f"Quantizing tiny ({before}) to Q4_0"
    assert "tiny-q4_0" in lite("models", "list").stdout
    again = lite("models", "quantize", "tiny", "q4_0")
    assert (again.returncode, again.stdout) == (1, "")
    assert "--force replaces it" in again.stderr
    assert lite("models", "quantize", "tiny", "q4_0", "--force").returncode == 0
    assert "is removed" in lite("models", "rm", "tiny-q4_0", "--yes").stdout


@pytest.mark.model
@pytest.mark.usefixtures("starter_config")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_end_before_the_end(number: int, home: Path, env: dict[str, str]) -> None:
    """With a type that takes seconds: Ctrl-C, and a kill that leaves no time to clean up."""
    shutil.copytree(models_home() / "models" / "smollm2-135m", home / "smollm2-135m")
    part = home / "smollm2-135m-iq4_nl" / WORKING
    command = [*LITE, "models", "quantize", "smollm2-135m", "iq4_nl"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        wait_until(part.exists, seconds=20)
        process.send_signal(number)
        _, errors = process.communicate(timeout=15)
    wait_until(lambda: not working_on(part), seconds=20)
    assert "smollm2-135m-iq4_nl" not in [entry.card.id for entry in installed()]
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert errors.splitlines()[-1] == "Interrupted; nothing is left of it."
        assert not part.parent.exists()


def working_on(path: Path) -> bool:
    """Whether a process has this path among its arguments."""
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(path) in arguments.read_bytes():
                return True
        except OSError:  # it has ended
            continue
    return False


# the type that a model is loaded in


def test_a_model_is_loaded_in_the_type_that_its_card_wants(tiny: ModelCard, home: Path) -> None:
    source = paths(tiny)["tiny.gguf"]
    assert prepared(tiny.model_copy(update={"requantize": None}), source) == source
    made = prepared(tiny, source)
    assert made == home / "tiny" / "tiny.q4_0.gguf"
    assert file_type(made) == TYPES["q4_0"]
    inode = made.stat().st_ino
    assert prepared(tiny, source) == made
    assert made.stat().st_ino == inode
    write_llama(source, seed=1)
    assert prepared(tiny, source) == made
    assert made.stat().st_ino != inode
    (entry,) = installed()
    assert (entry.card.id, entry.size) == ("tiny", source.stat().st_size + made.stat().st_size)


def test_a_model_that_cannot_be_converted_is_loaded_as_it_is(
    tiny: ModelCard, caplog: pytest.LogCaptureFixture
) -> None:
    source = paths(tiny)["tiny.gguf"]
    wrong = tiny.model_copy(update={"requantize": "q4_x"})
    with caplog.at_level(logging.WARNING):
        assert prepared(wrong, source) == source
    assert "tiny is used as it is, and not as q4_x: There is no quantization `q4_x`" in caplog.text


def test_the_catalogue_names_types_that_there_are() -> None:
    wanted = [known.requantize for known in catalogue().values() if known.requantize]
    assert wanted
    assert set(wanted) <= set(TYPES)
