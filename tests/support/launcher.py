"""Starts `llama-lite run` in a fork of a process that has imported all of it: in a tenth of the time.

Each line of stdin starts a server; stdout tells its process id, then what the server prints.
"""

import importlib
import os
import sys

from llama_stack_lite.cli import main

USED = (
    "llama_stack_lite.agent.agents",
    "llama_stack_lite.cli.run",
    "llama_stack_lite.routes.stateful",
    "llama_stack_lite.state.store",
    "llama_stack_lite.providers.inference.scripted",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "tests.support.planner",
    "uvicorn.protocols.http.auto",
    "uvicorn.loops.auto",
)


def start(arguments: list[str]) -> None:
    """Fork; the child never returns."""
    if (pid := os.fork()) == 0:
        os.close(0)
        main(["run", *arguments], prog_name="llama-lite")
    print(pid, flush=True)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    for name in USED:
        importlib.import_module(name)
    print("imported", flush=True)
    for _ in sys.stdin:
        start(sys.argv[1:])
