"""The interpreter inside the sandbox: runs one text after the other in one module, as a prompt would.

Its text goes to process 1 with that one's own, so it imports the standard library alone.
"""

import ast
import linecache
import os
import socket
import sys
import traceback
import types
from contextlib import suppress

DONE, RAISED = b"d", b"r"


def interpret(channel: socket.socket) -> None:
    """Run the texts that come, each after four bytes of its length, and say how each ended."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    own, number = os.getpid(), 0
    reader = channel.makefile("rb")
    while length := reader.read(4):
        number += 1
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # whatever the last text made of them
        code = reader.read(int.from_bytes(length, "big")).decode()
        status = execute(code, f"<call {number}>", main.__dict__)
        for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
            # it may be closed, or another thing in the place of the real one
            with suppress(AttributeError, OSError, ValueError):
                getattr(sys, name).flush()
        if os.getpid() != own:
            os._exit(0)  # a fork of the code's own, which came to the end of it
        channel.sendall(status)


def execute(code: str, name: str, space: "dict[str, object]") -> bytes:
    """Run a text; the value of a last expression is shown as at a prompt, and so is what it raised."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    try:
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), space)  # noqa: S102 - this is what the sandbox is for
        if isinstance(last, ast.Expr):
            expression = compile(ast.Expression(last.value), name, "eval")
            sys.displayhook(eval(expression, space))  # noqa: S307
    except SystemExit as end:
        if end.code not in (None, 0):
            print(end.code, file=sys.stderr)
    except BaseException as error:  # noqa: BLE001 - the code's own, which its author reads
        with suppress(AttributeError, OSError, ValueError):
            sys.stdout.flush()
        sys.stderr = sys.__stderr__
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename != name:
            trace = trace.tb_next
        traceback.print_exception(type(error), error.with_traceback(trace), trace)
        return RAISED
    return DONE
