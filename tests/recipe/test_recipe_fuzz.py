"""Any text, any mutation of a recipe and any argument is read or refused, by RecipeError alone."""

import copy
from contextlib import suppress

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.recipe.texts import FULL, SMALL
from tokenscale.core.errors import RecipeError
from tokenscale.recipe_text import parse


@given(st.text(alphabet="a: -[]{}#'\"&*!|>\n\t1%@`\\,?\0\u2028", max_size=40))
def test_any_text_gives_data_or_a_recipe_error(text):
    try:
        source = parse(text, "r.yaml")
    except RecipeError:
        return
    # The reference reader agrees on whatever both take.
    assert source.data == yaml.safe_load(text)


FRAGMENTS = [
    "auto",
    "$n",
    "null",
    "[",
    "}",
    ": ",
    "- ",
    "\n",
    "  ",
    "RoE(n=4)",
    "|",
    "'",
    "1e999",
    "&a",
    "*a",
    "<<: {}",
]
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(FRAGMENTS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def mutated_texts(draw):
    text = draw(st.sampled_from([FULL, SMALL, SMALL]))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        new = draw(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4), st.just(text[end : end + 30])))
        text = text[:start] + new + text[end:]
    return text


@st.composite
def mutated_data(draw):
    data = copy.deepcopy(yaml.safe_load(draw(st.sampled_from([FULL, SMALL]))))
    for _ in range(draw(st.integers(1, 3))):
        target = data
        while isinstance(target, dict | list) and target:
            key = draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))))
            if not isinstance(target[key], dict | list) or draw(st.booleans()):
                break
            target = target[key]
        if not target:
            continue
        action = draw(st.sampled_from(["replace", "drop", "rename"]))
        if action == "replace":
            target[key] = draw(ANYTHING)
        elif action == "drop" or isinstance(target, list):
            del target[key]
        else:
            target[draw(st.text(max_size=10))] = target.pop(key)
    return yaml.safe_dump(data, allow_unicode=True)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(text=st.one_of(mutated_texts(), mutated_data()))
@example(text=SMALL + "arms: &x [*x]")
@example(text=FULL.replace("k: 5", "k: [[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]"))
@example(text=FULL.replace("n=4", "n=" + "9" * 5000))
@example(text=SMALL + "'[key]': 3")  # the name by which pydantic marks errors of keys
@example(text=FULL.replace("arms:", "'[key]':"))
def test_a_mutated_recipe_is_read_or_refused(load, text):
    """No mutation gives any exception but RecipeError, of any kind."""
    try:
        recipe = load(text.encode("utf-8", "surrogatepass"))
    except RecipeError:
        return
    assert recipe.resolved()
    assert recipe.arms


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    argument=st.one_of(
        st.text(max_size=12), st.from_regex(r"(seeds|tasks|arms|run|x)(\.\w{1,4}){0,3}=.{0,9}", fullmatch=True)
    )
)
def test_any_argument_is_applied_or_refused(load, argument):
    with suppress(RecipeError):
        load(SMALL, argument)
