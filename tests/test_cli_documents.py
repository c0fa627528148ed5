"""`llama-lite ingest` and `llama-lite search`, against a server on loopback and in their own process."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import yaml
from click.testing import CliRunner, Result

from llama_stack_lite.cli import main
from llama_stack_lite.cli.gathering import Choice, gather
from llama_stack_lite.cli.passages import shown
from llama_stack_lite.config import StackConfig
from tests.support.lite import LITE
from tests.support.lite import env as env
from tests.support.serving import serve

TEXTS = {
    "tides.md": "# Tides\n\n## Spring tides\n\nAt new moon the sea rises highest, twice each month.\n"
    + "Neap tides come a week later, when the moon is half, and rise least of all that there are.\n",
    "bread.txt": "Rye bread needs sourdough and a long rest before it is baked.\n",
    "deep/moss.md": "# Moss\n\nMoss drinks through its leaves, as it has no roots.\n",
}


def settings(folder: Path) -> dict[str, Any]:
    model = {"provider": "scripted", "embedding_models": ["words"], "embedding_dimension": 64}
    return {
        "inference": {"made": model},
        "files": {"disk": {"provider": "local"}},
        "vector_io": {"faiss": {"provider": "faiss"}},
        "storage": f"sqlite:///{folder / 'state.db'}",
        "defaults": {"embedding_model": "made/words"},
    }


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("LLAMA_LITE_HOME", str(tmp_path / "server"))
    with serve(StackConfig.model_validate(settings(tmp_path))) as running:
        yield f"{running.url}/v1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "notes"
    for name, text in TEXTS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def lite(*arguments: str | Path) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(each) for each in arguments], prog_name="llama-lite")


def ingested(url: str, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    done = lite("ingest", *arguments, "--store", "notes", "--url", url, "--json")
    assert done.exit_code == code, done.output
    counts: dict[str, Any] = json.loads(done.stdout)
    return counts


def found(url: str, *arguments: str) -> list[dict[str, Any]]:
    done = lite("search", *arguments, "--store", "notes", "--url", url, "--json")
    assert done.exit_code == 0, done
    hits: list[dict[str, Any]] = json.loads(done.stdout)
    return hits


def counts(said: dict[str, Any]) -> dict[str, int]:
    kinds = ("added", "replaced", "updated", "unchanged")
    return {kind: said[kind] for kind in kinds if said[kind]}


# ---------------------------------------------------------------- ingest


def test_only_what_is_new_or_changed_is_ingested(url: str, folder: Path) -> None:
    first = ingested(url, folder)
    assert counts(first) == {"added": 3} and first["chunks"] >= 3 and not first["failed"]
    assert counts(ingested(url, folder)) == {"unchanged": 3}
    (folder / "bread.txt").write_text("Wheat bread rises with yeast.\n", encoding="utf-8")
    (folder / "deep" / "moss.md").rename(folder / "moss.md")
    said = ingested(url, folder)
    assert counts(said) == {"replaced": 1, "updated": 1, "unchanged": 1}
    texts = [hit["content"][0]["text"] for hit in found(url, "bread", "--limit", "50")]
    assert any("Wheat" in text for text in texts) and not any("Rye" in text for text in texts)
    paths = {hit["attributes"]["path"] for hit in found(url, "moss roots", "--limit", "50")}
    assert str(folder / "moss.md") in paths and str(folder / "deep" / "moss.md") not in paths
    listed = httpx.get(f"{url}/files").json()["data"]
    assert sorted(file["filename"] for file in listed) == ["bread.txt", "moss.md", "tides.md"]


def test_what_is_no_text_is_left_out_and_a_file_that_cannot_be_read_fails_alone(
    url: str, folder: Path
) -> None:
    (folder / ".secret").write_text("hidden", encoding="utf-8")
    (folder / "core").write_bytes(b"\x7fELF\0\0\0")
    (folder / "again.txt").write_text(TEXTS["bread.txt"], encoding="utf-8")
    (folder / "torn.pdf").write_bytes(b"%PDF-1.7 and nothing that is one")
    done = lite("ingest", folder, "--store", "notes", "--url", url)
    assert done.exit_code == 1, done
    assert "3 added" in done.stdout
    lines = done.stderr.splitlines()
    assert any(line.startswith("Left out: 1 hidden") and ".secret" in line for line in lines)
    assert any(line.startswith("Left out: 1 binary") and "core" in line for line in lines)
    assert any(line.startswith("Left out: 1 the same as another file") for line in lines)
    failed = [line for line in lines if line.startswith("Failed: ")]
    assert len(failed) == 1 and "torn.pdf: " in failed[0]
    said = ingested(url, folder, code=1)
    assert counts(said) == {"unchanged": 3} and len(said["failed"]) == 1


def test_of_files_that_are_the_same_every_run_keeps_the_first(url: str, tmp_path: Path) -> None:
    for number in range(40):
        for copy in ("a", "b"):
            path = tmp_path / "notes" / f"{number:02}{copy}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"Note number {number} of many.\n", encoding="utf-8")
    for kind in ("added", "unchanged", "unchanged"):
        said = ingested(url, tmp_path / "notes")
        assert counts(said) == {kind: 40}
        left = [Path(each["path"]).name for each in said["left_out"]]
        assert sorted(left) == [f"{number:02}b.txt" for number in range(40)]


def test_attributes_and_chunking_are_set_anew_without_another_upload(url: str, folder: Path) -> None:
    ingested(url, folder, "--attribute", "year=2024", "--attribute", "draft=true")
    ingested(url, folder / "tides.md", "--attribute", "year=2025", "--attribute", 'kind="7"')
    names = [hit["filename"] for hit in found(url, "moon", "--filter", "year>2024")]
    assert names and set(names) == {"tides.md"}
    assert found(url, "moon", "--filter", "kind=7") == []
    assert found(url, "moon", "--filter", 'kind="7"', "--filter", "year=2025")
    assert {hit["filename"] for hit in found(url, "moon", "--filter", "draft!=true")} == {"tides.md"}
    said = ingested(url, folder / "tides.md", "--attribute", "year=2025", "--chunking", "static:16:4")
    assert counts(said) == {"updated": 1} and said["chunks"] > 1
    assert len(httpx.get(f"{url}/files").json()["data"]) == 3


def test_a_stop_leaves_what_was_done_and_the_next_run_goes_on(
    env: dict[str, str], url: str, tmp_path: Path
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(80):
        (many / f"{number}.txt").write_text(f"Note {number} tells of number {number}.\n", "utf-8")
    command = [*LITE, "ingest", str(many), "--store", "notes", "--url", url]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if len(httpx.get(f"{url}/files").json()["data"]) > 5:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130 and "The same command goes on from here." in errors, errors
    said = ingested(url, many)
    assert sum(counts(said).values()) == 80 and said["unchanged"] > 0
    store = httpx.get(f"{url}/vector_stores/{said['store']}").json()
    assert store["file_counts"]["completed"] == store["file_counts"]["total"] == 80


def test_a_stack_in_this_process_keeps_what_it_ingested(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path)), encoding="utf-8")
    done = lite("ingest", folder, "--store", "notes", "--distribution", path)
    assert done.exit_code == 0 and "3 added" in done.stdout, done
    asked = lite("search", "sourdough rest", "--store", "notes", "--distribution", path, "--mode", "keyword")
    assert asked.exit_code == 0 and "bread.txt" in asked.stdout.splitlines()[0], asked


# ---------------------------------------------------------------- search


def test_hits_show_their_score_place_and_passage(url: str, folder: Path) -> None:
    ingested(url, folder)
    for mode in ("hybrid", "vector", "keyword"):
        done = lite(
            "search", "when does the sea rise highest", "--store", "notes", "--url", url, "--mode", mode
        )
        head, passage = done.stdout.splitlines()[:2]
        assert head.startswith("1. ") and "tides.md" in head and "Spring tides" in head, done
        assert 0 < float(head.split()[1]) <= 1
        assert "the sea rises highest" in passage
    assert len(found(url, "moss bread sea", "--limit", "2")) == 2
    nothing = lite("search", "zzz", "--store", "notes", "--url", url, "--mode", "keyword")
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (0, "", "Nothing was found.\n")


def test_what_goes_wrong_is_one_line(url: str, folder: Path) -> None:
    ingested(url, folder)
    for arguments, reason in (
        (("search", "x", "--store", "nots", "--url", url), "nots"),
        (("search", "x", "--store", "notes", "--url", "http://127.0.0.1:9/v1"), "no answer from"),
        (("search", "x", "--store", "notes", "--url", url, "--rerank", "nobody"), "nobody"),
        (("ingest", folder, "--store", "new", "--url", url, "--embedding-model", "nobody"), "nobody"),
    ):
        done = lite(*arguments)
        assert done.exit_code == 1, done
        assert done.stdout == "" and len(done.stderr.splitlines()) == 1 and reason in done.stderr, done
    httpx.post(f"{url}/vector_stores", json={"name": "notes"}).raise_for_status()
    twins = lite("search", "x", "--store", "notes", "--url", url)
    assert twins.exit_code == 1 and "2 stores are called notes" in twins.stderr
    for wrong in (("--filter", "x"), ("--filter", "=1")):
        assert lite("search", "x", "--store", "notes", *wrong).exit_code == 2
    for wrong in (("--chunking", "static"), ("--attribute", "x"), ("--attribute", "path=x")):
        assert lite("ingest", folder, "--store", "notes", *wrong).exit_code == 2


def test_a_server_without_vector_stores_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_LITE_HOME", str(tmp_path / "server"))
    with serve(StackConfig.model_validate({"inference": {"made": {"provider": "scripted"}}})) as running:
        done = lite("ingest", folder, "--store", "notes", "--url", f"{running.url}/v1")
    assert done.exit_code == 1 and "has no vector stores" in done.stderr


# ---------------------------------------------------------------- parts


def test_patterns_choose_among_the_files_of_folders(folder: Path) -> None:
    def names(paths: list[Path], **choice: Any) -> list[str]:
        return sorted(document.path.name for document in gather(paths, Choice(**choice))[0])

    assert names([folder]) == ["bread.txt", "moss.md", "tides.md"]
    assert names([folder], include=["*.md"]) == ["moss.md", "tides.md"]
    assert names([folder], exclude=["deep/*"]) == ["bread.txt", "tides.md"]
    assert names([folder, folder / "bread.txt"], include=["tides*"]) == ["bread.txt", "tides.md"]
    (folder / "blob").write_bytes(b"a\0b")
    (folder / "wide.txt").write_text("UTF-16", encoding="utf-16")
    assert "blob" not in names([folder]) and "wide.txt" in names([folder])
    assert names([folder / "blob"]) == ["blob"]
    (folder / "big.txt").write_text("x" * 100, encoding="utf-8")
    assert "big.txt" not in names([folder], max_bytes=99)
    os.symlink(folder, folder / "circle")
    assert len(names([folder])) == 5


def test_the_richest_part_of_a_long_passage_is_shown_with_its_words_marked() -> None:
    text = "Nothing here. " * 60 + "The engines of ships burn oil. " + "Nothing there. " * 60
    hit = {"filename": "a.md", "headings": ["Ships"], "page": 3, "score": 0.5, "content": [{"text": text}]}
    said = shown(1, hit, "what do ship engines burn?")
    assert click.style("engines", fg="yellow", bold=True) in said
    assert click.style("ships", fg="yellow", bold=True) in said
    bare = click.unstyle(said)
    assert "The engines of ships burn oil." in bare and len(bare) < 420
    assert bare.startswith("1. 0.50  a.md > Ships (page 3)\n")
    assert shown(1, hit | {"content": [{"text": ""}]}, "???")
