"""What the store costs: writes that are on disk when they return, against bare `sqlite3` doing the same.

Each writer inserts a row of about 500 bytes, and the next one when it is committed. The bare figures are one
connection that commits each insert, and one that shares each commit among as many inserts as there are
writers: no store can do better. Rounds are interleaved; a figure is the median of its rounds.

    python -m benchmarks.store
    python -m benchmarks.store --url postgresql://user:password@host/database
"""

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from sqlalchemy import Connection, insert

from benchmarks.support import machine, percentile, table
from llama_stack_lite.state.store import Store
from llama_stack_lite.state.tables import conversation_items

ITEM = '{"type": "message", "text": "' + "x" * 450 + '"}'
Figures = tuple[float, list[float]]  # inserts per second, and the seconds that each took


async def through_store(store: Store, writers: int, count: int, salt: str) -> Figures:
    took: list[float] = []

    async def writer(number: int) -> None:
        for position in range(count // writers):
            row = {
                "conversation": f"{salt}-{number}",
                "position": position,
                "id": str(position),
                "item": ITEM,
            }

            def work(connection: Connection, row: dict[str, object] = row) -> None:
                connection.execute(insert(conversation_items), row)

            began = time.perf_counter()
            await store.write(work)
            took.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(writer(number) for number in range(writers)))
    return len(took) / (time.perf_counter() - began), took


def bare(path: Path, together: int, count: int) -> Figures:
    """`sqlite3` alone, so many inserts to a commit, each of which takes as long as its commit."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
    connection.execute("CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, item TEXT)")
    took: list[float] = []
    first = time.perf_counter()
    for _ in range(count // together):
        began = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        for _ in range(together):
            connection.execute("INSERT INTO items (item) VALUES (?)", (ITEM,))
        connection.execute("COMMIT")
        took += [time.perf_counter() - began] * together
    rate = len(took) / (time.perf_counter() - first)
    connection.close()
    return rate, took


async def measure(url: str | None, folder: Path, rounds: int) -> None:
    store = await Store.open(url or f"sqlite:///{folder / 'state.db'}")
    found: dict[tuple[str, int], list[Figures]] = {}
    for number in range(rounds):
        for writers, count in ((1, 300), (32, 9600)):
            ours = await through_store(store, writers, count, f"{time.time_ns()}-{number}")
            found.setdefault(("store", writers), []).append(ours)
            raw = await asyncio.to_thread(bare, folder / "bare.db", writers, count)
            found.setdefault(("bare sqlite3", writers), []).append(raw)
    await store.aclose()
    rates = {key: statistics.median(rate for rate, _ in each) for key, each in found.items()}
    rows = []
    for (name, writers), each in found.items():
        times = [second * 1000 for _, took in each for second in took]
        ratio = rates[name, writers] / rates["bare sqlite3", writers]
        rows.append(
            [name, str(writers), f"{rates[name, writers]:.0f}", f"{ratio:.2f}"]
            + [f"{percentile(times, percent):.2f}" for percent in (50, 95)]
        )
    print(
        machine("sqlalchemy"), f"sqlite {sqlite3.sqlite_version}", url and "PostgreSQL" or "SQLite", sep=", "
    )
    print(table(("writes by", "writers", "inserts/s", "of bare", "p50 ms", "p95 ms"), rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a database to measure; SQLite in --folder without it")
    parser.add_argument(
        "--folder", help="on the disk to measure; the system's folder for such files by default"
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        asyncio.run(measure(options.url, Path(folder), options.rounds))


if __name__ == "__main__":
    main()
