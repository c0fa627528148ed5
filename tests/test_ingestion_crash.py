"""Files on servers that are killed: none is lost that was acknowledged, and none is ever found in part."""

import asyncio
import os
import random
import secrets
import sqlite3
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.uploading import Clients, IngestingServer

KILLS = int(os.environ.get("LLAMA_LITE_KILLS", "8"))


async def killed(server: IngestingServer, chance: random.Random, clients: Clients) -> None:
    """Kill and start it again and again, at random moments of its start and of its work.

    By what it has answered, not by time alone, so that a slow machine comes as far as a fast one.
    """
    for _ in range(KILLS):
        enough = clients.answers + chance.choice([0, chance.randint(1, 10), chance.randint(10, 40)])
        with suppress(TimeoutError):
            async with asyncio.timeout(3):
                await clients.answered(enough)
        await asyncio.sleep(chance.uniform(0, 0.1))
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
    clients.stopped = True


async def endured(server: IngestingServer, chance: random.Random) -> None:
    await asyncio.to_thread(server.start)
    async with Clients(server.url, chance) as clients:
        working = asyncio.create_task(clients.run())
        await killed(server, chance, clients)
        last = time.monotonic()
        async with asyncio.timeout(60):
            await working
            files = await clients.finals()
        took = time.monotonic() - last
        await clients.check(files)
        statuses = dict(Counter(file["status"] for file in files.values()))
        print(f"{KILLS} kills, {len(files)} files {statuses}, {clients.searches} searches, ", end="")
        print(f"{took:.1f} s from the last start to the end")


@pytest.mark.slow
def test_no_file_is_lost_or_found_in_part_when_a_server_is_killed_again_and_again(tmp_path: Path) -> None:
    seed = secrets.randbelow(10**6)
    print(f"\nseed {seed}")
    with IngestingServer(tmp_path) as server:
        asyncio.run(endured(server, random.Random(seed)))
        log = server.log.read_text(encoding="utf-8")
    assert "Traceback" not in log, log[-4000:]
    with sqlite3.connect(server.database) as connection:

        def count(query: str) -> int:
            found: int = connection.execute(f"SELECT count(*) FROM {query}").fetchone()[0]
            return found

        assert count("documents WHERE status = 'in_progress' OR worker IS NOT NULL") == 0
        whole = count("chunks JOIN documents ON document = documents.key AND status = 'completed'")
        assert whole == count("chunks") == count("vectors") == count("keywords") > 0
        assert whole == connection.execute("SELECT sum(chunks) FROM documents").fetchone()[0]
        texts = "(SELECT document, text FROM chunks GROUP BY document, text)"
        assert count(texts) == whole  # no chunk twice
    connection.close()
