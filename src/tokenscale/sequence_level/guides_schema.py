"""JSON schemas as regular expressions, through outlines, with everything refused that it would pass over.

`build_regex_from_schema` of outlines_core 0.2 drops keywords that it does not know (`minimum`), or that it
does not expect beside others (`pattern` beside `maxLength`), and writes some wrongly: `allOf` as one value
behind another, a schema without a type without brackets, property names without JSON's escapes. So only
what a test has shown to be kept is let through.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from tokenscale.core.errors import ArgumentError
from tokenscale.sequence_level.guides_automaton import compile_regex

_NOTES = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
_NOTES |= {"$schema", "$id", "$comment", "$defs", "definitions"}
_FORMATS = ("date", "date-time", "uuid")
_BY_TYPE = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": set[str](),
    "number": set[str](),
    "boolean": set[str](),
    "null": set[str](),
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
_ALONE = ("$ref", "anyOf", "enum", "const")  # what may stand instead of a type; enum and const beside one too
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_IN_STRING = [*range(0x20), ord('"'), ord("\\")]


def canonical(schema: str | Mapping[str, Any]) -> str:
    """A schema as JSON text, its properties in their order, in which they will be generated."""
    try:
        read = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(read, ensure_ascii=False, allow_nan=False)
    except json.JSONDecodeError as error:
        message = f"Constrained(json_schema=...) is no JSON: {error.msg}, line {error.lineno}, column {error.colno}"
        raise ArgumentError(message, "write a JSON schema, as text or as a dict") from None
    except (TypeError, ValueError, RecursionError) as error:
        message = f"Constrained(json_schema=...) cannot be written as JSON: {error}"
        raise ArgumentError(message, "write a JSON schema, as text or as a dict") from None
    if not isinstance(read, Mapping):
        raise ArgumentError(f"a JSON schema is an object, got {text:.80}", 'write {"type": ...}')
    return text


@lru_cache(maxsize=64)
def schema_regex(text: str) -> str:
    """The pattern of the JSON values that a schema allows. Raises ArgumentError with the place in the schema."""
    _check(json.loads(text), "#")
    library: Any = importlib.import_module("outlines_core.json_schema")
    try:
        pattern: str = library.build_regex_from_schema(text)
    except ValueError as error:
        message = f"Constrained(json_schema=...) cannot be made a pattern: {str(error).splitlines()[0]}"
        raise ArgumentError(message, "write it with properties, items, anyOf, enum and $ref to #/$defs") from None
    return pattern


def _check(schema: Any, place: str) -> None:
    if not isinstance(schema, dict):
        raise _refused(place, f"{schema!r:.80} is no schema that can be kept", 'write {"type": ...}')
    for name, inner in _parts(schema, place):
        _check(inner, name)
    keywords = {k: v for k, v in schema.items() if k not in _NOTES}
    alone = [k for k in _ALONE if k in keywords]
    if alone:
        _check_alone(alone[0], keywords, place)
    else:
        _check_typed(keywords, place)


def _parts(schema: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    """The schemas within a schema, with their places."""
    for keyword in ("properties", "$defs", "definitions"):
        inner = schema.get(keyword, {})
        if not isinstance(inner, dict):
            raise _refused(f"{place}/{keyword}", f"{inner!r:.80} is no object", 'write {"name": {"type": ...}}')
        yield from ((f"{place}/{keyword}/{name}", value) for name, value in inner.items())
    for keyword in ("anyOf", "prefixItems"):
        inner = schema.get(keyword, [])
        if not isinstance(inner, list) or (keyword in schema and not inner):
            raise _refused(f"{place}/{keyword}", f"{inner!r:.80} is no list of schemas", 'write [{"type": ...}]')
        yield from ((f"{place}/{keyword}/{number}", value) for number, value in enumerate(inner))
    if "items" in schema and "prefixItems" not in schema:
        yield f"{place}/items", schema["items"]
    if isinstance(schema.get("additionalProperties"), dict):
        yield f"{place}/additionalProperties", schema["additionalProperties"]


def _check_alone(keyword: str, keywords: Mapping[str, Any], place: str) -> None:
    beside = {"type"} if keyword in ("enum", "const") else set[str]()
    for other in keywords.keys() - {keyword} - beside:
        raise _ignored(place, other, f"beside {keyword}")
    if keyword not in ("enum", "const"):
        return
    values = keywords["enum"] if keyword == "enum" else [keywords["const"]]
    if not isinstance(values, list) or not values:
        raise _refused(f"{place}/{keyword}", f"{values!r:.80} is no list of values", 'write ["yes", "no"]')
    types = _types(keywords, place) if "type" in keywords else list(_KINDS)
    for value in values:
        if not any(_is(value, name) for name in types):
            fix = "leave the type out, or give values of it"
            raise _refused(f"{place}/{keyword}", f"{value!r:.80} is not of type {' or '.join(types)}", fix)


def _is(value: object, name: str) -> bool:
    if isinstance(value, bool) and name != "boolean":
        return False
    return isinstance(value, _KINDS[name]) or (name == "integer" and isinstance(value, float) and value.is_integer())


def _types(keywords: Mapping[str, Any], place: str) -> list[str]:
    given = keywords["type"]
    names = given if isinstance(given, list) else [given]
    if not names or not all(isinstance(name, str) and name in _BY_TYPE for name in names):
        raise _refused(f"{place}/type", f"{given!r:.80} is no type", f"write one of {', '.join(_BY_TYPE)}")
    return names


def _check_typed(keywords: Mapping[str, Any], place: str) -> None:
    if "type" not in keywords and keywords.keys() <= {"properties", "required", "additionalProperties"} and keywords:
        keywords = {"type": "object", **keywords}
    for other in keywords.keys() - {"type"} - set().union(*_BY_TYPE.values()):
        raise _ignored(place, other, "")
    if "type" not in keywords:
        raise _refused(place, "there is no type", 'write {"type": ...}, anyOf, enum, const or $ref')
    names = _types(keywords, place)
    known = _BY_TYPE[names[0]] if len(names) == 1 else set[str]()
    for other in keywords.keys() - {"type"} - known:
        raise _ignored(place, other, f"beside type {' or '.join(names)}")
    for keyword in _COUNTS:
        count = keywords.get(keyword, 0)
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise _refused(f"{place}/{keyword}", f"{count!r} is no count", "write 0 or more")
    _check_string(keywords, place)
    _check_array(keywords, place)
    _check_object(keywords, place)


def _check_string(keywords: Mapping[str, Any], place: str) -> None:
    shapes = [k for k in ("pattern", "format", "minLength", "maxLength") if k in keywords]
    if len(shapes) > 1 and shapes[0] in ("pattern", "format"):
        raise _ignored(place, shapes[0], f"beside {shapes[1]}")
    if "format" in keywords and keywords["format"] not in _FORMATS:
        raise _refused(
            f"{place}/format",
            f"outlines does not keep the format {keywords['format']!r}",
            f"use one of {', '.join(_FORMATS)}, or a pattern",
        )
    if "pattern" not in keywords:
        return
    if not isinstance(keywords["pattern"], str):
        raise _refused(f"{place}/pattern", f"{keywords['pattern']!r:.80} is no pattern", 'write "[a-z]+"')
    automaton = compile_regex(keywords["pattern"].removeprefix("^").removesuffix("$"), f"{place}/pattern")
    if automaton.table[:, _IN_STRING].any():
        fix = r'write [^"\\\x00-\x1f] for "any character", and leave quotes and backslashes out'
        raise _refused(f"{place}/pattern", "it can write a quote, a backslash or a control character", fix)


def _check_array(keywords: Mapping[str, Any], place: str) -> None:
    if "prefixItems" in keywords:
        for other in (
            keywords.keys() - {"type", "prefixItems"} - ({"items"} if keywords.get("items") is False else set())
        ):
            raise _ignored(place, other, "beside prefixItems")
    elif "items" not in keywords and keywords.get("type") == "array":
        raise _refused(place, "the array's items have no schema", 'write "items": {"type": ...}')
    if "maxItems" in keywords and keywords["maxItems"] < keywords.get("minItems", 0):
        raise _refused(f"{place}/maxItems", "it is less than minItems", "write minItems or more")


def _check_object(keywords: Mapping[str, Any], place: str) -> None:
    if keywords.get("type") != "object":
        return
    names = keywords.get("properties")
    required = keywords.get("required", [])
    if not isinstance(required, list) or any(name not in (names or {}) for name in required):
        message = f"{required!r:.80} names what is not among the properties"
        raise _refused(f"{place}/required", message, "write a schema for each of them under properties")
    for name in names or {}:
        if json.dumps(name, ensure_ascii=False) != f'"{name}"':
            raise _refused(f"{place}/properties/{name}", "the name needs JSON's escapes", "name it without them")
    if names is None and not isinstance(keywords.get("additionalProperties"), dict):
        message = "the object has neither properties nor a schema for them"
        raise _refused(place, message, 'write "properties": {...}, or "additionalProperties": {"type": ...}')


def _ignored(place: str, keyword: str, beside: str) -> ArgumentError:
    fix = "leave it out, or write the values as a pattern: Constrained(regex=...), or enum"
    if keyword in _NUMBERS:
        fix = 'bound the digits by a pattern, as in Constrained(regex="[1-9][0-9]?"), or list the values in an enum'
    if keyword == "oneOf":
        fix = "write anyOf, with alternatives of which no value fits two"
    if keyword == "allOf":
        fix = "write one schema with all of it"
    return _refused(f"{place}/{keyword}", f"the keyword would be ignored {beside}".strip(), fix)


def _refused(place: str, message: str, fix: str) -> ArgumentError:
    return ArgumentError(f"Constrained(json_schema=...): {message}, at {place}", fix)
