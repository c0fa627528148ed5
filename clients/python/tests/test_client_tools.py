"""Python functions as tools: what the schema says, and what arguments become."""

from __future__ import annotations

import asyncio
import datetime
import enum
import functools
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from llama_stack_lite_client import Tool, tool
from llama_stack_lite_client.tools import written


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    x: int
    y: int = Field(0, description="upwards")


@dataclass
class Box:
    corner: Point
    title: str


def everything(
    text: str,
    number: Annotated[int, "how many", Field(ge=1)],
    unit: Literal["c", "f"] = "c",
    colour: Colour | None = None,
    points: list[Point] = [],  # noqa: B006 - as people write it
    box: Box | None = None,
    day: datetime.date = datetime.date(2026, 1, 1),
    ratio: float = Field(0.5, gt=0, description="of both"),
    anything: Any = None,
) -> str:
    """Do it all."""
    return f"{text} {number} {unit} {colour} {points} {box} {day} {ratio} {anything}"


def test_a_schema_says_what_a_signature_says() -> None:
    schema = Tool(everything).parameters
    assert schema["required"] == ["text", "number"] and schema["additionalProperties"] is False
    found = schema["properties"]
    assert found["text"] == {"type": "string"}
    assert found["number"] == {"type": "integer", "description": "how many", "minimum": 1}
    assert found["unit"] == {"type": "string", "enum": ["c", "f"], "default": "c"}
    assert found["colour"]["anyOf"] == [{"$ref": "#/$defs/Colour"}, {"type": "null"}]
    assert found["points"] == {"type": "array", "items": {"$ref": "#/$defs/Point"}, "default": []}
    assert found["day"] == {"type": "string", "format": "date", "default": "2026-01-01"}
    assert found["ratio"] == {
        "type": "number",
        "exclusiveMinimum": 0,
        "description": "of both",
        "default": 0.5,
    }
    assert found["anything"] == {"default": None}
    assert schema["$defs"]["Colour"] == {"type": "string", "enum": ["red", "blue"]}
    assert schema["$defs"]["Point"]["properties"]["y"]["description"] == "upwards"
    assert set(schema["$defs"]["Box"]["properties"]) == {
        "corner",
        "title",
    }  # a property, no title of pydantic's


def test_arguments_become_what_the_signature_says() -> None:
    given = {
        "text": "t",
        "number": 2,
        "colour": "blue",
        "points": [{"x": 1}],
        "box": {"corner": {"x": 1, "y": 2}, "title": "b"},
        "day": "2026-11-21",
    }
    said = Tool(everything).job(json.dumps(given))()
    assert said == (
        "t 2 c Colour.BLUE [Point(x=1, y=0)] Box(corner=Point(x=1, y=2), title='b') 2026-11-21 0.5 None"
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ('{"text": "t"}', "number: Field required"),
        ('{"text": "t", "number": 0}', "number: Input should be greater than or equal to 1"),
        ('{"text": "t", "number": 1, "colour": "green"}', "colour: Input should be 'red' or 'blue'"),
        ('{"text": "t", "number": 1, "points": [{}]}', "points.0.x: Field required"),
        ('{"text": "t", "number": 1, "size": 3}', "size: Extra inputs are not permitted"),
        ("{text: t}", "Invalid JSON"),
        ("[]", "Input should be an object"),
    ],
)
def test_arguments_that_do_not_fit_are_told_in_words(arguments: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Tool(everything).job(arguments)


def google(city: str, days: int = 1) -> None:
    """The weather of a city.

    It is only a guess.

    Args:
        city (str): where: a name,
            or a code
        days: how far ahead

    Returns:
        nothing: it is a test
    """


def numpy(city: str, days: int = 1) -> None:
    """The weather of a city.

    It is only a guess.

    Parameters
    ----------
    city : str
        where: a name,
        or a code
    days : int, optional
        how far ahead

    Returns
    -------
    city : None
        nothing
    """


def rest(city: str, days: int = 1) -> None:
    """The weather of a city.

    It is only a guess.

    :param str city: where: a name,
        or a code
    :param days: how far ahead
    :returns: nothing
    """


@pytest.mark.parametrize("function", [google, numpy, rest])
def test_docstrings_are_read_in_three_styles(function: Any) -> None:
    made = Tool(function)
    assert made.description == "The weather of a city.\n\nIt is only a guess."
    properties = made.parameters["properties"]
    assert properties["city"] == {"type": "string", "description": "where: a name, or a code"}
    assert properties["days"] == {"type": "integer", "default": 1, "description": "how far ahead"}


def test_what_is_annotated_stands_before_the_docstring() -> None:
    @dataclass
    class Doc:  # as `typing_extensions.Doc` is
        documentation: str

    def find(a: Annotated[str, "told"], b: Annotated[int, Doc("documented")], c: int) -> None:
        """Find.

        Args:
            a: not told
            b: not told
            c: told
        """

    find.__annotations__ = {"a": Annotated[str, "told"], "b": Annotated[int, Doc("documented")], "c": int}
    found = Tool(find).parameters["properties"]
    assert [found[name]["description"] for name in "abc"] == ["told", "documented", "told"]


def test_names_that_pydantic_uses_itself_are_no_clash() -> None:
    def clash(schema: str, json: int, model_config: str, _hidden: str, copy: bool = True) -> list[Any]:
        return [schema, json, model_config, _hidden, copy]

    given = {"schema": "s", "json": 1, "model_config": "m", "_hidden": "h"}
    made = Tool(clash)
    assert list(made.parameters["properties"]) == ["schema", "json", "model_config", "_hidden", "copy"]
    assert made.job(json.dumps(given))() == ["s", 1, "m", "h", True]


def test_methods_partials_and_positions_work() -> None:
    class Shop:
        def buy(self, what: str, /, *, count: int = 1) -> str:
            """Buy something."""
            return f"{count} {what}"

    assert Tool(Shop().buy).job('{"what": "eggs", "count": 6}')() == "6 eggs"
    assert Tool(functools.partial(Shop().buy, count=3)).job('{"what": "eggs"}')() == "3 eggs"
    assert Tool(Shop().buy).name == "buy"


def test_a_decorated_function_is_still_a_function() -> None:
    @tool
    def add(a: int, b: int = 1) -> int:
        """Add."""
        return a + b

    @tool(name="plus", description="Adds, slowly.")
    async def slowly(a: int, b: int) -> int:
        return a + b

    assert add(1) == 2 and asyncio.run(slowly(1, 2)) == 3
    assert (add.name, add.description, add.__doc__) == ("add", "Add.", "Add.")
    assert slowly.definition["name"] == "plus" and slowly.definition["description"] == "Adds, slowly."


def test_what_no_schema_can_say_is_refused_at_once() -> None:
    def many(*values: int) -> None: ...

    def any_options(**values: int) -> None: ...

    class Odd: ...

    def odd(value: Odd) -> None: ...

    odd.__annotations__["value"] = Odd
    for function, problem in (
        (many, r"`\*values: .*` of .*many.* can be anything"),
        (any_options, "can be anything"),
        (odd, r"`odd` cannot be a tool: Unable to generate .*Odd"),
        (lambda value: value, "has no name that models can say: give it one by `tool"),
    ):
        with pytest.raises(TypeError, match=problem):
            Tool(function)


def test_results_are_text_or_json() -> None:
    assert written("as it is") == "as it is"
    assert json.loads(written({"a": [Point(x=1), Colour.RED]})) == {"a": [{"x": 1, "y": 0}, "red"]}
    assert written(None) == "null"
    assert "object" in written(object())
