"""Citations: on the right spans, of the right passages, and never of what was not found."""

import time
from typing import Any

import pytest

from llama_stack_lite.api.responses import FileSearchItem, Item, WebSearchItem
from llama_stack_lite.rag.citing import Passage, citations, numbers, passages

LEAVE = (
    "Parental leave lasts 16 weeks and is paid in full. It must be asked for two months before it begins. "
    "Managers approve it."
)
OFFICE = (
    "The office in Lisbon opens at 8:30 and closes at 19:00. Visitors sign in at the desk on the ground "
    "floor. The wifi password is changed every Monday."
)
TRAVEL = (
    "Flights above 500 euros need the approval of a director. Trains are first class above three hours. "
    "Receipts go to finance within 30 days."
)
FOUND = [
    Passage(number, f"file-{number}", name, f"file-{number}:0", text)
    for number, (name, text) in enumerate(
        [("leave.md", LEAVE), ("office.md", OFFICE), ("travel.md", TRAVEL)], 1
    )
]


def cited(text: str, found: list[Passage] = FOUND, **fields: Any) -> list[tuple[str, str]]:
    """The file of each citation, with the words that it stands behind."""
    told = citations(text, found, **fields)
    assert all(each["type"] == "file_citation" and 0 < each["index"] <= len(text) for each in told)
    assert [each["index"] for each in told] == sorted(each["index"] for each in told)
    return [(each["filename"], text[max(0, each["index"] - 10) : each["index"]]) for each in told]


def test_a_citation_is_openais_with_the_chunk_besides() -> None:
    assert citations("It is paid [1].", FOUND) == [
        {
            "type": "file_citation",
            "file_id": "file-1",
            "filename": "leave.md",
            "index": 14,
            "chunk_id": "file-1:0",
        }
    ]


# ------------------------------------------------------------ marks


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("It is paid [1].", [("leave.md", "is paid [1]")]),
        ("It is paid[1]. So are trains [3].", [("leave.md", " is paid[1]"), ("travel.md", "trains [3]")]),
        ("Both [1, 3].", [("leave.md", "oth [1, 3]"), ("travel.md", "oth [1, 3]")]),
        ("Both [1][2].", [("leave.md", "Both [1]"), ("office.md", "oth [1][2]")]),
        ("Twice [1, 1].", [("leave.md", "ice [1, 1]")]),
        ("Notes [^2] and 【3】.", [("office.md", "Notes [^2]"), ("travel.md", "^2] and 【3】")]),
        ("One is [2], the other was never found [7].", [("office.md", "One is [2]")]),
        ("No such thing [4].", []),
        ("Zero [0].", []),
        ("A [link](http://a) and [1](http://b).", []),
        ("Write `rows[1]` or\n```python\nrows[2]\n```", []),
        ("```\nrows[3]", []),
        ("日本語です[2]。", [("office.md", "日本語です[2]")]),
    ],
)
def test_marks_are_cited_where_they_end(text: str, told: list[tuple[str, str]]) -> None:
    assert [(name, words[-6:]) for name, words in cited(text)] == [(name, words[-6:]) for name, words in told]


def test_a_mark_that_may_be_a_web_page_is_not_taken_for_a_file() -> None:
    assert cited("The sky is blue [2].", unclear=2) == []
    assert cited("The sky is blue [3].", unclear=2) == [("travel.md", "s blue [3]")]


# ------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Parental leave lasts 16 weeks.", ["leave.md"]),
        ("You get 16 weeks of fully paid parental leave.", ["leave.md"]),
        ("The leave must be asked for two months before.", ["leave.md"]),
        ("The office opens at 8:30. Bring your dog!", ["office.md"]),
        ("Directors must approve flights above 500 euros. Paris is in France.", ["travel.md"]),
        ("- First class trains above three hours\n- Receipts within 30 days", ["travel.md", "travel.md"]),
        ("8:30", ["office.md"]),
        ("Lisbon.", ["office.md"]),
        ("1) Parental leave lasts 16 weeks.", ["leave.md"]),
        # a number that no passage has is news
        ("Parental leave lasts 18 weeks.", []),
        ("The office closes at 18:00.", []),
        # words of two passages make no third
        ("Managers approve visitors.", []),
        ("I do not know.", []),
        ("Hello! How can I help you today?", []),
        ("The documents do not say whether dogs may come to the office.", []),
        ("", []),
        ("\n\n...", []),
    ],
)
def test_sentences_in_the_words_of_a_passage_are_cited(text: str, names: list[str]) -> None:
    assert [name for name, _ in cited(text)] == names


def test_a_sentence_is_cited_behind_its_end() -> None:
    text = 'He said "Parental leave lasts 16 weeks." Then he left.\nThe office opens at 8:30'
    assert [text[each["index"] :] for each in citations(text, FOUND)] == [
        " Then he left.\nThe office opens at 8:30",
        "",
    ]


def test_a_word_that_is_everywhere_says_nothing() -> None:
    both = [FOUND[0], Passage(9, "f", "other.md", "f:0", "The leave of trains is at ten.")]
    assert cited("Leave.", both) == [] and cited("Weeks.", both) == [("leave.md", "Weeks.")]


def test_marks_are_believed_before_words() -> None:
    assert cited("Parental leave lasts 16 weeks [2]. The office opens at 8:30.") == [
        ("office.md", " weeks [2]")
    ]
    # of no passage, so the words count
    assert [name for name, _ in cited("Parental leave lasts 16 weeks [8].")] == ["leave.md"]


def test_without_passages_there_is_nothing_to_cite() -> None:
    assert cited("It is paid [1]. Parental leave lasts 16 weeks.", []) == []


def test_long_texts_take_little_time() -> None:
    found = [
        Passage(n, "f", "f", f"f:{n}", " ".join(f"word{n * k % 997}" for k in range(800))) for n in range(50)
    ]
    text = " ".join(f"word{k % 1001} said." if k % 9 == 0 else f"word{k % 1001}" for k in range(5000))
    began = time.process_time()
    citations(text, found)
    citations("[" * 20_000 + "1" * 20_000, found)
    citations("." * 50_000, found)
    assert time.process_time() - began < 3


# ------------------------------------------------------------ the items of a conversation


def search(*results: dict[str, Any]) -> FileSearchItem:
    return FileSearchItem(queries=["q"], results=list(results))


def test_passages_are_those_of_the_searches_by_their_numbers() -> None:
    items: list[Item] = [
        search({"file_id": "f1", "filename": "a", "text": "x", "chunk_id": "f1:0", "number": 1}),
        search({"text": "The search failed."}),
        search({"file_id": "f2", "filename": "b", "text": "y", "chunk_id": "f2:3", "number": 2}),
        search(),
        FileSearchItem(queries=["not told"]),
        WebSearchItem(results=[{}, {}, {}]),
    ]
    assert [(each.number, each.file_id, each.chunk_id) for each in passages(items)] == [
        (1, "f1", "f1:0"),
        (2, "f2", "f2:3"),
    ]
    assert max(numbers(items)) == 3


def test_what_a_client_says_was_found_is_counted_from_one() -> None:
    item = search({"file_id": "f1", "text": "x"}, {"file_id": "f2", "number": "no number", "filename": None})
    assert [(each.number, each.filename) for each in passages([item])] == [(1, ""), (2, "")]


def test_the_model_reads_passages_under_their_numbers() -> None:
    found = {"file_id": "f", "filename": "a.pdf", "text": "It is.", "number": 4}
    item = search(found | {"headings": ["One", "Two"], "page": 3}, found | {"number": 5})
    assert item.text() == "[4] a.pdf — One > Two (page 3)\nIt is.\n\n[5] a.pdf\nIt is."
    call, answer = item.messages()
    assert answer.content == item.text() and call.tool_calls
    assert search().text() == "Nothing was found."
    assert search({"text": "It failed."}).text() == "It failed."
