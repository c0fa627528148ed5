"""The seccomp filter: which system calls code may make, as a program for the kernel's classic BPF machine.

Whatever `syscalls.txt` does not list is refused, so that what a newer kernel brings is refused too.
"""

import errno
import struct
from collections.abc import Iterable
from importlib import resources

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_* of linux/audit.h
X32 = 0x40000000  # x86-64's second table of calls, which a filter by number would not know

LOAD, EQUAL, AT_LEAST, ABOVE, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x25, 0x45, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000

REFUSED = ERROR | errno.EPERM
UNKNOWN = ERROR | errno.ENOSYS  # what an older kernel says: libraries then take another way
UNIFIED = 424  # calls from here on came with Linux 5.1 or later

AF_UNIX = 1
NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX; above all not TIOCSTI
REQUESTS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# PDEATHSIG, GET_DUMPABLE, SET_DUMPABLE, SET_NAME, GET_NAME, GET_SECCOMP, GET_NO_NEW_PRIVS, SET_VMA
OPTIONS = (1, 3, 4, 15, 16, 21, 39, 0x53564D41)
# call -> which argument is looked at, and its values
ONLY = {
    "ioctl": (1, REQUESTS),
    "prctl": (0, OPTIONS),
    "prlimit64": (0, (0,)),  # of itself, and not of process 1
    "setpriority": (1, (0,)),
    "socketpair": (0, (AF_UNIX,)),
}


def program(machine: str) -> bytes:
    """The filter for one of `ARCHITECTURES`, as `struct sock_filter`s, which `bwrap --seccomp` reads."""
    numbers = _numbers(machine)
    code = [_do(LOAD, ARCHITECTURE), _do(EQUAL, ARCHITECTURES[machine], 1, 0), _do(RETURN, KILL)]
    code += [_do(LOAD, NUMBER)]
    if machine == "x86_64":
        code += [_do(AT_LEAST, X32, 0, 1), _do(RETURN, KILL)]
    # its flags lie in memory, where no filter can read them
    code += [_do(EQUAL, numbers.pop("clone3"), 0, 1), _do(RETURN, UNKNOWN)]
    flags = [_do(ANY_BIT, NEW_NAMESPACES, 0, 1), _do(RETURN, REFUSED), _do(RETURN, ALLOW)]
    code += _call(numbers.pop("clone"), 0, flags)
    for name, (argument, values) in ONLY.items():
        tests = [part for value in values for part in (_do(EQUAL, value, 0, 1), _do(RETURN, ALLOW))]
        code += _call(numbers.pop(name), argument, [*tests, _do(RETURN, REFUSED)])
    for first, last in _ranges(numbers.values()):
        code += [_do(AT_LEAST, first, 0, 2), _do(ABOVE, last, 1, 0), _do(RETURN, ALLOW)]
    code += [_do(AT_LEAST, UNIFIED, 0, 1), _do(RETURN, UNKNOWN), _do(RETURN, REFUSED)]
    return b"".join(code)


def _do(operation: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """One instruction; a comparison skips `then` instructions if it holds, or else `otherwise`."""
    return struct.pack("=HBBI", operation, then, otherwise, value)


def _call(number: int, argument: int, tests: list[bytes]) -> list[bytes]:
    """For one call: load the low half of an argument, all that the kernel reads of it, and test it."""
    load = _do(LOAD, ARGUMENTS + 8 * argument)
    return [_do(EQUAL, number, 0, len(tests) + 1), load, *tests]


def _numbers(machine: str) -> dict[str, int]:
    """The allowed calls of a machine by name; some are not found on all of them."""
    text = (resources.files(__package__) / "syscalls.txt").read_text("utf-8")
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    column = 1 + list(ARCHITECTURES).index(machine)
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as the runs of neighbours that they form."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
