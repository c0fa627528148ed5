"""The code interpreter: what it is for, what it keeps, and everything that code must not reach."""

import asyncio
import logging
import os
import platform
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from openai.types.responses import ResponseCodeInterpreterToolCall

from llama_stack_lite.api.containers import Containers
from llama_stack_lite.api.tools import ToolResult
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import Busy, InvalidRequest, NotFound, Unavailable
from llama_stack_lite.providers.tools.code_interpreter import CodeInterpreter, seccomp
from llama_stack_lite.stack import Stack
from tests.conformance.tools import ToolsConformance
from tests.support.probes import Probe, probes
from tests.support.trap import trap

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
MIB = 1024 * 1024
SMALL = {
    "timeout": 2,
    "memory": 128,
    "max_output": 64,
    "max_bytes": 16,
    "max_files": 100,
    "processes": 16,
    "containers": 4,
}
PROBES = probes()


def made(**settings: Any) -> CodeInterpreter:
    """A provider; what a machine lacks for one is said, and not skipped over."""
    found = CodeInterpreter(CodeInterpreter.Config.model_validate(SMALL | settings))
    assert found.off is None, found.off
    return found


@pytest.fixture(scope="module")
def tool() -> CodeInterpreter:
    return made()


def use(tool: CodeInterpreter, do: Callable[[], Awaitable[T]]) -> T:
    async def run() -> T:
        try:
            return await do()
        finally:
            await tool.aclose()

    return asyncio.run(run())


async def ran(tool: CodeInterpreter, code: str, session: str = "one") -> ToolResult:
    found: ToolResult = await tool.call("python", {"code": code}, session=session)
    return found


def texts(tool: CodeInterpreter, *codes: str) -> list[str]:
    """What calls of one session answer, one after the other."""

    async def do() -> list[str]:
        return [(await ran(tool, code)).text.rstrip("\n") for code in codes]

    return use(tool, do)


# ------------------------------------------------------------ use


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("print('one'); print('two')", "one\ntwo"),
        ("6 * 7", "42"),
        ("'it\\'s'", '"it\'s"'),
        ("x = 1", "(It printed nothing.)"),
        ("None", "(It printed nothing.)"),
        ("", "(It printed nothing.)"),
        ("for n in range(3): print(n)", "0\n1\n2"),
        ("print(1)\n2", "1\n2"),
        ("import sys; print('out'); print('err', file=sys.stderr); print('out')", "out\nerr\nout"),
        ("print('naïve 日本語 🧑‍🚀')", "naïve 日本語 🧑‍🚀"),
        ("'\\ud800'", "'\\ud800'"),
        ("print('\\ud800')", "\\ud800"),
        ("import os; os.write(1, b'\\xff\\x00')", "\ufffd\x002"),
        ("print('no newline', end='')", "no newline"),
        ("import sys; sys.exit()", "(It printed nothing.)"),
        ("raise SystemExit('because')", "because"),
        ("def f():\n    return 1\nf()", "1"),
        ("input()", "EOFError: EOF when reading a line"),
        ("__name__", "'__main__'"),
        ("import pickle\nclass A: pass\ntype(pickle.loads(pickle.dumps(A())))", "<class '__main__.A'>"),
        ("import sqlite3, ssl, zlib, decimal, datetime, csv, statistics; statistics.mean([1, 3])", "2"),
        ("import os; os.getcwd(), os.environ['HOME'], os.getuid()", "('/mnt/data', '/mnt/data', 1000)"),
        ("import asyncio\nasync def f(): return 5\nasyncio.run(f())", "5"),
        ("import subprocess, sys; subprocess.check_output([sys.executable, '-c', 'print(7)'])", "b'7\\n'"),
        ("from multiprocessing import Pool\nwith Pool(2) as p: print(p.map(abs, [-1, -2]))", "[1, 2]"),
        ("import threading\nt = threading.Thread(target=print, args=[8]); t.start(); t.join()", "8"),
        ("import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')\nf.closed", "True"),
        ("import socket\na, b = socket.socketpair(); a.send(b'hi'); b.recv(9)", "b'hi'"),
    ],
)
def test_it_runs_python(tool: CodeInterpreter, code: str, text: str) -> None:
    found = texts(tool, code)[0]
    assert found == text or (text.startswith("EOFError") and found.endswith(text))


def test_an_exception_is_text_with_the_lines_of_the_code(tool: CodeInterpreter) -> None:
    code = "def f(x):\n    return 1 / x\n\nf(0)"

    found = use(tool, lambda: ran(tool, code))
    assert found.error
    assert found.text.splitlines() == [
        "Traceback (most recent call last):",
        '  File "<call 1>", line 4, in <module>',
        "    f(0)",
        '  File "<call 1>", line 2, in f',
        "    return 1 / x",
        "           ~~^~~",
        "ZeroDivisionError: division by zero",
    ]


def test_bad_syntax_is_shown_where_it_is(tool: CodeInterpreter) -> None:
    text = texts(tool, "x = (1,\nprint(")[0]
    assert "SyntaxError" in text and "line 2" in text and "ast.py" not in text


def test_variables_functions_and_imports_are_kept(tool: CodeInterpreter) -> None:
    codes = ["import math\nx = 20\ndef double(n): return 2 * n", "double(x) + math.floor(2.5)", "1 / 0", "x"]
    found = texts(tool, *codes, "_")
    assert found[1] == "42" and "ZeroDivisionError" in found[2] and found[3:] == ["20", "20"]


def test_a_result_is_an_item_of_openais(tool: CodeInterpreter) -> None:
    for code, logs in (("print('hi')", "hi\n"), ("x = 1", None), ("1 / 0", "Traceback")):
        found = use(tool, lambda code=code: ran(tool, code))  # type: ignore[misc]
        item = {"id": "ci_1", "type": "code_interpreter_call", "status": "completed", **found.details}
        call = ResponseCodeInterpreterToolCall.model_validate(item)
        assert call.code == code and call.container_id.startswith("cntr_")
        shown = [output.logs for output in call.outputs or [] if output.type == "logs"]
        assert not shown if logs is None else shown[0].startswith(logs)


def test_long_output_is_shortened_for_the_model_alone() -> None:
    tool = made(max_text=1000)
    found = use(tool, lambda: ran(tool, "print('a' * 9000 + 'z' * 9000)"))
    logs = found.details["outputs"][0]["logs"]
    assert logs == "a" * 9000 + "z" * 9000 + "\n"
    assert len(found.text) < 1100 and "characters are left out" in found.text
    assert found.text.startswith("aaa") and found.text.endswith("zzz\n")


def test_what_is_stopped_says_what_is_kept(tool: CodeInterpreter) -> None:
    found = texts(
        tool,
        "x = 1; open('kept', 'w').write('!')",
        "print('so far')\nwhile True: pass",
        "open('kept').read()",
        "x",
    )
    stopped = (
        "[Stopped: it ran longer than 2 seconds. Its variables are gone, the files in /mnt/data are kept.]"
    )
    assert found[1] == f"so far\n{stopped}"
    assert found[2] == "'!'" and "NameError" in found[3]


def test_packages_are_those_that_the_operator_gives(tmp_path: Path) -> None:
    open_folder = Path("/tmp") / f"packages-{secrets.token_hex(4)}"
    open_folder.mkdir(mode=0o755)
    try:
        (open_folder / "flower.py").write_text("name = 'thrift'\n", encoding="utf-8")
        tool = made(packages=[str(open_folder)])
        found = texts(
            tool, "import flower; flower.name", "open(flower.__file__, 'w')", "import pydantic", "import pip"
        )
        assert found[0] == "'thrift'" and "Read-only" in found[1]
        assert "ModuleNotFoundError" in found[2] and "ModuleNotFoundError" in found[3]
    finally:
        (open_folder / "flower.py").unlink()
        open_folder.rmdir()
    off = CodeInterpreter(CodeInterpreter.Config(packages=[tmp_path / "none"])).off
    assert off and "which is no folder" in off


# ------------------------------------------------------------ files


def test_files_go_in_and_out(tool: CodeInterpreter) -> None:
    async def do() -> None:
        assert await tool.files("one") == []
        sent = await tool.write("one", "in naïve.csv", b"a,b\n1,2\n")
        assert (sent.path, sent.bytes, sent.source) == ("/mnt/data/in naïve.csv", 8, "user")
        code = "rows = open('in naïve.csv').read()\nopen('out.txt', 'w').write(rows.upper())"
        assert not (await ran(tool, code)).error
        assert await tool.read("one", "out.txt") == b"A,B\n1,2\n"
        found = {file.path: file for file in await tool.files("one")}
        assert set(found) == {"/mnt/data/in naïve.csv", "/mnt/data/out.txt"}
        assert found["/mnt/data/out.txt"].source == "assistant" and sent.id == found[sent.path].id
        await tool.write("one", "out.txt", b"")
        assert await tool.read("one", "out.txt") == b""
        await tool.remove("one", "out.txt")
        with pytest.raises(NotFound):
            await tool.read("one", "out.txt")
        with pytest.raises(NotFound):
            await tool.remove("one", "out.txt")
        with pytest.raises(NotFound):
            await tool.read("two", "in naïve.csv")

    use(tool, do)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b", "x" * 256, "日" * 86])
def test_a_name_is_no_path(tool: CodeInterpreter, name: str) -> None:
    async def do() -> None:
        for asking in (tool.write("one", name, b"x"), tool.read("one", name), tool.remove("one", name)):
            with pytest.raises(InvalidRequest) as caught:
                await asking
            assert caught.value.param == "file"

    async def begun() -> None:
        await ran(tool, "1")
        await do()

    use(tool, begun)


ODD_FILES = """
import os, socket
os.symlink('/usr/lib/os-release', 'link'); os.symlink('real', 'inner'); open('real', 'w').write('real')
os.symlink('/proc/1/environ', 'environ'); os.mkdir('folder'); os.symlink('loop', 'loop')
open('closed', 'w').write('x'); os.chmod('closed', 0)
open('sparse', 'wb').truncate(16 << 20)
os.link('real', 'hard'); open(b'bad \\xff name', 'w').close(); open('new\\nline', 'w').write('n')
"""


def test_links_and_other_things_that_are_no_files_stay_inside(tool: CodeInterpreter) -> None:
    async def do() -> None:
        assert not (await ran(tool, ODD_FILES)).error
        names = [Path(file.path).name for file in await tool.files("one")]
        assert names == ["closed", "hard", "new\nline", "real", "sparse"]
        for name in ("link", "inner", "environ", "folder", "loop", "none"):
            for asking in (tool.read("one", name), tool.remove("one", name)):
                with pytest.raises(NotFound):
                    await asking
            if name != "none":
                with pytest.raises(NotFound):
                    await tool.write("one", name, b"over it")
        assert await tool.read("one", "real") == b"real" and await tool.read("one", "new\nline") == b"n"
        assert len(await tool.read("one", "sparse")) == 16 * MIB

    use(tool, do)


def test_a_file_that_does_not_fit_is_refused_and_leaves_nothing(tool: CodeInterpreter) -> None:
    async def do() -> None:
        with pytest.raises(InvalidRequest, match="16 MiB"):
            await tool.write("one", "big", bytes(16 * MIB + 1))
        await tool.write("one", "half", bytes(9 * MIB))
        with pytest.raises(InvalidRequest, match="no room"):
            await tool.write("one", "other", bytes(9 * MIB))
        assert [file.path for file in await tool.files("one")] == ["/mnt/data/half"]
        await ran(tool, "for n in range(100): open(str(n), 'w').close()")
        with pytest.raises(InvalidRequest, match="no room"):
            for number in range(100):
                await tool.write("one", f"more {number}", b"")

    use(tool, do)


def test_too_many_files_can_be_removed_again(tool: CodeInterpreter) -> None:
    many = "n = 0\nwhile True:\n    open(str(n), 'w').close(); n += 1"
    wait = "import os, time; time.sleep(0.2)"
    found = texts(tool, many, f"{wait}\nfor name in os.listdir(): os.unlink(name)\n{wait}\nos.listdir()")
    assert "it made more than 100 files" in found[0] and found[1] == "[]"


# ------------------------------------------------------------ sessions and containers


def test_sessions_share_nothing(tool: CodeInterpreter) -> None:
    async def do() -> None:
        await ran(
            tool, "x = 'secret'; open('/mnt/data/f', 'w').write(x); open('/tmp/f', 'w').write(x)", "one"
        )
        found = await ran(
            tool, "import os\nprint('x' in globals(), os.listdir('/mnt/data'), os.listdir('/tmp'))", "two"
        )
        assert found.text == "False [] []\n"

    use(tool, do)


def test_sessions_run_side_by_side_and_calls_of_one_in_turn(tool: CodeInterpreter) -> None:
    async def timed(sessions: list[str]) -> float:
        began = time.monotonic()
        await asyncio.gather(*(ran(tool, "import time; time.sleep(0.5)", session) for session in sessions))
        return time.monotonic() - began

    async def do() -> None:
        await asyncio.gather(*(ran(tool, "1", session) for session in "abc"))
        assert await timed(["a", "b", "c"]) < 1.4
        assert await timed(["a", "a", "a"]) > 1.5

    use(tool, do)


def test_the_longest_unused_container_makes_room(tool: CodeInterpreter) -> None:
    async def do() -> None:
        for session in "abcd":
            await ran(tool, f"x = {session!r}", session)
            await asyncio.sleep(0.01)
        await ran(tool, "x", "a")
        assert (await ran(tool, "1", "e")).text == "1\n"
        assert (await ran(tool, "x", "a")).text == "'a'\n"
        told = await ran(tool, "x", "b")
        assert told.text.startswith("[A new container: variables and files of earlier calls are gone.]\n")
        assert "NameError" in told.text and "A new container" not in (await ran(tool, "1", "b")).text

    use(tool, do)


def test_with_all_at_work_one_more_is_refused(tool: CodeInterpreter) -> None:
    async def do() -> None:
        calls = [asyncio.create_task(ran(tool, "import time; time.sleep(1)", session)) for session in "abcd"]
        await asyncio.sleep(0.3)
        with pytest.raises(Busy, match="all 4 containers"):
            await ran(tool, "1", "e")
        assert not any(found.error for found in await asyncio.gather(*calls))

    use(tool, do)


def test_an_unused_container_ends() -> None:
    tool = made(idle=1)

    async def do() -> None:
        container = (await ran(tool, "x = 1")).details["container_id"]
        await ran(tool, "import time; time.sleep(1.5); x")  # that is use
        assert tool.has(container)
        await asyncio.sleep(2.2)
        assert not tool.has(container)
        assert "A new container" in (await ran(tool, "1")).text

    use(tool, do)


def test_a_container_may_be_made_and_named_in_the_place_of_a_session(tool: CodeInterpreter) -> None:
    async def do() -> None:
        assert isinstance(tool, Containers)
        container = tool.create("mine")
        assert tool.container(container.id).name == "mine" and tool.containers() == [container]
        await tool.write(container.id, "f", b"1")
        found = await ran(tool, "open('f').read()", container.id)
        assert found.text == "'1'\n" and found.details["container_id"] == container.id
        await ran(tool, "1", "one")
        assert [each.id for each in tool.containers()] == [container.id]
        tool.end(container.id)
        for ask in (tool.container, tool.end):
            with pytest.raises(NotFound):
                ask(container.id)

    use(tool, do)


def test_a_call_that_nobody_waits_for_is_stopped_and_the_next_one_runs(tool: CodeInterpreter) -> None:
    async def do() -> None:
        await ran(tool, "open('f', 'w').write('1')")
        call = asyncio.create_task(
            ran(tool, "import time\nopen('g', 'w').write('1')\ntime.sleep(1.5)\nopen('late', 'w')")
        )
        await asyncio.sleep(0.3)
        call.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert time.monotonic() - began < 1
        assert (await ran(tool, "import os; sorted(os.listdir())")).text == "['f', 'g']\n"
        await asyncio.sleep(1.5)
        assert (await ran(tool, "sorted(os.listdir())")).text == "['f', 'g']\n"

    use(tool, do)


def test_a_sandbox_that_is_killed_is_told_and_made_anew(tool: CodeInterpreter) -> None:
    async def do() -> None:
        await ran(tool, "x = 1")
        (container,) = tool._containers.values()
        call = asyncio.create_task(ran(tool, "import time; time.sleep(1)"))
        await asyncio.sleep(0.2)
        container._process.kill()
        found = await call
        assert found.error and "the container has ended; its variables and files are gone" in found.text
        assert (await ran(tool, "1")).text == "1\n"

    use(tool, do)


# ------------------------------------------------------------ nothing runs that nobody waits for


LEFT = {
    "daemon": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        write()
""",
    "thread": """
import threading, time
threading.Thread(target=write).start()
""",
    "program": """
import inspect, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", inspect.getsource(write) + "write()"])
""",
    "a program whose first thread has ended": """
import ctypes, os, threading, time
if os.fork() == 0:
    threading.Thread(target=write).start()
    ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)
""",
    "a program that ignores all it can": """
import os, signal, time
if os.fork() == 0:
    for number in set(range(1, 65)) - {9, 19, 32, 33}:
        signal.signal(number, signal.SIG_IGN)
    write()
""",
}
WRITE = """
def write():
    import time
    while True:
        with open("f", "a") as file:
            file.write("x")
        time.sleep(0.01)
"""


@pytest.mark.parametrize("code", LEFT.values(), ids=LEFT)
def test_nothing_runs_between_calls(tool: CodeInterpreter, code: str) -> None:
    async def do() -> None:
        assert not (await ran(tool, f"{WRITE}{code}time.sleep(0.3)")).error
        before = await tool.read("one", "f")
        await asyncio.sleep(0.5)
        assert before == await tool.read("one", "f") != b""
        assert len((await ran(tool, PROCESSES)).text.split()) == 2

    use(tool, do)


# what was killed after the call before may be reaped while this one looks
PROCESSES = """
import contextlib, os
for pid in filter(str.isdigit, os.listdir('/proc')):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if open(f'/proc/{pid}/stat').read().split()[2] != 'Z':
            print(pid)
"""


def waiting(marker: str) -> str:
    """Code that waits for a program with a word among its arguments."""
    words = ["import time; time.sleep(99)", marker]
    return f"import subprocess, sys; subprocess.run([sys.executable, '-c', *{words}])"


def running(marker: str) -> list[str]:
    """The processes of this machine that have a word among their arguments."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if marker.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
        except OSError:
            pass
    return found


SERVER = """
import asyncio, sys
from llama_stack_lite.providers.tools.code_interpreter import CodeInterpreter
async def main():
    tool = CodeInterpreter(CodeInterpreter.Config())
    await tool.call("python", {"code": sys.stdin.read()}, session="one")
asyncio.run(main())
"""


def test_nothing_is_left_of_a_server_that_is_killed() -> None:
    marker = secrets.token_hex(8)
    server = subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, stdin=subprocess.PIPE)
    assert server.stdin
    try:
        with server.stdin as stdin:
            stdin.write(waiting(marker).encode())
        wait_for(lambda: running(marker), 20)
        server.send_signal(signal.SIGKILL)
        server.wait()
        wait_for(lambda: not running(marker), 10)
    finally:
        server.kill()
        server.wait()


def wait_for(holds: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def test_closing_ends_every_process() -> None:
    tool, marker = made(), secrets.token_hex(8)

    async def do() -> None:
        call = asyncio.create_task(ran(tool, waiting(marker)))
        await asyncio.to_thread(wait_for, lambda: running(marker), 10)
        await tool.aclose()
        assert (await call).error
        await asyncio.to_thread(wait_for, lambda: not running(marker), 5)

    use(tool, do)


# ------------------------------------------------------------ probes


@pytest.fixture(scope="module")
def host() -> Iterator[dict[str, Any]]:
    """What there is outside to be reached; the trap tells whether anything did."""
    secret = secrets.token_hex(16)
    folder = Path("/tmp") / f"outside-{secret[:8]}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    (folder / "file").write_text(secret, encoding="utf-8")
    os.environ["SERVER_SECRET"] = secret
    abstract, path = f"\0{secret}", str(folder / "socket")
    with (
        trap() as caught,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as filed,
        open(folder / "file", encoding="utf-8") as opened,
    ):
        for listener, address in ((named, abstract), (filed, path)):
            listener.bind(address)
            listener.listen()
        os.set_inheritable(opened.fileno(), True)
        yield {
            "port": caught.port,
            "url": f"http://127.0.0.1:{caught.port}/",
            "abstract": abstract,
            "socket": path,
            "file": str(folder / "file"),
            "folder": str(folder),
            "secret": secret,
            "others": f"theirs-{secret[:8]}",
            "pid": os.getpid(),
            "handle": opened.fileno(),
            "trap": caught,
        }
    del os.environ["SERVER_SECRET"]
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def known(host: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in host.items() if name != "trap"}


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: f"{probe.group}: {probe.name}")
def test_no_probe_gets_out(tool: CodeInterpreter, host: dict[str, Any], probe: Probe) -> None:
    if probe.group == "calls" and platform.machine() != "x86_64":
        pytest.skip("the numbers of system calls are those of x86-64")
    before = host["trap"].caught

    async def do() -> tuple[ToolResult, ToolResult]:
        await tool.write("another", host["others"], host["secret"].encode())
        began = time.monotonic()
        found = await ran(tool, probe.program(known(host)))
        assert time.monotonic() - began < 9
        assert await tool.read("another", host["others"]) == host["secret"].encode()
        return found, await ran(tool, "6 * 7")

    found, after = use(tool, do)
    assert "REACHED" not in found.text
    if probe.ends:
        assert found.error and probe.ends in found.text
    else:
        assert not found.error and "BLOCKED" in found.text, found.text
    assert after.text == "42\n"
    assert host["trap"].caught == before
    assert not Path(host["folder"], "escaped").exists()


def test_there_are_enough_probes() -> None:
    assert len(PROBES) >= 40 and len({probe.name for probe in PROBES}) == len(PROBES)


@pytest.mark.parametrize("probe", [probe for probe in PROBES if probe.outside], ids=lambda probe: probe.name)
def test_a_probe_does_reach_what_it_looks_for_without_the_sandbox(host: dict[str, Any], probe: Probe) -> None:
    command = [sys.executable, "-c", probe.program(known(host))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "REACHED" in done.stdout, done.stdout + done.stderr


# ------------------------------------------------------------ the filter


def decided(program: bytes, number: int, *arguments: int, architecture: int) -> int:
    """What a filter answers, by the rules of the kernel's classic BPF machine."""
    words = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, architecture, 0, *(word & 2**64 - 1 for word in words))
    code = [struct.unpack_from("=HBBI", program, start) for start in range(0, len(program), 8)]
    accumulator = at = 0
    while True:
        operation, then, otherwise, value = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == 0x06:
            return int(value)
        else:
            tests = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x25: accumulator > value,
                0x45: bool(accumulator & value),
            }
            at += then if tests[operation] else otherwise


ALLOWED, REFUSED, UNKNOWN, KILLED = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
X86, ARM = 0xC000003E, 0xC00000B7


@pytest.mark.parametrize(
    ("machine", "architecture", "number", "arguments", "answer"),
    [
        ("x86_64", X86, 0, (), ALLOWED),  # read
        ("x86_64", X86, 1, (), ALLOWED),  # write
        ("x86_64", X86, 41, (2, 1, 0), REFUSED),  # socket
        ("x86_64", X86, 41, (1, 1, 0), REFUSED),
        ("x86_64", X86, 53, (1, 1, 0), ALLOWED),  # socketpair
        ("x86_64", X86, 53, (16, 1, 0), REFUSED),
        ("x86_64", X86, 56, (0x1200011,), ALLOWED),  # clone, as fork does it
        ("x86_64", X86, 56, (0x3D0F00,), ALLOWED),  # as threads do
        ("x86_64", X86, 56, (0x10000011,), REFUSED),
        ("x86_64", X86, 16, (0, 0x5401), ALLOWED),  # ioctl
        ("x86_64", X86, 16, (0, 0x5412), REFUSED),
        ("x86_64", X86, 16, (0, 0xFF00005412), REFUSED),
        ("x86_64", X86, 101, (), REFUSED),  # ptrace
        ("x86_64", X86, 272, (), REFUSED),  # unshare
        ("x86_64", X86, 425, (), UNKNOWN),  # io_uring_setup
        ("x86_64", X86, 435, (), UNKNOWN),  # clone3
        ("x86_64", X86, 439, (), ALLOWED),  # faccessat2
        ("x86_64", X86, 9999, (), UNKNOWN),
        ("x86_64", X86, 0x40000000, (), KILLED),
        ("x86_64", X86, -1, (), KILLED),
        ("x86_64", 0x40000003, 4, (), KILLED),  # i386
        ("aarch64", ARM, 63, (), ALLOWED),  # read
        ("aarch64", ARM, 198, (2, 1, 0), REFUSED),  # socket
        ("aarch64", ARM, 220, (0x10000011,), REFUSED),  # clone
        ("aarch64", ARM, 29, (0, 0x5412), REFUSED),  # ioctl
        ("aarch64", ARM, 117, (), REFUSED),  # ptrace
        ("aarch64", ARM, 97, (), REFUSED),  # unshare
        ("aarch64", ARM, 425, (), UNKNOWN),
        ("aarch64", X86, 63, (), KILLED),
    ],
)
def test_what_the_filter_answers(
    machine: str, architecture: int, number: int, arguments: tuple[int, ...], answer: int
) -> None:
    program = seccomp.program(machine)
    assert len(program) % 8 == 0 and len(program) // 8 <= 4096  # BPF_MAXINSNS
    assert decided(program, number, *arguments, architecture=architecture) == answer


def test_the_filter_allows_the_listed_calls_and_no_other() -> None:
    for machine, architecture in seccomp.ARCHITECTURES.items():
        program, listed = seccomp.program(machine), set(seccomp._numbers(machine).values())
        for number in range(600):
            allowed = decided(program, number, 1, 0x5401, architecture=architecture) == ALLOWED
            assert not allowed or number in listed, number
        assert decided(program, 0 if machine == "x86_64" else 63, architecture=architecture) == ALLOWED


# ------------------------------------------------------------ where it cannot be shut in, it is off


def off(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, **settings: Any) -> str:
    """Why a server's tool is off: logged at its start, and told by each of its calls."""
    section = {"code": {"provider": "code-interpreter", **settings}}

    async def do() -> str:
        with caplog.at_level(logging.WARNING):
            stack = await Stack.build(StackConfig.model_validate({"tools": section}))
        tool = stack.tools["code"]
        with pytest.raises(Unavailable) as listing:
            await tool.tools()
        with pytest.raises(Unavailable) as calling:
            await tool.call("python", {"code": "1"}, session="one")
        await stack.aclose()
        assert str(listing.value) == str(calling.value) and str(listing.value) in caplog.text
        return str(listing.value)

    return asyncio.run(do())


def test_without_bubblewrap_it_is_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert off(monkeypatch, caplog) == (
        "code_interpreter is off: bubblewrap is not installed (apt-get install bubblewrap)"
    )


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo 'bwrap: No permissions to create new namespace' >&2; exit 1",
            "No permissions to create new namespace",
        ),
        ("exit 1", "it said nothing"),
        # a sandbox that runs what it is given, and shuts nothing
        ('while [ "$1" != "--" ]; do shift; done; shift; exec "$@"', "the sandbox is not shut: "),
        ("kill -9 $$", "bubblewrap can make no sandbox here"),
    ],
)
def test_with_a_bubblewrap_that_shuts_nothing_it_is_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, script: str, words: str
) -> None:
    folder = Path("/tmp") / f"bin-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o755)
    fake = folder / "bwrap"
    fake.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    fake.chmod(0o755)
    try:
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        assert words in off(monkeypatch, caplog)
    finally:
        fake.unlink()
        folder.rmdir()


def test_without_a_python_that_may_be_run_it_is_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    found = off(monkeypatch, caplog, python=str(tmp_path / "python3"))
    assert "can run no Python at" in found and "name one by `python`" in found


def test_on_another_system_it_is_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert "it needs Linux on x86_64 or aarch64" in off(monkeypatch, caplog)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has other users to run code as")
def test_root_never_runs_code_itself(tool: CodeInterpreter) -> None:
    async def do() -> list[int]:
        marker = secrets.token_hex(8)
        call = asyncio.create_task(ran(tool, waiting(marker)))
        await asyncio.to_thread(wait_for, lambda: running(marker), 10)
        (container,) = tool._containers.values()
        owners = [os.stat(f"/proc/{pid}").st_uid for pid in [container._process.pid, *running(marker)]]
        call.cancel()
        return owners

    assert use(tool, do) == [65534, 65534]


class TestCodeInterpreter(ToolsConformance):
    tool = "python"

    def provider(self) -> CodeInterpreter:
        return made(timeout=20, containers=9)

    def example(self, number: int) -> tuple[dict[str, Any], str]:
        return {"code": f"print('the number', {number} * 7)"}, f"the number {number * 7}"
