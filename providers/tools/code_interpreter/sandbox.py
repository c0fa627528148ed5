"""The sandbox around code: bubblewrap's namespaces and mounts, a seccomp filter, a user without rights."""

import json
import logging
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from .seccomp import ARCHITECTURES
from .seccomp import program as filter_for

log = logging.getLogger(__name__)

HEAD = struct.Struct(">cI")  # of a message to or from process 1: its kind, and how long it is
FOLDER = "/mnt/data"  # the work folder, as code sees it
MEMORY_FOLDER = 16 * 1024 * 1024  # bytes of /dev/shm
DEVICES = ("null", "zero", "full", "random", "urandom")
LIBRARIES = ("lib", "lib32", "lib64", "usr/lib", "usr/lib32", "usr/lib64")
READABLE = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo")
START_SECONDS = 20.0
ABOUT = """
import json, os, platform, sys
print(json.dumps([os.path.realpath(sys.executable), sys.base_prefix, platform.python_version()]))
"""


class Off(Exception):
    """Why code cannot be run here, in words for whoever runs the server."""


@dataclass(frozen=True, slots=True)
class Python:
    """An interpreter: its file, the folder it is installed in, its version."""

    executable: Path
    prefix: Path
    version: str

    @property
    def inside(self) -> Path:
        """The folder that it is installed in as code sees it, which gives away no home folder's name."""
        return self.prefix if self.prefix == Path("/usr") else Path("/usr/local")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """How every sandbox of a server is made.

    `limits` are `timeout` (seconds), `memory`, `output`, `bytes` (bytes), `files` and `processes` (counts).
    """

    bubblewrap: str
    python: Python
    user: int | None
    limits: dict[str, float]
    packages: list[Path]

    def start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Start one; the process that ends it when killed, and the socket to its process 1.

        Call it in a thread that lives as long as the sandbox shall: the kernel ends them together.
        """
        ours, theirs = socket.socketpair()
        filter_end, end = os.pipe()
        with theirs, open(filter_end, "rb") as program:
            with open(end, "wb") as file:
                file.write(filter_for(platform.machine()))
            process = subprocess.Popen(
                self._command(program=program.fileno(), channel=theirs.fileno()),
                pass_fds=(program.fileno(), theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                **unprivileged(self.user),
            )
        return process, ours

    def _command(self, *, program: int, channel: int) -> list[str]:
        packages = {f"/packages/{number}": path for number, path in enumerate(self.packages)}
        interpreter, process = _text("interpreter.py"), _text("process.py")
        settings = {"limits": self.limits, "packages": list(packages), "interpreter": interpreter}
        words = [self.bubblewrap, "--unshare-all", "--unshare-user", "--disable-userns"]
        words += ["--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--cap-drop", "ALL"]
        words += ["--new-session", "--die-with-parent", "--as-pid-1", "--clearenv", *self._environment()]
        words += [*self._system(), *_bound({**self._interpreter(), **packages})]
        for path in self._hidden():
            words += ["--tmpfs", path, "--remount-ro", path]
        words += [*_devices(), "--proc", "/proc", "--remount-ro", "/proc"]
        size = str(int(self.limits["bytes"]))
        words += ["--size", size, "--tmpfs", "/tmp", "--size", size, "--tmpfs", FOLDER, "--chdir", FOLDER]
        words += ["--remount-ro", "/", "--seccomp", str(program), "--"]
        words += [str(self.python.inside / "bin" / "python3"), "-I", "-B", "-X", "utf8", "-c", process]
        return [*words, str(channel), json.dumps(settings)]

    def _environment(self) -> list[str]:
        """What code finds in its environment, and nothing of the server's."""
        values = {
            "HOME": FOLDER,
            "LANG": "C.UTF-8",
            "LD_LIBRARY_PATH": str(self.python.inside / "lib"),  # of a Python that was built elsewhere
            "MPLBACKEND": "Agg",
            "MPLCONFIGDIR": "/tmp",
            # a thread for each core of the machine, each with its stack, would use up the memory
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PATH": str(self.python.inside / "bin"),
            "TMPDIR": "/tmp",
        }
        return [word for name, value in values.items() for word in ("--setenv", name, value)]

    def _system(self) -> list[str]:
        """The shared libraries, laid out as on this machine, and no program that uses them."""
        words: list[str] = []
        for name in LIBRARIES:
            path = Path("/", name)
            if path.is_symlink():
                words += ["--symlink", os.readlink(path), str(path)]
            elif path.is_dir():
                words += ["--ro-bind", str(path), str(path)]
        return [*words, *(word for path in READABLE for word in ("--ro-bind-try", path, path))]

    def _hidden(self) -> list[str]:
        """The folders of packages beside the standard library, in which the server's own may lie."""
        return [
            str(inside / found.relative_to(prefix))
            for prefix, inside in {(Path("/usr"), Path("/usr")), (self.python.prefix, self.python.inside)}
            for found in prefix.glob("lib*/python*/*-packages")
        ]

    def _interpreter(self) -> dict[str, Path]:
        inside, found = self.python.inside, {}
        if inside != self.python.prefix:
            found[str(inside / "lib")] = self.python.prefix / "lib"
        return {**found, str(inside / "bin" / "python3"): self.python.executable}


def find(*, python: Path | None, user: int, limits: dict[str, float], packages: list[Path]) -> Sandbox:
    """What is needed, found on this machine; raises `Off` where something is missing."""
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in ARCHITECTURES:
        known = " or ".join(ARCHITECTURES)
        raise Off(f"it needs Linux on {known}, and this is {platform.system()} on {machine}")
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise Off("bubblewrap is not installed (apt-get install bubblewrap)")
    lowered = user if os.geteuid() == 0 else None
    candidates = [python] if python else [Path(sys.executable).resolve(), Path("/usr/bin/python3")]
    for candidate in candidates:
        if found := _about(candidate, lowered):
            log.debug("code runs with Python %s at %s", found.version, found.executable)
            return Sandbox(bubblewrap, found, lowered, limits, packages)
    who = (
        "this user" if lowered is None else f"user {lowered}, as whom a server that runs as root starts code,"
    )
    tried = " or ".join(map(str, candidates))
    raise Off(f"{who} can run no Python at {tried}; name one by `python`, such as /usr/bin/python3")


def unprivileged(user: int | None) -> dict[str, Any]:
    """How a process is started that has nothing of the server's: no variable, folder or right of root's."""
    options: dict[str, Any] = {"env": {"PATH": "/usr/bin:/bin"}, "cwd": "/"}
    return options if user is None else options | {"user": user, "group": user, "extra_groups": []}


def _about(executable: Path, user: int | None) -> Python | None:
    """The interpreter at a path, asked as the user that is to run it; None where that cannot be."""
    command = [str(executable), "-I", "-c", ABOUT]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=START_SECONDS, check=True, **unprivileged(user)
        )
        path, prefix, version = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.debug("%s cannot be run: %s", executable, error)
        return None
    return Python(Path(path), Path(prefix), version)


def _text(name: str) -> str:
    """A file of this package, which goes in as text: the sandbox's user may not be let into its folder."""
    return (resources.files(__package__) / name).read_text("utf-8")


def _bound(folders: dict[str, Path]) -> list[str]:
    return [word for inside, path in folders.items() for word in ("--ro-bind", str(path), inside)]


def _devices() -> list[str]:
    """Those that hold nothing, and no terminal."""
    words = ["--tmpfs", "/dev", "--symlink", "/proc/self/fd", "/dev/fd"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        words += ["--symlink", f"/proc/self/fd/{number}", f"/dev/{name}"]
    for name in DEVICES:
        words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    return [*words, "--size", str(MEMORY_FOLDER), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]


def checked(hello: bytes) -> None:
    """Raise `Off` unless process 1 of a sandbox finds itself shut in as it should be."""
    facts = json.loads(hello)
    wanted = {
        "uid": 1000,
        "capabilities": 0,
        "no_new_privileges": True,
        "filtered": True,
        "interfaces": ["lo"],
        "writable": [],
        "processes": 0,
    }
    if wrong := [
        f"{name} is {facts.get(name)}" for name, value in wanted.items() if facts.get(name) != value
    ]:
        raise Off(f"the sandbox is not shut: {', '.join(wrong)}")


def try_out(sandbox: Sandbox) -> None:
    """Start one sandbox and end it; raises `Off` where that fails, or where it is not shut."""
    process, channel = sandbox.start()
    channel.settimeout(START_SECONDS)
    try:
        with channel, channel.makefile("rb") as reader:
            _, length = HEAD.unpack(reader.read(HEAD.size))
            hello = reader.read(length)
    except (OSError, struct.error):
        hello = b""
    finally:
        said = end(process)
    if not hello:
        raise Off(
            f"bubblewrap can make no sandbox here ({said or 'it said nothing'}); it must be version 0.8 or "
            "newer, and the kernel must let users without rights make namespaces"
        )
    checked(hello)


def end(process: subprocess.Popen[bytes]) -> str:
    """Kill a sandbox, and with it everything inside; what it said of itself on one line."""
    process.kill()
    process.wait()
    assert process.stderr is not None
    with process.stderr as stream:
        os.set_blocking(stream.fileno(), False)
        said = stream.read() or b""
    return " ".join(said.decode(errors="replace").split())[-500:]
