"""What the code interpreter's sandbox costs: the first call of a session, the next ones, and a plain process.

python -m benchmarks.sandbox [--rounds 50]
"""

import argparse
import asyncio
import subprocess
import sys
import time

from benchmarks.support import machine, percentile, table
from llama_stack_lite.providers.tools.code_interpreter import CodeInterpreter

CODE = {"code": "print(6 * 7)"}


async def call(tool: CodeInterpreter, session: str) -> float:
    """Milliseconds of a call."""
    began = time.perf_counter()
    found = await tool.call("python", CODE, session=session)
    if found.text != "42\n":
        raise RuntimeError(found.text)
    return 1e3 * (time.perf_counter() - began)


def process() -> float:
    """Milliseconds of the same code in a process of its own, without a sandbox."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-I", "-c", CODE["code"]], check=True, stdout=subprocess.DEVNULL)
    return 1e3 * (time.perf_counter() - began)


async def measure(tool: CodeInterpreter, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        session = str(number)
        first, second = await call(tool, session), await call(tool, session)
        many = asyncio.gather(*(call(tool, f"{session}, {other}") for other in range(8)))
        together = max(await many)
        await tool.aclose()
        plain = await asyncio.to_thread(process)
        if number:  # the first round warms up
            found.setdefault("first call of a session", []).append(first)
            found.setdefault("next call", []).append(second)
            found.setdefault("first calls of 8 sessions at once, the last", []).append(together)
            found.setdefault("`python -c` without a sandbox", []).append(plain)
    return found


def main() -> None:
    """Measure, and print what half of the calls and what 95 % of them took at most."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    began = time.perf_counter()
    tool = CodeInterpreter(CodeInterpreter.Config())
    if tool.off:
        raise SystemExit(tool.off)
    tried = 1e3 * (time.perf_counter() - began)
    found = asyncio.run(measure(tool, options.rounds))
    print(machine())
    print(f"{options.rounds} rounds; trying the sandbox at the server's start took {tried:.0f} ms\n")
    rows = [
        [name, f"{percentile(values, 50):.1f}", f"{percentile(values, 95):.1f}"]
        for name, values in found.items()
    ]
    print(table(["ms", "p50", "p95"], rows))


if __name__ == "__main__":
    main()
