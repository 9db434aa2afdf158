"""JSON schemas: what is written parses and validates, and what outlines would pass over is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from tests.sequence_level.constraining import demo, walk
from tokenscale.core.errors import ArgumentError
from tokenscale.sequence_level.constrained import Constrained
from tokenscale.sequence_level.guides_schema import schema_regex

WHOLE = {"type": "integer"}
TEXT = {"type": "string", "maxLength": 6}
KEPT: list[dict[str, Any]] = [
    {"type": "integer"},
    {"type": "number", "title": "a note", "default": 1},
    {"type": "boolean"},
    {"type": "null"},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "minLength": 2},
    {"type": "string", "pattern": "^[a-c]{1,3}$"},
    {"type": "string", "pattern": "(x|xy)-?[0-9é]"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": ["integer", "null", "string"]},
    {"enum": ["a b", 1, 12, None, True, 1.5, {"a": [1, "x  y"]}, 'é"\n']},
    {"type": "integer", "enum": [1, 12, 3.0]},
    {"const": {"a": 1}},
    {"type": "string", "const": "x.y"},
    {"anyOf": [WHOLE, {"type": "number"}, {"type": "null"}]},
    {"type": "array", "items": WHOLE},
    {"type": "array", "items": {"anyOf": [WHOLE, TEXT]}, "minItems": 1, "maxItems": 3},
    {"type": "array", "items": TEXT, "maxItems": 0},
    {"type": "array", "items": TEXT, "minItems": 2},
    {"type": "array", "prefixItems": [WHOLE, {"type": "null"}]},
    {"type": "array", "prefixItems": [WHOLE], "items": False},
    {"type": "object", "properties": {"é.(": WHOLE, "b": {"type": "null"}}, "required": ["b"]},
    {"properties": {"a": WHOLE, "b": WHOLE, "c": TEXT}},
    {"type": "object", "properties": {"a": WHOLE}, "additionalProperties": False, "required": ["a"]},
    {"type": "object", "additionalProperties": {"type": "boolean"}},
    {"$ref": "#/$defs/x", "$defs": {"x": WHOLE}},
    {"$defs": {"n": {"properties": {"v": WHOLE, "n": {"$ref": "#/$defs/n"}}, "required": ["v"]}}, "$ref": "#/$defs/n"},
    {"type": "object", "properties": {"a": {"type": "array", "items": {"properties": {"b": WHOLE}}}}},
]


@pytest.mark.parametrize("schema", KEPT, ids=lambda schema: json.dumps(schema)[:60])
def test_what_is_written_parses_and_validates(schema: dict[str, Any]) -> None:
    lm = demo()
    constraint = Constrained(json_schema=schema)
    written = 0
    for seed in range(12):
        ids, met = walk(lm, constraint.start(lm), seed, 250)
        if met:
            jsonschema.validate(json.loads(lm.decode(ids)), schema)
            written += 1
    assert written


VALUES = [
    ({"anyOf": [WHOLE, {"type": "number"}]}, ["1", "-1.5", "2e+3"], ['"a"', "01", "1.", ""]),
    ({"enum": [1, 12]}, ["1", "12"], ["2"]),
    ({"type": ["string", "null"]}, ['"a é"', "null", '""'], ["nul", '"', "1"]),
    ({"properties": {"a": WHOLE, "b": WHOLE}}, ["{}", '{"a": 1}', '{"b":2}', '{"a": 1, "b": 2}'], ['{"c": 1}']),
    ({"type": "array", "items": WHOLE, "minItems": 1}, ["[1]", "[1, 2,3]"], ["[]", "[1,]"]),
    ({"type": "array", "items": TEXT, "minItems": 2}, ['["", "b"]'], ['["a"]']),
]


@pytest.mark.parametrize(("schema", "yes", "no"), VALUES, ids=str)
def test_the_values_of_a_schema_can_be_written(schema: dict[str, Any], yes: list[str], no: list[str]) -> None:
    lm, pattern = demo(), schema_regex(json.dumps(schema))
    for text in (*yes, *no):
        guide = Constrained(json_schema=schema).start(lm)
        for token in lm.tokenizer(text)["input_ids"]:
            guide.advance(token)
        assert guide.met == (text in yes) == (re.fullmatch(pattern, text) is not None), text


INNER = "Constrained(json_schema=...): "
REFUSED: list[tuple[Any, str, str]] = [
    *(
        ({"type": "integer", keyword: 1}, f"the keyword would be ignored, at #/{keyword}", "[1-9][0-9]?")
        for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
    ),
    ({"properties": {"a": {"type": "number", "minimum": 1}}}, "at #/properties/a/minimum", "[1-9][0-9]?"),
    ({"$defs": {"x": {"type": "null", "not": {}}}, "$ref": "#/$defs/x"}, "ignored, at #/$defs/x/not", "pattern"),
    ({"type": "string", "contentEncoding": "base64"}, "at #/contentEncoding", "pattern"),
    ({"type": "string", "pattern": "a+", "maxLength": 2}, "pattern", "pattern"),
    ({"type": "string", "format": "date", "minLength": 2}, "beside minLength, at #/format", "pattern"),
    ({"type": "string", "minimum": 2}, "at #/minimum", "[1-9][0-9]?"),
    ({"type": "integer", "maxLength": 2}, "beside type integer, at #/maxLength", "pattern"),
    ({"type": ["string", "null"], "maxLength": 2}, "beside type string or null, at #/maxLength", "pattern"),
    ({"type": "array", "items": WHOLE, "uniqueItems": True}, "at #/uniqueItems", "pattern"),
    ({"type": "array", "items": WHOLE, "contains": WHOLE}, "at #/contains", "pattern"),
    ({"type": "array", "prefixItems": [WHOLE], "items": WHOLE}, "beside prefixItems, at #/items", "pattern"),
    ({"type": "array", "prefixItems": [WHOLE], "minItems": 2}, "beside prefixItems, at #/minItems", "pattern"),
    ({"type": "object", "properties": {}, "minProperties": 1}, "at #/minProperties", "pattern"),
    ({"type": "object", "patternProperties": {"a": WHOLE}}, "at #/patternProperties", "pattern"),
    ({"type": "object", "properties": {}, "dependentRequired": {}}, "at #/dependentRequired", "pattern"),
    ({"type": "integer", "frobnicate": 1}, "at #/frobnicate", "pattern"),
    ({"oneOf": [WHOLE, {"type": "number"}]}, "at #/oneOf", "anyOf"),
    ({"allOf": [WHOLE, {"type": "number"}]}, "at #/allOf", "one schema"),
    ({"anyOf": [WHOLE], "minimum": 1}, "beside anyOf, at #/minimum", "[1-9][0-9]?"),
    ({"$ref": "#/$defs/x", "$defs": {"x": WHOLE}, "minimum": 1}, "beside $ref, at #/minimum", "[1-9][0-9]?"),
    ({"const": 1, "enum": [1]}, "beside enum, at #/const", "pattern"),
    ({"const": 1, "minimum": 1}, "beside const, at #/minimum", "[1-9][0-9]?"),
    ({"type": "string", "enum": ["a", 1]}, "1 is not of type string, at #/enum", "leave the type out"),
    ({"type": "integer", "const": True}, "True is not of type integer, at #/const", "leave the type out"),
    ({"enum": []}, "at #/enum", "write ["),
    ({"type": "object", "properties": {"a": WHOLE}, "required": ["b"]}, "at #/required", "under properties"),
    ({"type": "object", "required": ["b"]}, "at #/required", "under properties"),
    ({"properties": {'a"b': WHOLE}}, "needs JSON's escapes", "without them"),
    ({"type": "object"}, "neither properties nor", "additionalProperties"),
    ({"type": "object", "additionalProperties": False}, "neither properties nor", "additionalProperties"),
    ({"type": "array"}, "items have no schema", "items"),
    ({"type": "array", "items": [WHOLE]}, "no schema that can be kept, at #/items", "type"),
    ({"type": "array", "items": WHOLE, "minItems": 2, "maxItems": 1}, "less than minItems, at #/maxItems", "minItems"),
    ({"type": "string", "minLength": 2, "maxLength": 1}, "cannot be made a pattern: maxLength must be", "write it"),
    ({"type": "string", "minLength": -1}, "-1 is no count, at #/minLength", "0 or more"),
    ({"type": "string", "maxLength": "2"}, "'2' is no count, at #/maxLength", "0 or more"),
    ({"type": "string", "format": "email"}, "does not keep the format 'email', at #/format", "date"),
    ({"type": "string", "pattern": 'a"b'}, "can write a quote", '[^"'),
    ({"type": "string", "pattern": "a.b"}, "can write a quote", '[^"'),
    ({"type": "string", "pattern": "("}, "#/pattern is no regular expression: missing ), ", "re"),
    ({"type": "string", "pattern": 5}, "5 is no pattern, at #/pattern", "[a-z]+"),
    ({"type": "any"}, "'any' is no type, at #/type", "string"),
    ({"type": []}, "[] is no type, at #/type", "string"),
    ({}, "there is no type, at #", "type"),
    ({"title": "x"}, "there is no type, at #", "type"),
    ({"properties": {"a": {}}}, "there is no type, at #/properties/a", "type"),
    ({"properties": {"a": True}}, "True is no schema that can be kept, at #/properties/a", "type"),
    ({"properties": 5}, "5 is no object, at #/properties", "name"),
    ({"anyOf": []}, "[] is no list of schemas, at #/anyOf", "type"),
    ({"$ref": "#/$defs/y", "$defs": {"x": WHOLE}}, "cannot be made a pattern", "$defs"),
    ({"$ref": "https://example.org/x"}, "cannot be made a pattern", "$defs"),
    ({"type": "array", "items": {"$ref": "#"}}, "cannot be made a pattern", "$defs"),
    ([], "a JSON schema is an object, got []", "type"),
    ('{"type": ', "is no JSON: Expecting value, line 1, column 10", "JSON schema"),
    ({"const": float("nan")}, "cannot be written as JSON", "JSON schema"),
    ({"const": {1, 2}}, "cannot be written as JSON", "JSON schema"),
]


@pytest.mark.parametrize(("schema", "message", "hint"), REFUSED, ids=str)
def test_what_would_be_passed_over_is_refused(schema: Any, message: str, hint: str) -> None:
    given = json.dumps(schema) if isinstance(schema, list) else schema
    with pytest.raises(ArgumentError) as caught:
        Constrained(json_schema=given)
    assert message in caught.value.message
    assert hint in caught.value.hint
