"""Process 1 of a sandbox: starts the interpreter of code, measures and stops it, and keeps the files.

The server hands this text to `python -c`, so it imports the standard library alone. Code may do to its
interpreter whatever it likes, and what process 1 says is only ever an answer about its own sandbox.
"""

import ctypes
import errno
import io
import json
import os
import re
import resource
import select
import signal
import socket
import stat
import struct
import sys
import time
from contextlib import suppress
from typing import Any

HEAD = struct.Struct(">cI")  # of a message: its kind, and how long it is
FOLDER = "/mnt/data"
FOLDERS = (FOLDER, "/tmp", "/dev/shm")
SURROGATE = re.compile("[\ud800-\udfff]")
PAGE = resource.getpagesize()
PACE = 0.05  # seconds between two looks at memory and files
ROUNDS = 500  # of at least a millisecond, to be rid of what a call left running
OPEN_FILES = 128
PROCESSOR_SECONDS = 3600  # of one process, however many calls it serves
ENDINGS = {b"d": "done", b"r": "raised"}
PR_SET_DUMPABLE = 4


def receive(channel: socket.socket) -> "tuple[bytes, bytearray] | None":
    """The next message's kind and payload; None where the other end has gone."""
    head = exactly(channel, HEAD.size)
    if head is None:
        return None
    kind, length = HEAD.unpack(head)
    payload = exactly(channel, length)
    return None if payload is None else (kind, payload)


def exactly(channel: socket.socket, count: int) -> "bytearray | None":
    found = bytearray()
    while len(found) < count:
        piece = channel.recv(min(count - len(found), 1 << 20))
        if not piece:
            return None
        found += piece
    return found


def send(channel: socket.socket, kind: bytes, payload: "bytes | bytearray") -> None:
    channel.sendall(HEAD.pack(kind, len(payload)) + payload)


class Sandbox:
    """Answers the server, one message for each, and keeps at most one interpreter.

    The interpreter is stopped between calls, and whatever else a call started is killed at its end, so that
    nothing runs while nobody waits for it.
    """

    channel: socket.socket  # to the interpreter

    def __init__(self, server: socket.socket, settings: "dict[str, Any]") -> None:
        self.server = server
        self.limits: dict[str, float] = settings["limits"]
        self.packages: list[str] = settings["packages"]
        self.interpreter: dict[str, Any] = {}
        exec(settings["interpreter"], self.interpreter)  # noqa: S102 - the server's own text, as this one is
        self.output, self.output_end = os.pipe()
        os.set_blocking(self.output, False)
        self.most_files: dict[str, float] = {}
        self.look = 0.0  # when memory and files are looked at again
        self.pid = 0

    def serve(self) -> None:
        answers = {b"w": self.write, b"l": self.list, b"r": self.read, b"x": self.remove}
        while (message := receive(self.server)) is not None:
            kind, payload = message
            if kind == b"c":
                header, output = self.run(payload)
                send(self.server, b"c", json.dumps(header).encode() + b"\n" + output)
            elif kind in answers:
                os.chmod(FOLDER, 0o755)  # whatever code made of it
                try:
                    answers[kind](payload)
                except OSError as error:
                    send(self.server, b"e", str(error.errno).encode())

    # files: a link leads nowhere but into this sandbox, and even so none is followed

    def write(self, payload: bytearray) -> None:
        end = payload.index(0)
        name = bytes(payload[:end])
        if files_in(FOLDER) > self.limits["files"]:
            raise OSError(errno.ENOSPC, "too many files")
        handle = self.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with os.fdopen(handle, "wb") as file:
            try:
                file.write(memoryview(payload)[end + 1 :])
                file.flush()
            except OSError:
                os.unlink(os.path.join(FOLDER.encode(), name))
                raise
        send(self.server, b"a", b"")

    def open(self, name: bytes, flags: int) -> int:
        path = os.path.join(FOLDER.encode(), name)
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(errno.ENOENT, "no file")
        return handle

    def list(self, payload: bytearray) -> None:
        found = []
        for entry in os.scandir(FOLDER):
            # a name that is no UTF-8 could be told to nobody
            if entry.is_file(follow_symlinks=False) and not SURROGATE.search(entry.name):
                about = entry.stat(follow_symlinks=False)
                found.append([entry.name, about.st_size, int(about.st_mtime)])
        send(self.server, b"a", json.dumps(found[: int(self.limits["files"])]).encode())

    def read(self, payload: bytearray) -> None:
        with os.fdopen(self.open(bytes(payload), os.O_RDONLY), "rb") as file:
            self.server.sendall(HEAD.pack(b"a", os.fstat(file.fileno()).st_size))
            while piece := file.read(1 << 20):
                self.server.sendall(piece)

    def remove(self, payload: bytearray) -> None:
        os.close(self.open(bytes(payload), os.O_RDONLY))
        os.unlink(os.path.join(FOLDER.encode(), bytes(payload)))
        send(self.server, b"a", b"")

    # code

    def run(self, code: bytearray) -> "tuple[dict[str, object], bytes]":
        """Run it; how it ended, whether variables are kept, and what it wrote."""
        began = time.monotonic()
        output = bytearray()
        # more than the limit may be there already, and code must be able to remove it
        self.most_files = {folder: max(files_in(folder), self.limits["files"]) for folder in FOLDERS}
        try:
            self.wake()
            self.channel.sendall(len(code).to_bytes(4, "big") + code)
            how = self.watch(began + self.limits["timeout"], output)
        except OSError:
            how = "died"
        kept = how in ("done", "raised") and self.settle()
        if not kept:
            self.clear()
        self.drain(output)
        header = {"how": how, "kept": kept, "seconds": time.monotonic() - began}
        return header, bytes(output[: int(self.limits["output"])])

    def wake(self) -> None:
        """Start an interpreter, or let the one that is there go on."""
        if self.pid:
            os.kill(self.pid, signal.SIGCONT)
            return
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(1)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.become_interpreter(theirs)
            finally:
                os._exit(1)
        theirs.close()

    def become_interpreter(self, channel: socket.socket) -> None:
        for stream in (1, 2):
            os.dup2(self.output_end, stream)
        for handle in (self.server.fileno(), self.channel.fileno(), self.output, self.output_end):
            os.close(handle)
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # or its memory could not be measured
        memory = int(self.limits["memory"])
        limits = {
            resource.RLIMIT_AS: memory,
            resource.RLIMIT_CPU: PROCESSOR_SECONDS,
            resource.RLIMIT_NPROC: int(self.limits["processes"]) + 1,  # process 1 is one of them
        }
        for kind, value in limits.items():
            resource.setrlimit(kind, (value, value))
        sys.path += self.packages
        self.interpreter["interpret"](channel)

    def watch(self, deadline: float, output: bytearray) -> str:
        """Wait for the end of the code, for whatever reason it is."""
        poll = select.poll()
        for handle in (self.output, self.channel.fileno(), self.server.fileno()):
            poll.register(handle, select.POLLIN)
        how = None
        while how is None:
            ready = {handle for handle, _ in poll.poll(PACE * 1000)}
            how = self.heard(ready, output) or self.excess(deadline)
        return how

    def heard(self, ready: "set[int]", output: bytearray) -> "str | None":
        if self.output in ready:
            self.drain(output, most=65536)
            if len(output) > self.limits["output"]:
                return "output"
        if self.channel.fileno() in ready:
            return ENDINGS.get(self.channel.recv(1), "died")
        if self.server.fileno() in ready:
            receive(self.server)
            return "stopped"
        return None

    def drain(self, output: bytearray, *, most: "int | None" = None) -> None:
        """Take what lies in the pipe: all of it, or at most so many bytes."""
        with suppress(BlockingIOError):
            while most is None or most > 0:
                piece = os.read(self.output, 65536)
                if most is not None:
                    most -= len(piece)
                if len(output) <= self.limits["output"]:
                    output += piece

    def excess(self, deadline: float) -> "str | None":
        """What there is too much of; or that the interpreter is gone."""
        now = time.monotonic()
        if now > deadline:
            return "timeout"
        if now < self.look:
            return None
        self.look = now + PACE
        self.reap()
        if not self.pid:
            return "died"
        if sum(map(memory_of, others())) > self.limits["memory"]:
            return "memory"
        crowded = any(files_in(folder) > most for folder, most in self.most_files.items())
        return "files" if crowded else None

    def settle(self) -> bool:
        """Stop the interpreter and kill all other processes; False where that cannot be done."""
        if not self.pid:
            return False
        os.kill(self.pid, signal.SIGSTOP)
        for _ in range(ROUNDS):
            self.reap()
            rest = [pid for pid in others() if pid != self.pid and states(pid) - {"Z", "X"}]
            if not self.pid or (not rest and states(self.pid) == {"T"}):
                break
            for pid in rest:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)
        else:
            return False
        return bool(self.pid)

    def clear(self) -> None:
        """Kill every process but this one; what dies without a parent becomes this one's child."""
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        self.pid = 0

    def reap(self) -> None:
        try:
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                if pid == self.pid:
                    self.pid = 0
        except ChildProcessError:
            self.pid = 0


def files_in(folder: str) -> int:
    """How many files and folders there are, deleted ones that are still open among them."""
    about = os.statvfs(folder)
    return about.f_files - about.f_ffree


def others() -> "list[int]":
    """Every process of this sandbox but the first."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]


def told(pid: int, name: str) -> "list[str]":
    """A file of each thread of a process; the first of them may have ended before the others."""
    found = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            path = f"/proc/{pid}/task/{thread}/{name}"
            with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
                found.append(file.read())
    return found


def states(pid: int) -> "set[str]":
    """The states of a process's threads, by the letters of proc(5)."""
    return {text.rpartition(")")[2].split()[0] for text in told(pid, "stat")}


def memory_of(pid: int) -> int:
    """Bytes that a process holds, those it shares divided among the sharers."""
    texts = told(pid, "smaps_rollup")
    if sizes := [int(size) for text in texts for size in re.findall(r"^Pss: +(\d+) kB", text, re.M)]:
        return max(sizes) * 1024
    # it does not let itself be looked into, so that what it shares counts in full
    return max((int(text.split()[1]) * PAGE for text in told(pid, "statm")), default=0)


# ---------------------------------------------------------------- start


def facts() -> "dict[str, object]":
    """What the server wants to be true before it sends any code."""
    with open("/proc/self/status", encoding="utf-8") as file:
        lines = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    with open("/proc/net/dev", encoding="utf-8") as file:
        interfaces = [line.split(":")[0].strip() for line in file if ":" in line]
    roots = ("/", "/dev", "/proc", "/proc/sys/kernel/core_pattern", "/usr/lib")
    return {
        "uid": os.getuid(),
        "capabilities": int(lines["CapPrm"], 16) | int(lines["CapBnd"], 16),
        "no_new_privileges": lines["NoNewPrivs"] == "1",
        "filtered": lines["Seccomp"] == "2",
        "interfaces": interfaces,
        "writable": [path for path in roots if os.access(path, os.W_OK)],
        "processes": len(others()),
    }


def start() -> None:
    server = socket.socket(fileno=int(sys.argv[1]))
    server.set_inheritable(False)
    settings = json.loads(sys.argv[2])
    # from now on no process of the same user may look into this one, or take it over
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpriority(os.PRIO_PROCESS, 0, 5)
    most = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: int(settings["limits"]["bytes"]),
        resource.RLIMIT_NOFILE: OPEN_FILES,
    }
    for kind, value in most.items():
        resource.setrlimit(kind, (value, value))
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    send(server, b"h", json.dumps(facts()).encode())
    Sandbox(server, settings).serve()


if __name__ == "__main__":
    start()
