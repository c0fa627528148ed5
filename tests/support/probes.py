"""Attempts to get out of the code interpreter's sandbox, as programs; `tests/data/probes.yaml` has them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).parent.parent / "data" / "probes.yaml"
PRELUDE = """
import ctypes, errno, json, os, signal, socket, struct, subprocess, sys, threading, time
HOST = json.loads({host!r})
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def call(number, *arguments):
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    if libc.syscall(ctypes.c_long(number), *words) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return True

def attempt(what, function):
    try:
        found = function()
        print("REACHED" if found else "BLOCKED", what, repr(found)[:200], flush=True)
    except Exception as error:
        print("BLOCKED", what, type(error).__name__, str(error)[:100], flush=True)

def machine_code(digits):
    global page
    import mmap
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex(digits))
    return ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """`ends` is what the text of a stopped probe holds; `outside`, it does reach what it looks for."""

    group: str
    name: str
    code: str
    ends: str | None = None
    outside: bool = False

    def program(self, host: dict[str, Any]) -> str:
        """Its text, with what is known of the machine outside: ports, process ids, secrets, paths."""
        return PRELUDE.format(host=json.dumps(host)) + self.code


def probes() -> list[Probe]:
    """Every probe of the table."""
    found = []
    for group, entries in yaml.safe_load(TABLE.read_text(encoding="utf-8")).items():
        for entry in entries:
            calls = entry.pop("calls", [])
            lines = [f"attempt({what!r}, lambda: call({number}, {given}))" for what, number, given in calls]
            found.append(Probe(group, **({"code": "\n".join(lines)} | entry)))
    return found
