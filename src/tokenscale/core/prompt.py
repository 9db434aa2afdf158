"""What a model is asked to continue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeGuard

from tokenscale.core.errors import PromptError

if TYPE_CHECKING:
    pass


Messages = tuple[tuple[tuple[str, str], ...], ...]
TemplateOptions = tuple[tuple[str, str | int | float | bool | None], ...]


@dataclass(frozen=True)
class Prompt:
    """What a model is asked to continue: a text, chat messages, or token ids (exactly one of them).

    `suffix` is text that follows token ids (a trigger added by a prompting strategy). `key`, where
    given, is the caller's id of the problem: it names the problem's random streams. `template_options` are
    what a chat's template is given besides the messages, such as (("enable_thinking", False),).
    """

    text: str | None = None
    messages: Messages | None = None
    token_ids: tuple[int, ...] | None = None
    suffix: str = ""
    key: str | None = None
    template_options: TemplateOptions = ()

    def __post_init__(self) -> None:
        given = [self.text is not None, self.messages is not None, self.token_ids is not None]
        if sum(given) != 1:
            raise PromptError(
                f"a prompt has exactly one of text, messages and token_ids, got {sum(given)} of them",
                'pass a string, a list of {"role": ..., "content": ...} messages, or Prompt(token_ids=...)',
            )
        if self.text is not None and not isinstance(self.text, str):
            raise PromptError(f"the text of a prompt must be a string, got {self.text!r:.80}", 'write text="..."')
        ids = () if self.token_ids is None else self.token_ids
        if not (isinstance(ids, tuple) and all(isinstance(i, int) and i >= 0 for i in ids)):
            message = f"token_ids must be a tuple of whole numbers from 0, got {ids!r:.80}"
            raise PromptError(message, "write Prompt(token_ids=(5, 6)), or tuple(ids)")
        if not isinstance(self.suffix, str):
            message = f"the suffix of a prompt must be a string, got {self.suffix!r:.80}"
            raise PromptError(message, 'write suffix="..."')
        if self.messages is not None and not _are_messages(self.messages):
            message = f"messages must be a tuple of messages, tuples of (name, text) pairs, got {self.messages!r:.80}"
            raise PromptError(message, 'write Prompt.of([{"role": "user", "content": "..."}])')
        if self.template_options and self.messages is None:
            names = ", ".join(name for name, _ in self.template_options)
            message = f"options of a chat template ({names}), and the prompt is no chat"
            raise PromptError(message, 'pass messages: [{"role": "user", "content": "..."}]')
        self._check_characters()

    def _check_characters(self) -> None:
        """Bytes that were read as text although they are none leave half characters, which no tokenizer takes."""
        texts = [self.text, *(text for message in self.messages or () for _, text in message)]
        try:
            "".join(text for text in texts if isinstance(text, str)).encode()
        except UnicodeEncodeError as error:
            message = f"a prompt holds {error.object[error.start]!r}, which is half a character"
            raise PromptError(message, "read the prompt as UTF-8") from None

    @classmethod
    def of(cls, value: Prompt | str | Sequence[Mapping[str, str]]) -> Prompt:
        """A prompt from what users pass: a string or a list of chat messages. Raises PromptError."""
        if isinstance(value, Prompt):
            return value
        if isinstance(value, str):
            return cls(text=value)
        if isinstance(value, Sequence) and value:
            messages = [tuple(m.items()) for m in value if _is_message(m)]
            if len(messages) == len(value):
                return cls(messages=tuple(messages))
        raise PromptError(
            f"a prompt is a string or a list of chat messages, got {value!r:.80}",
            'pass a string, or [{"role": "user", "content": "..."}]',
        )

    def with_template_options(self, options: Mapping[str, Any]) -> Prompt:
        """The chat with these options for its template, which replace those of the same name. Raises PromptError."""
        for name, value in options.items():
            if not (isinstance(name, str) and isinstance(value, str | int | float | bool | None)):
                message = f"the option {name!r} of the chat template is {value!r:.80}"
                raise PromptError(message, 'give names and plain values: {"enable_thinking": False}')
        return replace(self, template_options=tuple((dict(self.template_options) | dict(options)).items()))

    def chat(self) -> list[dict[str, str]]:
        """The messages as the dictionaries a chat template reads; empty without messages."""
        return [dict(m) for m in self.messages or ()]

    def append(self, text: str) -> Prompt:
        """The prompt with `text` behind it: behind the last message's content where it is a chat."""
        if self.text is not None:
            return replace(self, text=self.text + text)
        if self.token_ids is not None:
            return replace(self, suffix=self.suffix + text)
        messages = self.chat()
        messages[-1]["content"] = messages[-1].get("content", "") + text
        return replace(self, messages=tuple(tuple(m.items()) for m in messages))

    def prepend(self, text: str) -> Prompt:
        """The prompt with `text` before it: before the last message's content where it is a chat.

        Raises PromptError for token ids, whose text is not known here.
        """
        if self.text is not None:
            return replace(self, text=text + self.text)
        if self.token_ids is not None:
            raise PromptError("text cannot be put before a prompt given as token ids", "pass the prompt as text")
        messages = self.chat()
        messages[-1]["content"] = text + messages[-1].get("content", "")
        return replace(self, messages=tuple(tuple(m.items()) for m in messages))


def _is_message(value: object) -> TypeGuard[Mapping[str, str]]:
    """Whether a value is one message of a chat: a mapping whose role and content are texts."""
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _are_pairs(value: object) -> TypeGuard[tuple[tuple[str, object], ...]]:
    """Whether a value is a tuple of pairs, a name first in each."""
    return isinstance(value, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in value
    )


def _are_messages(value: object) -> bool:
    """Whether a value is one message or more in the frozen form of `Prompt.messages`."""
    if not (isinstance(value, tuple) and value):
        return False
    return all(_are_pairs(message) and _is_message(dict(message)) for message in value)
