"""The wording of the problems: names, objects and sentence templates.

A sentence carries a *pattern*, the terms that it adds to the running total. A term is an operator and
its operands: ``n`` an addend, ``p*q`` a product of a number and a count, ``k`` a small factor. Operands
appear in the text as ``{0}``, ``{1}``, in the pattern's order.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sentence:
    """One template: its id, its pattern of terms, its text."""

    id: str
    pattern: str
    text: str


NAMES = (
    ("Tom", "He"), ("Anna", "She"), ("Ben", "He"), ("Lucy", "She"), ("Omar", "He"), ("Maria", "She"),
    ("Sam", "He"), ("Nina", "She"), ("Paul", "He"), ("Ruth", "She"), ("Ivan", "He"), ("Grace", "She"),
    ("Hugo", "He"), ("Emma", "She"), ("Leo", "He"), ("Sara", "She"), ("Max", "He"), ("Mei", "She"),
    ("Raj", "He"), ("Zoe", "She"),
)  # fmt: skip

OBJECTS = (
    "apples", "pears", "eggs", "books", "stamps", "coins", "marbles", "cards", "shells", "pencils",
    "stickers", "beads", "buttons", "candles", "cookies", "flowers", "lemons", "nuts", "roses", "toys",
)  # fmt: skip

THINGS_OPENINGS = (
    Sentence("have", "+n", "{name} has {0} {things}."),
    Sentence("start", "+n", "At first {name} has {0} {things}."),
    Sentence("days", "+n+n", "{name} collects {0} {things} on Monday and {1} on Tuesday."),
    Sentence("lost", "+n-n", "{name} had {0} {things} and lost {1} of them."),
    Sentence("boxes", "+p*q", "{name} buys {1} boxes with {0} {things} each."),
    Sentence("rows", "+p*q", "{name} lays out {1} rows of {0} {things}."),
    Sentence("times", "+p*q", "{friend} has {0} {things}. {name} has {1} times as many."),
    Sentence("daily", "+p*q", "{name} collects {0} {things} a day for {1} days."),
)

THINGS_EVENTS = (
    Sentence("find", "+n", "{They} finds {0} more."),
    Sentence("gift", "+n", "{friend} gives {name} {0} {things}."),
    Sentence("give", "-n", "{They} gives {0} to {friend}."),
    Sentence("break", "-n", "Then {0} of them break."),
    Sentence("sell", "-n", "{name} sells {0} of them."),
    Sentence("packs", "+p*q", "{They} buys {1} packs of {0} {things}."),
    Sentence("friends", "+p*q", "Each of {1} friends brings {0} {things}."),
    Sentence("each", "-p*q", "{They} gives {0} {things} to each of {1} friends."),
    Sentence("bags", "-p*q", "{They} sells {1} bags of {0} {things}."),
    Sentence("grow", "*k", "Then the number grows to {0} times as many."),
)

THINGS_QUESTIONS = (
    Sentence("now", "", "How many {things} does {name} have now?"),
    Sentence("end", "", "How many {things} does {name} have in the end?"),
    Sentence("left", "", "What is the number of {things} of {name}?"),
)

THINGS_SHARES = (
    Sentence("share", "/k", "{name} shares them equally among {0} friends. How many {things} does each friend get?"),
    Sentence("jars", "/k", "{name} puts them equally into {0} jars. How many {things} are in each jar?"),
)

MONEY_OPENINGS = (
    Sentence("cash", "+n", "{name} has ${0}."),
    Sentence("jobs", "+n+n", "{name} earns ${0} in May and ${1} in June."),
    Sentence("hours", "+p*q", "{name} works {1} hours for ${0} an hour."),
    Sentence("sales", "+p*q", "{name} sells {1} {things} at ${0} each."),
    Sentence("weeks", "+p*q", "{name} saves ${0} a week for {1} weeks."),
)

MONEY_EVENTS = (
    Sentence("earn", "+n", "{They} earns ${0} more."),
    Sentence("dad", "+n", "{friend} pays {name} ${0}."),
    Sentence("spend", "-n", "{They} spends ${0}."),
    Sentence("rent", "-n", "{name} pays ${0} for a ticket."),
    Sentence("shift", "+p*q", "{They} works {1} days for ${0} a day."),
    Sentence("shop", "-p*q", "{They} buys {1} {things} at ${0} each."),
    Sentence("double", "*k", "A bank makes it {0} times as much."),
)

MONEY_QUESTIONS = (
    Sentence("cash", "", "How much money does {name} have now?"),
    Sentence("dollars", "", "How many dollars does {name} have in the end?"),
)

MONEY_SHARES = (
    Sentence("split", "/k", "{name} splits it equally among {0} friends. How many dollars does each friend get?"),
)


@dataclass(frozen=True)
class Theme:
    """Sentences that fit together: one opening, some events, then a question or a sharing question."""

    openings: tuple[Sentence, ...]
    events: tuple[Sentence, ...]
    questions: tuple[Sentence, ...]
    shares: tuple[Sentence, ...]


THEMES = (
    Theme(THINGS_OPENINGS, THINGS_EVENTS, THINGS_QUESTIONS, THINGS_SHARES),
    Theme(MONEY_OPENINGS, MONEY_EVENTS, MONEY_QUESTIONS, MONEY_SHARES),
)
