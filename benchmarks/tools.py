"""Tool calls, JSON answers and answers from a tool's result, judged over HTTP on a running server."""

import argparse
import ast
import json
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator

JsonObject = dict[str, Any]


def tool(name: str, description: str, **parameters: str) -> JsonObject:
    """A function whose parameters are all required strings: name and description of each."""
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": schema},
    }


TOOLS = [
    tool("get_weather", "Get the current weather or the forecast for a city.", city="Name of the city"),
    tool(
        "calculate",
        "Work out a calculation, given in figures or in words.",
        expression="The calculation, such as 12 * 7 or half of 30",
    ),
    tool(
        "add_calendar_event",
        "Add a meeting, an appointment or a reminder to the calendar.",
        title="What the event is",
        when="Date and time, in the user's own words",
    ),
    tool(
        "knowledge_search",
        "Search the company's handbook and documents.",
        query="What to look for",
    ),
]


@dataclass(frozen=True)
class Case:
    """A request, the function it needs (None for plain chat) and what its arguments have to be.

    A city or a time is right when it is the expected text, an expression when it works out to the
    expected number, a title or a query when it holds every expected word.
    """

    request: str
    function: str | None = None
    city: str = ""
    result: float = 0
    title: str = ""
    when: str = ""
    query: str = ""


def weather(request: str, city: str) -> Case:
    return Case(request, "get_weather", city=city)


def calculation(request: str, result: float) -> Case:
    return Case(request, "calculate", result=result)


def event(request: str, title: str, when: str) -> Case:
    return Case(request, "add_calendar_event", title=title, when=when)


def search(request: str, query: str) -> Case:
    return Case(request, "knowledge_search", query=query)


CASES = [
    weather("What's the weather like in Paris today?", "Paris"),
    weather("Will it rain in London tomorrow?", "London"),
    weather("How cold is it in Reykjavik right now?", "Reykjavik"),
    weather("Do I need an umbrella in Seattle this afternoon?", "Seattle"),
    weather("Give me the forecast for New York.", "New York"),
    weather("Is it sunny in Cape Town?", "Cape Town"),
    weather("I'm flying to Tokyo on Friday, how warm will it be there?", "Tokyo"),
    calculation("What is 23 * 17?", 391),
    calculation("Calculate 1200 divided by 16.", 75),
    calculation("What is 15 percent of 80?", 12),
    calculation("How much is 349 plus 278?", 627),
    calculation("Please work out (14 + 6) * 5 for me", 100),
    calculation("Multiply 12.5 by 8", 100),
    event("Put a dentist appointment in my calendar for tomorrow at 3 pm.", "dentist", "tomorrow at 3 pm"),
    event("Schedule a team meeting on Monday at 10:30", "team meeting", "monday at 10:30"),
    event("Add lunch with Maria to my calendar for Friday at noon.", "lunch Maria", "friday at noon"),
    event("Remind me to call the bank tomorrow morning.", "call bank", "tomorrow morning"),
    event("Book a project review for 5 June at 2 pm", "project review", "5 june at 2 pm"),
    search("What does the handbook say about parental leave?", "parental leave"),
    search("Search our documents for the travel expense policy.", "travel expense"),
    search("Find the onboarding checklist in the company docs", "onboarding checklist"),
    search("Look up the rules on remote work in our handbook.", "remote work"),
    search("Which document describes our security incident process?", "security incident"),
    search("What is the company's policy on overtime pay?", "overtime"),
    Case("Hi there, how are you doing?"),
    Case("Tell me a joke about cats."),
    Case("Write a short poem about the sea."),
    Case("Thanks, that was really helpful!"),
    Case("Who are you?"),
    Case("Can you explain what a metaphor is?"),
    Case("I feel a bit sad today."),
    Case("Give me three names for a puppy."),
]

# ---------------------------------------------------------------- JSON answers


def record(**properties: JsonObject) -> JsonObject:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TEXT: JsonObject = {"type": "string", "maxLength": 60}
INTEGER: JsonObject = {"type": "integer", "minimum": 0, "maximum": 10000}
YES_NO: JsonObject = {"type": "boolean"}


def one_of(*values: str) -> JsonObject:
    return {"type": "string", "enum": list(values)}


def many(item: JsonObject, *, least: int = 1, most: int = 4) -> JsonObject:
    return {"type": "array", "items": item, "minItems": least, "maxItems": most}


JSON_REQUESTS: list[tuple[str, JsonObject]] = [
    (
        "Anna is 31 years old and lives in Oslo. Extract the person.",
        record(name=TEXT, age=INTEGER, city=TEXT),
    ),
    (
        "I loved this film! What is the sentiment?",
        record(sentiment=one_of("positive", "negative", "neutral")),
    ),
    ("Invent a recipe for pancakes.", record(title=TEXT, ingredients=many(TEXT), minutes=INTEGER)),
    ("Name three planets.", record(planets=many(TEXT, least=3, most=3))),
    ("Is the sky blue? Answer with a reason.", record(answer=YES_NO, reason=TEXT)),
    ("Two coffees and one tea, please.", record(items=many(record(drink=TEXT, count=INTEGER)))),
    ("The server is down, everybody is waiting!", record(priority=one_of("low", "high"), summary=TEXT)),
    ("Describe a cat.", record(animal=TEXT, legs=INTEGER, sounds=many(TEXT, most=2))),
    ("A red bike for 250 dollars.", record(product=TEXT, colour=TEXT, price={"type": "number"})),
    ("Translate 'good morning' to French.", record(language=one_of("fr"), translation=TEXT)),
    ("Plan a day in Rome.", record(morning=TEXT, afternoon=TEXT, evening=TEXT)),
    (
        "Mail bob@example.com about the invoice.",
        record(to={"type": "string", "format": "email"}, subject=TEXT),
    ),
    ("The meeting is on 2026-03-01.", record(date={"type": "string", "format": "date"}, topic=TEXT)),
    ("Order number AB-1234 has arrived.", record(order={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"})),
    (
        "Rate this pizza from 1 to 5.",
        record(rating={"type": "integer", "minimum": 1, "maximum": 5}, why=TEXT),
    ),
    ("Where is the Eiffel Tower?", record(place=record(city=TEXT, country=TEXT))),
    ("Give me a colour.", {"anyOf": [record(name=TEXT), record(red=INTEGER, green=INTEGER, blue=INTEGER)]}),
    ("Does Tom have a phone number?", record(name=TEXT, phone={"type": ["string", "null"], "maxLength": 20})),
    ("List the primary colours.", many(one_of("red", "yellow", "blue"), least=3, most=3)),
    (
        "A company with two teams.",
        {
            **record(name=TEXT, teams=many({"$ref": "#/$defs/team"}, most=2)),
            "$defs": {"team": record(name=TEXT, people=INTEGER)},
        },
    ),
]

# ---------------------------------------------------------------- answers from a tool's result

PASSAGE = (
    "The Harbour Museum in Lindholm opened in 1987 in a former rope factory. Its director is Ingrid Falk. "
    "The museum is open from 10 am to 6 pm and closed on Mondays. Tickets cost 12 euros for adults and 5 "
    "euros for students; children under seven enter free. The largest exhibit is the sailing ship Aurora, "
    "built in 1902 and 48 metres long. The cafe on the second floor serves fish soup, and the shop sells "
    "model boats. Bus number 14 stops in front of the entrance. Dogs are not allowed. Guided tours start "
    "at 11 am and last 90 minutes."
)

QUESTIONS = [
    ("When did the Harbour Museum open?", "1987"),
    ("In which town is the museum?", "Lindholm"),
    ("What was the building before it became a museum?", "rope factory"),
    ("Who is the director of the museum?", "Falk"),
    ("When does the museum open in the morning?", "10"),
    ("When does the museum close in the evening?", "6"),
    ("On which day is the museum closed?", "Monday"),
    ("How much is a ticket for adults?", "12"),
    ("How much do students pay?", "5"),
    ("Who enters free?", "children"),
    ("What is the largest exhibit?", "Aurora"),
    ("In which year was the Aurora built?", "1902"),
    ("How long is the Aurora?", "48"),
    ("On which floor is the cafe?", "second"),
    ("What does the cafe serve?", "fish soup"),
    ("What can I buy in the shop?", "boats"),
    ("Which bus stops at the museum?", "14"),
    ("Are dogs allowed in the museum?", "not"),
    ("When do the guided tours start?", "11"),
    ("How long is a guided tour?", "90"),
]

# ---------------------------------------------------------------- judging

WORDS_FOR_SIGNS = {
    r"divided by|over": "/",
    r"multiplied by|times|(?<=\d )by(?= \d)": "*",
    r"plus": "+",
    r"minus": "-",
    r"percent of|% of": "/ 100 *",
}
SIGNS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def work_out(expression: str) -> float | None:
    """The calculator behind `calculate`: figures and words for signs; None where there is no calculation."""
    text = expression.lower()
    for words, sign in WORDS_FOR_SIGNS.items():
        text = re.sub(rf"\b(?:{words})\b", f" {sign} ", text)
    try:
        return _value(ast.parse(re.sub(r"[^\d.+\-*/() ]", "", text).strip(" ."), mode="eval").body)
    except (SyntaxError, ZeroDivisionError):
        return None


def _value(node: ast.expr) -> float | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
        left, right = _value(node.left), _value(node.right)
        return None if left is None or right is None else SIGNS[type(node.op)](left, right)
    return None


def plain(text: str) -> str:
    """Lower case, without the articles and the punctuation that change no meaning."""
    return re.sub(r"\b(the|on|for)\b\s*", "", re.sub(r"[^\w\s:]", " ", text.lower())).strip()


def holds(text: str, words: str) -> bool:
    return all(word in text.lower() for word in words.lower().split())


def right_arguments(case: Case, arguments: JsonObject) -> bool:
    given = {key: str(value) for key, value in arguments.items()}
    match case.function:
        case "get_weather":
            return plain(given["city"]) == plain(case.city)
        case "calculate":
            return work_out(given["expression"]) == case.result
        case "add_calendar_event":
            return holds(given["title"], case.title) and plain(given["when"]) == plain(case.when)
        case _:
            return holds(given["query"], case.query)


# ---------------------------------------------------------------- asking


class Server:
    """The server under test; one request at a time, without chance."""

    def __init__(self, url: str, model: str) -> None:
        self.model = model
        self.client = httpx.Client(base_url=url, timeout=120)

    def chat(self, messages: list[JsonObject], **options: Any) -> JsonObject:
        """The first choice of a chat completion; raises `httpx.HTTPStatusError` with the server's words."""
        body = {"model": self.model, "messages": messages, "temperature": 0, **options}
        reply = self.client.post("chat/completions", json=body)
        if reply.is_error:
            raise httpx.HTTPStatusError(reply.text, request=reply.request, response=reply)
        choice: JsonObject = reply.json()["choices"][0]
        return choice

    def call(self, request: str, choice: str) -> JsonObject | None:
        """The function that the model calls, as name and arguments text; None where it answers in words."""
        found = self.chat([user(request)], tools=TOOLS, tool_choice=choice, max_tokens=128)
        calls = found["message"].get("tool_calls")
        return calls[0]["function"] if calls else None


def user(text: str) -> JsonObject:
    return {"role": "user", "content": text}


def valid(text: str | None, schema: JsonObject) -> bool:
    try:
        return bool(Draft202012Validator(schema).is_valid(json.loads(text or "")))
    except ValueError:
        return False


def required_calls(server: Server) -> Iterable[tuple[str, str | None]]:
    schemas = {each["function"]["name"]: each["function"]["parameters"] for each in TOOLS}
    for case in CASES:
        call = server.call(case.request, "required")
        good = call is not None and valid(call["arguments"], schemas[call["name"]])
        yield case.request, None if good else f"no valid call: {call}"


def auto_calls(server: Server) -> Iterable[tuple[str, str | None]]:
    for case in CASES:
        call = server.call(case.request, "auto")
        good = call["name"] == case.function if call else case.function is None
        if call and good:
            good = right_arguments(case, json.loads(call["arguments"]))
        yield case.request, None if good else f"{case.function} was right, got {call}"


def json_answers(server: Server) -> Iterable[tuple[str, str | None]]:
    for request, schema in JSON_REQUESTS:
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        choice = server.chat([user(request)], response_format=form, max_tokens=400)
        if choice["finish_reason"] == "length":
            yield request, "stopped by length"
        else:
            text = choice["message"]["content"]
            yield request, None if valid(text, schema) else f"invalid: {text}"


def answers_from_result(server: Server) -> Iterable[tuple[str, str | None]]:
    return answers_from(server, PASSAGE, QUESTIONS)


def held_out_answers(server: Server) -> Iterable[tuple[str, str | None]]:
    """The same with a passage that nobody had seen when the method was chosen."""
    kept = json.loads(Path(__file__).with_name("held_out.json").read_text(encoding="utf-8"))
    return answers_from(server, kept["passage"], kept["questions"])


def answers_from(
    server: Server, passage: str, questions: Iterable[tuple[str, str]]
) -> Iterable[tuple[str, str | None]]:
    for question, gold in questions:
        arguments = json.dumps({"query": question})
        call = {
            "id": "call_1",
            "type": "function",
            "function": {"name": "knowledge_search", "arguments": arguments},
        }
        turns = [
            user(question),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": passage},
        ]
        text = server.chat(turns, tools=TOOLS, max_tokens=64)["message"]["content"] or ""
        yield question, None if gold.lower() in text.lower() else f"{gold} was right, got {text!r}"


MEASURES = {
    "required: valid by schema": required_calls,
    "auto: right end to end": auto_calls,
    "json_schema: valid": json_answers,
    "answers from a tool's result: right": answers_from_result,
    "answers from another one, held out: right": held_out_answers,
}


def main() -> None:
    """Run every measure, print each miss and then its total."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8321/v1")
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    server = Server(options.url, options.model)
    for name, measure in MEASURES.items():
        outcomes = list(measure(server))
        for request, miss in outcomes:
            if miss:
                print(f"    {request}\n        {miss}")
        right = sum(miss is None for _, miss in outcomes)
        lengths = sum(miss == "stopped by length" for _, miss in outcomes)
        print(f"{name}: {right} of {len(outcomes)}" + (f" ({lengths} stopped by length)" if lengths else ""))


if __name__ == "__main__":
    main()
