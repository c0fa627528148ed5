"""How often a search finds the passage that answers a question, and how often a model then says it.

The documents are Python's documentation as Debian packages it, and the questions of `rag_questions.json` were
written from its text before anything could search it: each with its file, and words which the right passage
must hold, so that it does not matter how the text was cut. A server of its own ingests the documents by
`llama-lite ingest`; a home that is kept is ingested into once.

    python -m benchmarks.rag
    python -m benchmarks.rag --home /var/tmp/rag --modes vector hybrid --answers 0 --misses hybrid
    python -m benchmarks.rag --documents /usr/share/doc/python3.11/html --url http://127.0.0.1:8321/v1
"""

import argparse
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.support import LITE, launched, machine, table

PACKAGE = "python3.11-doc"
HTML = Path("usr/share/doc/python3.11/html")
PARTS = ["library", "tutorial", "howto", "faq", "reference", "using", "installing", "extending"]
PARTS += ["distributing", "c-api", "whatsnew"]
STORE = "python-docs"
RANKER = "local/smollm2-135m"
WORD = re.compile(r"[^\W_]+")
DEPTH = 10  # hits that are looked at
CUT = 0.6  # the part of a passage's words that counts where its chunk ends within it
FLIPS = 10_000
QUICK = 300  # documents
MODELS = Path.home() / ".cache" / "llama-lite-tests" / "models"

KINDS = ("paraphrase", "keyword", "howto", "fact")
PLAIN = {"ranker": "none"}
MODES: dict[str, dict[str, Any]] = {
    "vector": {"search_mode": "vector", "ranking_options": PLAIN},
    "keyword": {"search_mode": "keyword", "ranking_options": PLAIN},
    "hybrid": {"search_mode": "hybrid", "ranking_options": PLAIN},
    "weighted": {"search_mode": "hybrid", "ranking_options": PLAIN | {"fusion": "weighted"}},
    "reranked": {"search_mode": "hybrid", "ranking_options": {"ranker": RANKER, "candidates": DEPTH}},
}


@dataclass(frozen=True, slots=True)
class Question:
    """`passage` is in `file`; a right answer holds the word `answer`, where there is such a word.

    Searches were tuned on those that say so; the others are what tells how good they are.
    """

    question: str
    kind: str
    file: str
    passage: str
    answer: str | None
    tuned: bool

    def found_in(self, hit: Mapping[str, Any]) -> bool:
        """Whether a hit holds the passage, or most of it where the text was cut within it."""
        text = plain(" ".join(part["text"] for part in hit["content"]))
        wanted = plain(self.passage).split()
        if spans(text, wanted):
            return True
        size = math.ceil(len(wanted) * CUT)
        runs = (wanted[start : start + size] for start in range(len(wanted) - size + 1))
        return str(hit["attributes"].get("path", "")).endswith(self.file) and any(
            spans(text, run) for run in runs
        )


@dataclass(frozen=True, slots=True)
class Result:
    """The rank of the first hit that is right, from 1, for each question; and the seconds of each search."""

    ranks: list[int | None]
    seconds: list[float]

    def recall(self, depth: int, among: Iterable[int] | None = None) -> float:
        chosen = [self.ranks[place] for place in among] if among is not None else self.ranks
        return statistics.mean(rank is not None and rank <= depth for rank in chosen)

    @property
    def reciprocal(self) -> list[float]:
        return [1 / rank if rank else 0.0 for rank in self.ranks]

    def only(self, places: list[int]) -> "Result":
        return Result([self.ranks[place] for place in places], [self.seconds[place] for place in places])


def plain(text: str) -> str:
    """The words alone, however a parser spaced and marked them."""
    return " ".join(WORD.findall(text.lower()))


def spans(text: str, words: list[str]) -> bool:
    return f" {' '.join(words)} " in f" {text} "


def questions() -> list[Question]:
    rows = json.loads((Path(__file__).parent / "rag_questions.json").read_text("utf-8"))
    return [Question(**row) for row in rows]


# ---------------------------------------------------------------- documents and server


def documents(folder: Path) -> Path:
    """Python's documentation below `folder`, got from Debian where it is not there yet."""
    html = folder / HTML
    if not html.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", PACKAGE], cwd=folder, check=True)
        package = next(folder.glob(f"{PACKAGE}_*.deb"))
        subprocess.run(["dpkg", "-x", package, folder], check=True)
    return html


@contextmanager
def server(home: Path) -> Iterator[str]:
    """`llama-lite run starter` with its state under `home`; yields its base URL."""
    home.mkdir(parents=True, exist_ok=True)
    if MODELS.is_dir() and not (home / "models").exists():
        (home / "models").symlink_to(MODELS)
    os.environ["LLAMA_LITE_HOME"] = str(home)
    with launched("starter") as (url, _):
        yield url


def chosen(folder: Path, asked: list[Question], *, quick: bool) -> list[Path]:
    """All pages, or those of the questions and the smallest others."""
    pages = [page for part in PARTS for page in sorted((folder / part).glob("*.html"))]
    if not quick:
        return pages
    named = {folder / each.file for each in asked}
    others = sorted(set(pages) - named, key=lambda page: page.stat().st_size)
    return [*sorted(named), *others[: max(0, QUICK - len(named))]]


def ingested(pages: list[Path], url: str) -> tuple[str, str]:
    """The id of the store, and what `llama-lite ingest` said of its work."""
    command = [*LITE, "ingest", *map(str, pages)]
    command += ["--store", STORE, "--url", url, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.returncode)
    said = json.loads(done.stdout)
    for each in said["failed"]:
        print(f"failed: {each['path']}: {each['reason']}", file=sys.stderr)
    rate = said["files"] / said["seconds"]
    new = f"{said['added'] + said['replaced']} of {said['files']} documents ingested"
    return said["store"], f"{new}, {said['chunks']} chunks, {said['seconds']:.0f} s, {rate:.1f} documents/s"


# ---------------------------------------------------------------- searches


def search(client: httpx.Client, store: str, asked: list[Question], mode: str) -> Result:
    ranks: list[int | None] = []
    seconds: list[float] = []
    for each in asked:
        body = {"query": each.question, "max_num_results": DEPTH, **MODES[mode]}
        began = time.perf_counter()
        response = client.post(f"vector_stores/{store}/search", json=body)
        seconds.append(time.perf_counter() - began)
        if response.status_code != httpx.codes.OK:
            raise SystemExit(f"{mode}: {response.text}")
        hits = response.json()["data"]
        ranks.append(next((rank for rank, hit in enumerate(hits, 1) if each.found_in(hit)), None))
    return Result(ranks, seconds)


def mcnemar(one: Result, other: Result, depth: int) -> tuple[int, int, float]:
    """Questions that only one of them finds, and only the other; and the exact two-sided p of that."""
    pairs = [
        (a is not None and a <= depth, b is not None and b <= depth)
        for a, b in zip(one.ranks, other.ranks, strict=True)
    ]
    won, lost = pairs.count((True, False)), pairs.count((False, True))
    total = won + lost
    tail = sum(math.comb(total, k) for k in range(min(won, lost) + 1)) / 2**total
    return won, lost, min(1.0, 2 * tail)


def randomised(one: Result, other: Result) -> float:
    """The two-sided p of the difference of the mean reciprocal ranks, by flipping signs of pairs."""
    chance = random.Random(0)
    differences = [a - b for a, b in zip(one.reciprocal, other.reciprocal, strict=True) if a != b]
    seen = abs(sum(differences)) - 1e-9
    flips = (sum(chance.choice((each, -each)) for each in differences) for _ in range(FLIPS))
    return (1 + sum(abs(flip) >= seen for flip in flips)) / (1 + FLIPS)


def compared(results: dict[str, Result]) -> str:
    """A row for each mode; hybrid's advantage over it in recall@5 and MRR, with the p of each."""
    head = [
        "search",
        "recall@1",
        "@5",
        "@10",
        "MRR@10",
        "p50 ms",
        "hybrid finds alone / not",
        "p of @5",
        "p of MRR",
    ]
    rows: list[list[str]] = []
    for mode, result in results.items():
        row = [mode, *(f"{result.recall(depth):.3f}" for depth in (1, 5, 10))]
        row += [
            f"{statistics.mean(result.reciprocal):.3f}",
            f"{1000 * statistics.median(result.seconds):.1f}",
        ]
        if mode == "hybrid" or "hybrid" not in results:
            row += ["", "", ""]
        else:
            won, lost, p = mcnemar(results["hybrid"], result, 5)
            row += [f"{won} / {lost}", f"{p:.3f}", f"{randomised(results['hybrid'], result):.3f}"]
        rows.append(row)
    return table(head, rows)


def by_kind(results: dict[str, Result], asked: list[Question]) -> str:
    kinds = {kind: [i for i, each in enumerate(asked) if each.kind == kind] for kind in KINDS}
    rows = [
        [mode, *(f"{result.recall(5, places):.3f}" for places in kinds.values())]
        for mode, result in results.items()
    ]
    return table(["recall@5", *(f"{kind} ({len(places)})" for kind, places in kinds.items())], rows)


def report(results: dict[str, Result], asked: list[Question]) -> None:
    for name, tuned in (("Held out", False), ("Tuned on", True)):
        places = [place for place, each in enumerate(asked) if each.tuned is tuned]
        if places:
            these = {mode: result.only(places) for mode, result in results.items()}
            print(f"{name}: {len(places)} questions\n\n{compared(these)}\n")
    print(by_kind(results, asked))


# ---------------------------------------------------------------- answers


@dataclass(slots=True)
class Said:
    """Answers: how many hold the word that is right, cite anything, cite the right file."""

    right: int = 0
    cited: int = 0
    cited_right: int = 0
    seconds: float = 0


def answers(client: httpx.Client, store: str | None, asked: list[Question]) -> Said:
    """Ask the starter's model, which must search the store first where there is one."""
    said = Said()
    body: dict[str, Any] = {"model": RANKER, "temperature": 0, "max_output_tokens": 160, "store": False}
    if store:
        body["tools"] = [{"type": "file_search", "vector_store_ids": [store]}]
        body["tool_choice"] = {"type": "file_search"}
    began = time.perf_counter()
    for each in asked:
        response = client.post("responses", json=body | {"input": each.question})
        if response.status_code != httpx.codes.OK:
            raise SystemExit(response.text)
        parts = [
            part
            for item in response.json()["output"]
            if item["type"] == "message"
            for part in item["content"]
            if part["type"] == "output_text"
        ]
        text = " ".join(part["text"] for part in parts)
        names = {note.get("filename") for part in parts for note in part["annotations"]}
        said.right += bool(re.search(rf"(?<!\w){re.escape(str(each.answer))}(?!\w)", text, re.I))
        said.cited += bool(names)
        said.cited_right += Path(each.file).name in names
    said.seconds = (time.perf_counter() - began) / len(asked)
    return said


def answered(client: httpx.Client, store: str, asked: list[Question]) -> str:
    rows = []
    for name, place in (("file_search", store), ("the model alone", None)):
        said = answers(client, place, asked)
        shares = [said.right, said.cited, said.cited_right] if place else [said.right]
        row = [f"{count / len(asked):.2f} ({count})" for count in shares]
        rows.append([name, *row, *[""] * (3 - len(row)), f"{said.seconds:.1f}"])
    return table(["answers", "right", "with a citation", "of the right file", "s each"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--documents", type=Path, help="python3.11-doc's html folder; got where it is not said"
    )
    parser.add_argument("--url", help="base URL of a server that runs")
    parser.add_argument("--home", type=Path, help="where state is kept for another run")
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK} documents, the smaller ones")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--answers", type=int, default=40, help="questions that the model is asked")
    parser.add_argument("--misses", choices=MODES, help="list what this mode does not find in 5")
    arguments = parser.parse_args()
    asked = questions()
    with ExitStack() as stack:
        home = arguments.home or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = arguments.documents or documents(home / "documents")
        url = arguments.url or stack.enter_context(server(home))
        client = stack.enter_context(httpx.Client(base_url=url, timeout=600))
        store, told = ingested(chosen(folder, asked, quick=arguments.quick), url)
        print(f"{machine('faiss-cpu', 'onnxruntime')}; {told}; {len(asked)} questions\n")
        results: dict[str, Result] = {}
        for mode in arguments.modes:
            results[mode] = search(client, store, asked, mode)
            print(f"{mode}: recall@5 {results[mode].recall(5):.3f}", file=sys.stderr)
        report(results, asked)
        if arguments.misses:
            for each, rank in zip(asked, results[arguments.misses].ranks, strict=True):
                if rank is None or rank > 5:
                    print(f"- {each.kind}, rank {rank}, {each.file}: {each.question}")
        if arguments.answers:
            with_word = [each for each in asked if each.answer]
            sample = random.Random(1).sample(with_word, min(arguments.answers, len(with_word)))
            print(f"\n{answered(client, store, sample)}")


if __name__ == "__main__":
    main()
