"""The shield `rules`: expressions within a time limit, whole words in any script, valid personal data."""

import time
from typing import Any

import pytest
from pydantic import ValidationError

from llama_stack_lite.errors import Unavailable
from llama_stack_lite.providers.safety.rules import Rules
from tests.conformance.safety import SafetyConformance
from tests.support.configs import mistakes, write
from tests.support.judging import found, judge

PII = ["credit_card", "email", "iban", "ip", "phone", "ssn"]


def rules(**settings: Any) -> Rules:
    return Rules(Rules.Config(**settings))


class TestRules(SafetyConformance):
    unsafe = "Write to bob@example.com about it."

    def provider(self) -> Rules:
        return rules(
            patterns=[{"pattern": r"(?i)\bproject\s+tulip\b", "category": "secret"}],
            words=["forbidden"],
            pii=PII,
        )


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("mail bob.o'neil+x@mail.example.co.uk!", "email"),
        ("<a@b.io>", "email"),
        ("card 4111 1111 1111 1111, thanks", "credit_card"),
        ("1 4111-1111-1111-1111 12", "credit_card"),
        ("378282246310005", "credit_card"),
        ("my account is gb82 west 1234 5698 7654 32 is it", "iban"),
        ("DE89370400440532013000", "iban"),
        ("from 8.8.8.8:80 on", "ip"),
        ("at 2001:db8::8a2e:370:7334.", "ip"),
        ("call +1 650-253-0000 now", "phone"),
        ("call +44 (0)20 7031 3000", "phone"),
        ("ssn 536-90-4399", "ssn"),
        ("ssn 536 90 4399", "ssn"),
    ],
)
def test_personal_data_is_found(text: str, category: str) -> None:
    shield = rules(pii=PII)
    assert found(shield, text) == [[category]]
    assert found(rules(pii=[kind for kind in PII if kind != category]), text) == [[]]


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # the check digit is wrong
        "order 1234567890123456",
        "GB82 WEST 1234 5698 7654 33",
        "XX82 WEST 1234 5698 7654 32",
        "version 1.2.3.4.5, and 300.1.1.1",
        "std::vector, a::b, 12:30:45 and 127.0.0.1",
        "666-12-3456 and 536-90-43991",
        "3.14159 26535 89793",
        "an @mention and a@b",
        "2026-11-21 13:25:53",
    ],
)
def test_what_only_looks_like_personal_data_passes(text: str) -> None:
    assert found(rules(pii=PII), text) == [[]]


def test_national_phone_numbers_count_where_the_region_is_said() -> None:
    number = "call (650) 253-0000"
    assert found(rules(pii=["phone"]), number) == [[]]
    assert found(rules(pii=["phone"], phone_region="US"), number) == [["phone"]]


def test_a_phone_number_behind_many_that_are_none_is_found() -> None:
    # libphonenumber's own matcher gives up after 65,535 tries
    text = "12345 " * 70_000 + "+1 650-253-0000"
    assert found(rules(pii=["phone"], timeout=60), text) == [["phone"]]


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("A BAD  word!", True),
        ("_bad word_", True),
        ("bad\nword", True),
        ("abad word", False),
        ("bad words", False),
        ("\u4e2d\u574f\u8bcd\u6587", True),  # scripts without spaces have no word borders
        ("x\u574f\u8bcdy", True),
        ("STRASSE", True),
        ("Stra\u00dfen", False),
    ],
)
def test_words_are_whole_in_every_script(text: str, is_found: bool) -> None:
    shield = rules(words=["bad word", "\u574f\u8bcd", "stra\u00dfe"])
    assert found(shield, text) == [["word"] if is_found else []]


def test_patterns_have_categories_of_their_own() -> None:
    shield = rules(
        patterns=[
            {"pattern": r"(?i)tulip", "category": "secret"},
            {"pattern": r"tu+lip", "category": "secret"},
            {"pattern": r"(?<=x)y"},
        ]
    )
    assert found(shield, "TULIP xy tuulip", "tulip", "y") == [["secret", "pattern"], ["secret"], []]
    assert set(shield.categories()) == {"secret", "pattern"}


@pytest.mark.parametrize("pattern", ["^(a|aa)+$", r"^(\w+\s?)+$"])
def test_a_pattern_that_backtracks_is_stopped_and_nothing_passes(pattern: str) -> None:
    shield = rules(patterns=[{"pattern": pattern, "category": "slow"}], timeout=0.3)
    started = time.monotonic()
    with pytest.raises(Unavailable, match="`slow`.*0.3 s.*`timeout`"):
        judge(shield, "a" * 50_000 + "!")  # with 5,000 one of them is through in about that time
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ("patterns: [{pattern: '(a'}]", "4:5 safety.r.patterns[0].pattern: no regular expression: missing )"),
        ("patterns: [{pattern: 'a*'}]", "matches the empty text, which says nothing"),
        ("words: ['a', ' ']", "a word is empty"),
        ("pii: [emial]", "safety.r.pii[0]"),
        ("pii: [phone]\n    phone_region: us", "safety.r.phone_region"),
        ("timeout: 3", "there are no rules: give `patterns`, `words` or `pii`"),
    ],
)
def test_mistakes_are_told_at_their_place(
    settings: str, what: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = mistakes(write(f"safety:\n  r:\n    provider: rules\n    {settings}\n"))
    assert any(what.replace("4:5 ", "") in line for line in said), said


def test_no_rules_are_refused_without_yaml_too() -> None:
    with pytest.raises(ValidationError, match="there are no rules"):
        rules()
