"""The text form of stages: `RoE(n=4, tau=0.3) | SelfConsistency(k=5)`, read and printed.

    pipeline := stage ("|" stage)*
    stage    := name "(" [argument ("," argument)* [","]] ")"
    argument := [word "="] value
    name     := word | path/to/file.py:Name | "path with blanks/to/file.py:Name"
    value    := number | string | True | False | None | stage | path/to/file.py:Name
              | "(" values ")" | "[" values "]"

Strings are Python's; a list and a tuple are the same. Nothing is evaluated: a name is looked up, and
only a reference to a file runs code, that file's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tokenscale import plugins
from tokenscale.core.errors import PipelineError, TokenscaleError, UnknownNameError, nearest
from tokenscale.core.stage import Stage

MAX_DEPTH = 20
SHOWN = 100
WORDS: dict[str, object] = {"True": True, "False": False, "None": None}
_BARE_REFERENCE = r"""[^\s"'()\[\],|=]+\.py:[A-Za-z_]\w*"""
_TOKEN = re.compile(
    rf"""\s*(?:
    (?P<reference>{_BARE_REFERENCE})
    | (?P<number>[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|inf\b|nan\b))
    | (?P<word>[A-Za-z_]\w*)
    | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    | (?P<mark>[|()\[\],=])
    | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\([\\'\"nrt]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4})?")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True)
class _Token:
    """A piece of the text: its kind (a group of the pattern), what is written (a string's content), and where."""

    kind: str
    text: str
    place: int


def parse(text: str) -> list[Stage]:
    """The stages of a text, in its order. Raises PipelineError, which shows the column, and nothing else."""
    if not text.strip():
        raise PipelineError("the text of a pipeline is empty", "write Greedy() for the model as it is")
    parser = _Parser(text)
    stages = [parser.stage()]
    while parser.take("|"):
        stages.append(parser.stage())
    parser.expect_end()
    return stages


class _Parser:
    """Recursive descent over the tokens; one method per line of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._tokenize())
        self._next = 0
        self._depth = 0

    def _tokenize(self) -> Iterator[_Token]:
        end = 0
        while match := _TOKEN.match(self._text, end):
            kind, end = match.lastgroup or "", match.end()
            place = match.start(kind)
            with self._located(place):
                content = _string(match[kind]) if kind == "string" else match[kind]
            yield _Token(kind, content, place)
            if kind == "end":
                return
        rest = self._text[end:].lstrip()
        hints = dict.fromkeys("\"'", "close the string with the same quote")
        hints["{"] = "put a mapping in quotes: json_schema='{...}'"
        hint = hints.get(rest[0], "write stages such as RoE(n=4), joined by |")
        raise self._error(f"unexpected {rest[0]!r}", hint, len(self._text) - len(rest))

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _followed_by(self, mark: str) -> bool:
        """Whether the token after the next one is this mark."""
        following = self._tokens[min(self._next + 1, len(self._tokens) - 1)]
        return following.kind == "mark" and following.text == mark

    def _advance(self) -> _Token:
        token = self._token
        self._next += token.kind != "end"
        return token

    def take(self, mark: str) -> bool:
        """Whether the next token is this mark, which is then read."""
        found = self._token.kind == "mark" and self._token.text == mark
        self._next += found
        return found

    def _expect(self, mark: str, hint: str) -> None:
        if not self.take(mark):
            raise self._error(f"expected {mark!r}, got {_shown(self._token)}", hint, self._token.place)

    def expect_end(self) -> None:
        if self._token.kind != "end":
            hint = "join stages by |" if self._token.kind != "mark" else "remove it, or open its bracket"
            raise self._error(f"expected '|' or the end, got {_shown(self._token)}", hint, self._token.place)

    def stage(self) -> Stage:
        name = self._advance()
        if name.kind not in ("word", "reference", "string"):
            hint = "write a stage such as RoE(n=4)"
            raise self._error(f"expected a stage, got {_shown(name)}", hint, name.place)
        with self._located(name.place):
            cls = plugins.lookup(name.text)
        self._expect("(", f"write {cls.__name__}(...) with brackets")
        arguments = self._arguments(cls)
        with self._located(name.place):
            return plugins.build(cls, arguments)

    def _arguments(self, cls: type[Stage]) -> dict[str, object]:
        """Named arguments up to the closing bracket; those without a name get theirs by position."""
        arguments: dict[str, object] = {}
        named = False
        while not self.take(")"):
            place, before = self._token.place, named
            named = self._token.kind == "word" and self._followed_by("=")
            if before and not named:
                raise self._error("a value without a name behind one with a name", "write name=value", place)
            name = self._keyword(cls) if named else self._positional(cls, len(arguments), place)
            if name in arguments:
                raise self._error(f"{name} of {cls.__name__} is given twice", "keep one of them", place)
            arguments[name] = self._value()
            if not self.take(","):
                self._expect(")", "separate arguments by ',' and close the bracket")
                break
        return arguments

    def _keyword(self, cls: type[Stage]) -> str:
        name = self._advance()
        self._advance()
        with self._located(name.place):
            plugins.check_parameter(cls, name.text)
        return name.text

    def _positional(self, cls: type[Stage], index: int, place: int) -> str:
        names = plugins.parameters(cls)
        if index >= len(names):
            hint = f"it has {', '.join(names)}" if names else f"write {cls.__name__}()"
            raise self._error(f"{cls.__name__} has no more than {len(names)} parameters", hint, place)
        return names[index]

    def _value(self) -> object:
        token = self._token
        if token.kind in ("word", "reference", "string") and self._followed_by("("):
            with self._deeper(token):
                return self.stage()
        self._advance()
        if token.kind == "number":
            return self._number(token)
        if token.kind == "string":
            return token.text
        if token.kind == "reference":
            with self._located(token.place):
                return plugins.load(token.text)
        if token.kind == "word":
            return self._word(token)
        if token.text in ("(", "["):
            with self._deeper(token):
                return self._sequence(token.text)
        raise self._error(
            f"expected a value, got {_shown(token)}", 'write a number, "text", None or a list', token.place
        )

    def _sequence(self, opening: str) -> object:
        """A tuple; but one value in round brackets without a comma is the value itself."""
        closing = ")" if opening == "(" else "]"
        values: list[object] = []
        comma = False
        while not self.take(closing):
            values.append(self._value())
            comma = self.take(",")
            if not comma:
                self._expect(closing, "separate values by ',' and close the bracket")
                break
        return values[0] if len(values) == 1 and opening == "(" and not comma else tuple(values)

    def _word(self, token: _Token) -> object:
        if token.text in WORDS:
            return WORDS[token.text]
        hint = f'put text in quotes: "{token.text}"; {nearest(token.text, WORDS)}'
        if token.text in plugins.BUILT_IN:
            hint = f"write {token.text}(...) with brackets"
        raise self._error(f"{token.text} is not a value", hint, token.place)

    def _number(self, token: _Token) -> float:
        whole = re.fullmatch(r"[-+]?\d+", token.text) is not None
        try:
            return int(token.text) if whole else float(token.text)
        except ValueError:
            raise self._error("a number with too many digits", "write a shorter number", token.place) from None

    @contextmanager
    def _deeper(self, token: _Token) -> Iterator[None]:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} brackets in brackets", "write it flatter", token.place)
        yield
        self._depth -= 1

    @contextmanager
    def _located(self, place: int) -> Iterator[None]:
        """Adds the place to what is raised within."""
        try:
            yield
        except TokenscaleError as error:
            kind = UnknownNameError if isinstance(error, UnknownNameError) else PipelineError
            raise self._error(error.message, error.hint, place, kind) from error

    def _error(self, message: str, hint: str, place: int, kind: type[PipelineError] = PipelineError) -> PipelineError:
        return kind(f"{message}, at {_caret(self._text, place)}", hint)


def _shown(token: _Token) -> str:
    return "the end" if token.kind == "end" else repr(token.text)


def _string(written: str) -> str:
    """The text of a string token. Raises PipelineError for an unknown escape."""
    return _ESCAPE.sub(_unescaped, written[1:-1])


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if code is None:
        raise PipelineError("a backslash that escapes nothing", "write two of them for one")
    return chr(int(code[1:], 16)) if code[0] in "xuU" else _ESCAPED.get(code, code)


def _caret(text: str, place: int) -> str:
    """Line and column of a place (the line only where there are several), the line, and a caret below."""
    start = text.rfind("\n", 0, place) + 1
    line, column = text[start:].partition("\n")[0], place - start
    number = f"line {text.count(chr(10), 0, place) + 1}, " if "\n" in text else ""
    first = max(0, column - SHOWN // 2)
    shown = "".join(c if c.isprintable() else " " for c in line[first : first + SHOWN])
    return f"{number}column {column + 1}\n  {shown}\n  {' ' * (column - first)}^"


def to_text(stage: Stage) -> str:
    """A stage as `parse` reads it: numbers always, other parameters where they differ from their defaults."""
    shown = []
    for field in dataclasses.fields(stage):  # type: ignore[arg-type]
        value = getattr(stage, field.name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if field.init and (number or value != field.default):
            shown.append(f"{field.name}={_value_text(value)}")
    return f"{_class_text(type(stage))}({', '.join(shown)})"


def _value_text(value: object) -> str:
    if isinstance(value, Stage):
        return to_text(value)
    if isinstance(value, tuple | list):
        values = ", ".join(map(_value_text, value))
        return f"({values},)" if len(value) == 1 else f"({values})"
    if value is None or isinstance(value, str | bool | int):
        return repr(value)
    if isinstance(value, float):
        return repr(float(value))
    try:
        name = plugins.name_of(value)
    except PipelineError:
        return repr(value)
    return name if re.fullmatch(_BARE_REFERENCE, name) else repr(value)


def _class_text(cls: type[Stage]) -> str:
    """A class's name; one that no text can name stands by its own, which `parse` refuses."""
    try:
        name = plugins.name_of(cls)
    except PipelineError:
        return cls.__name__
    return name if cls.__name__ == name or re.fullmatch(_BARE_REFERENCE, name) else repr(name)
