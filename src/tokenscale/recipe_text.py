"""YAML files and `key=value` arguments -> plain data in which every value knows its place.

Nothing here knows which keys a recipe has; `recipe.py` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tokenscale.core.errors import RecipeError

Loc = tuple[str | int, ...]
MAX_DEPTH = 20
MAX_VALUES = 5_000


@dataclass(frozen=True)
class Place:
    """Where something stands; lines and columns count from 1, and are 0 for an argument."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}, column {self.column}" if self.line else self.source


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what, and the fix."""

    place: Place
    message: str
    hint: str


@dataclass
class Source:
    """Plain data; `places` has the place of each value, `keys` that of each mapping's key."""

    data: Any
    places: dict[Loc, Place] = field(default_factory=dict)
    keys: dict[Loc, Place] = field(default_factory=dict)

    def place(self, loc: Loc) -> Place:
        """The place of a value, or of the nearest value around it."""
        while loc not in self.places and loc:
            loc = loc[:-1]
        return self.places[loc]


def refusal(problems: Iterable[Problem]) -> RecipeError:
    """One error that says all problems."""
    found = sorted(problems, key=lambda p: (p.place.source, p.place.line, p.place.column, p.message))
    if len(found) == 1:
        [one] = found
        return RecipeError(f"{one.place}: {one.message}", one.hint)
    # A message may show an excerpt on lines of its own: they are indented as the fix is.
    lines = [
        f"{p.place}: {p.message}".replace("\n", "\n  ") + (f"\n    fix: {p.hint}" if p.hint else "") for p in found
    ]
    return RecipeError(f"{len(found)} errors\n  " + "\n  ".join(lines))


def read(path: Path, opened: tuple[Path, ...] = ()) -> Source:
    """A file with what it includes; where both have a key, the including file's value stands.

    Mappings are merged key by key, everything else is replaced. Raises RecipeError.
    """
    source = parse(_text(path), str(path))
    if not isinstance(source.data, dict):
        message = f"a recipe is a mapping of keys, got {_kind(source.data)}"
        raise refusal([Problem(source.places[()], message, "begin with `version: 1` and `question: ...`")])
    if "include" not in source.data:
        return source
    names = source.data.pop("include")
    merged = Source({}, {(): source.places[()]})
    for name in names if isinstance(names, list) else [names]:
        merge(merged, read(_included(path, name, source, opened), (*opened, path.resolve())))
    merge(merged, source)
    return merged


def _included(path: Path, name: Any, source: Source, opened: tuple[Path, ...]) -> Path:
    """The file that `path` includes as `name`."""
    place = source.place(("include",))
    if not isinstance(name, str):
        hint = "write a file name relative to this file, or a list of them"
        raise refusal([Problem(place, f"include must be a file name, got {_kind(name)}", hint)])
    try:
        other = (path.parent / name).resolve()
        exists = other.is_file()
    except (OSError, ValueError, RuntimeError):
        exists = False
    if not exists:
        raise refusal([Problem(place, f"there is no file {name!r:.80} to include", "name a file relative to this one")])
    if other in (*opened, path.resolve()):
        raise refusal([Problem(place, f"{name!r:.80} includes itself", "break the circle of includes")])
    return other


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text (byte {error.start})", "save the recipe as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(
            f"the recipe {str(path)!r} cannot be read: {reason}", "give the path of a YAML file"
        ) from None


def parse(text: str, name: str) -> Source:
    """One YAML document; duplicate keys, keys that are not text, and unknown tags are refused."""
    place = Place(name, 1, 1)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except RecursionError:
        raise refusal([Problem(place, "values are nested too deeply", "flatten them")]) from None
    except yaml.MarkedYAMLError as error:
        raise refusal([_syntax(error, name)]) from None
    except yaml.YAMLError as error:
        message = f"not YAML: {str(error).splitlines()[0]}"
        raise refusal([Problem(place, message, "remove the characters that YAML forbids")]) from None
    if node is None:
        raise refusal([Problem(place, "the file is empty", "begin with `version: 1` and `question: ...`")])
    reader = _Reader(loader, name)
    source = Source(reader.value(node, ()), reader.places, reader.keys)
    if reader.problems:
        raise refusal(reader.problems)
    return source


def _syntax(error: yaml.MarkedYAMLError, name: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = Place(name, mark.line + 1, mark.column + 1) if mark else Place(name, 1, 1)
    parts = [error.context, error.problem]
    message = "not YAML: " + ", ".join(p for p in parts if p)
    hint = "indent the keys of one level alike, by spaces; put text that holds ': ', '#', or in {} a comma, in quotes"
    return Problem(place, message, hint)


@dataclass
class _Reader:
    """Walks a node graph; `problems` collects what is wrong with it."""

    loader: yaml.SafeLoader
    name: str
    places: dict[Loc, Place] = field(default_factory=dict)
    keys: dict[Loc, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def _place(self, node: yaml.Node) -> Place:
        return Place(self.name, node.start_mark.line + 1, node.start_mark.column + 1)

    def _report(self, node: yaml.Node, message: str, hint: str) -> None:
        self.problems.append(Problem(self._place(node), message, hint))

    def value(self, node: yaml.Node, loc: Loc) -> Any:
        # Aliases make the graph endless (a list inside itself) or huge; the bounds end the walk.
        if len(loc) > MAX_DEPTH or len(self.places) >= MAX_VALUES:
            message = f"more than {MAX_DEPTH} levels or {MAX_VALUES} values"
            raise refusal([Problem(self._place(node), message, "write the values out, without aliases")])
        self.places[loc] = self._place(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*loc, i)) for i, item in enumerate(node.value)]
        return self._scalar(node)

    def _scalar(self, node: yaml.Node) -> Any:
        try:
            value = self.loader.construct_object(node)
        except Exception:  # PyYAML's constructors raise whatever their conversions raise
            value = ...
        if value is None or isinstance(value, str | bool | int | float):
            return value
        self._report(node, f"{node.value!r:.60} is not a text, number or truth value", "put it in quotes")
        return ""

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                self._report(key_node, f"the key {key_node.value!r:.60} is not text", "put the key in quotes")
            elif key in found:
                first = self.keys[(*loc, key)]
                self._report(key_node, f"the key {key!r} stands twice, first in line {first.line}", "keep one of them")
            else:
                self.keys[(*loc, key)] = self._place(key_node)
                found[key] = self.value(value_node, (*loc, key))
        return found


def merge(base: Source, other: Source, loc: Loc = ()) -> None:
    """Lays `other` over `base`, in place: mappings key by key, everything else replaced."""
    old, new = lookup(base.data, loc), lookup(other.data, loc)
    for key, value in new.items():
        here = (*loc, key)
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            merge(base, other, here)
            continue
        old[key] = value
        for table, added in ((base.places, other.places), (base.keys, other.keys)):
            for gone in [known for known in table if known[: len(here)] == here]:
                del table[gone]
            table.update({known: place for known, place in added.items() if known[: len(here)] == here})


def lookup(data: Any, loc: Loc) -> Any:
    """The value at `loc`."""
    for part in loc:
        data = data[part]
    return data


def override(source: Source, argument: str) -> None:
    """Applies one `dotted.key=value` of the command line, in place; the value is YAML.

    Numbers in the key index lists; mappings on the way that do not exist are made, so that a wrong
    key is told by the check of keys. Raises RecipeError.
    """
    place = Place(f"argument {argument!r}")
    name, equals, text = argument.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        hint = "write key=value, for example tasks.arithmetic.limit=200"
        raise refusal([Problem(place, "this is not key=value", hint)])
    value = parse(text, place.source).data if text.strip() else None
    loc: Loc = ()
    target = source.data
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        key = _step(target, part, place)
        loc = (*loc, key)
        source.places[loc] = source.keys[loc] = place
        if following is None:
            target[key] = value
        elif isinstance(target, dict) and target.get(part) is None:
            target[key] = {}
        target = target[key]
    for known in [k for k in source.places if len(k) > len(loc) and k[: len(loc)] == loc]:
        source.places[known] = place


def _step(target: Any, part: str, place: Place) -> str | int:
    if isinstance(target, dict):
        return part
    if isinstance(target, list):
        if re.fullmatch(r"\d{1,6}", part) and int(part) < len(target):
            return int(part)
        hint = f"give an index from 0 to {len(target) - 1}, or replace the whole list"
        raise refusal([Problem(place, f"{part!r} is not an index of this list", hint)])
    raise refusal(
        [Problem(place, f"nothing has the key {part!r}, since {_kind(target)} stands there", "shorten the key")]
    )


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number")
