"""A program on a pseudo-terminal, and a person who types."""

import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Terminal:
    """What the program shows is read by `expect`; `shown` is what has not been expected yet."""

    def __init__(self, process: "subprocess.Popen[bytes]", master: int) -> None:
        self.process = process
        self._master = master
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str, *, timeout: float = 20) -> str:
        """Read until the text is shown; returns what came before it."""
        end = time.monotonic() + timeout
        while text not in self.shown:
            ready, _, _ = select.select([self._master], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise AssertionError(f"{text!r} is not shown; there is {self.shown!r}")
            self.shown += self._read() or self._gone(text)
        before, _, self.shown = self.shown.partition(text)
        return before

    def _read(self) -> str:
        try:
            return os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # Linux's end of file on a terminal
            return ""

    def _gone(self, text: str) -> str:
        raise AssertionError(f"the program ended before it showed {text!r}; there is {self.shown!r}")


@contextmanager
def terminal(command: Sequence[str], env: dict[str, str]) -> Iterator[Terminal]:
    """Run a command with a terminal of its own, and end it with the block."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**env, "TERM": "dumb"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)
