"""Training documents, their tokens, and batches as a function of (seed, recipe, step)."""

import random
import re
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.demo_model.batches import BLOCK, LONGEST, Stage, encode, pad, stream
from tools.demo_model.documents import DETAIL_TRIGGER, END, TRIGGER, Mix, document, drill, fact, prompt
from tools.demo_model.problems import HARD, draw_problem, split_of
from tools.demo_model.solutions import detailed, terse, wrong_lines

MIX = Mix(levels=(1, 1, 2), drills=0.2, direct=0.2, detail=0.2, terse=0.5, packed=0.2)
STAGES = (Stage("one", 20, MIX), Stage("two", 20, MIX))


def test_documents_are_right_and_end_with_the_end_token():
    rng = random.Random(1)
    for _ in range(2000):
        parts = document(MIX, rng)
        text = "".join(text for text, _ in parts)
        assert parts[-1] == (END, 1.0)
        assert text.count(END) == 1
        assert wrong_lines(text) == []
        assert "?\nA: Let's" in text or "?\nA: ####" in text or "Q:" not in text


def test_drills_are_right_and_of_the_training_split():
    rng = random.Random(2)
    for _ in range(3000):
        text = drill(rng)
        head = text.split(":")[0] if ":" in text else text.split("=")[0]
        assert split_of(head) == "train"
        assert wrong_lines(text) == []


def test_shares_of_the_mix():
    # 4,000 fixed draws; a share is within 0.04 of its value, over five standard deviations.
    rng = random.Random(3)
    mix = Mix(levels=(1, 0, 0), drills=0.1, direct=0.2, detail=0.1, terse=0.65, packed=0.0)
    texts = ["".join(text for text, _ in document(mix, rng)) for _ in range(4000)]
    shares = {
        "drills": (0.1, sum("Q:" not in text for text in texts)),
        "direct": (0.9 * 0.2, sum("A: ####" in text for text in texts)),
        "detail": (0.9 * 0.1, sum(f"A:{DETAIL_TRIGGER} First, " in text for text in texts)),
        "terse": (0.9 * 0.7 * 0.65, sum(f"A:{TRIGGER} We get " in text for text in texts)),
        "detailed": (0.9 * 0.7 * 0.35, sum(f"A:{TRIGGER} First, " in text for text in texts)),
    }
    for name, (share, count) in shares.items():
        assert abs(count / 4000 - share) < 0.04, name


@settings(max_examples=50)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])).filter(lambda text: "<|" not in text))
def test_tokenizer_round_trip(small_tokenizer, text):
    assert small_tokenizer.decode(small_tokenizer(text)["input_ids"]) == text


def test_tokenizer_keeps_digits_apart_and_pieces_whole(small_tokenizer):
    tokens = small_tokenizer.tokenize(prompt("Tom has 17 apples.", TRIGGER) + " First, 17+80=97. #### 97")
    assert [token for token in tokens if any(c.isdigit() for c in token)] == list("17178097" + "97")
    for piece in ("Q:", "ĊA:", "ĠFirst,Ġ", "Ġ####Ġ"):
        assert piece in tokens
    assert len(small_tokenizer(END)["input_ids"]) == 1
    assert small_tokenizer(END)["input_ids"] == [small_tokenizer.eos_token_id]


@pytest.mark.parametrize("trigger", ["", TRIGGER, DETAIL_TRIGGER])
def test_parts_tokenised_apart_are_the_tokens_of_the_whole(small_tokenizer, trigger):
    # Otherwise a prompt at decoding time would not be what the model was trained on.
    rng = random.Random(4)
    for _ in range(300):
        problem = draw_problem(HARD, rng)
        for solution in (terse(problem), detailed(problem), f" #### {problem.answer}"):
            parts = [(prompt(problem.question, trigger), 0.1), (solution, 1.0), (END, 1.0)]
            whole = small_tokenizer("".join(text for text, _ in parts))["input_ids"]
            assert encode(parts, small_tokenizer)[0] == whole[:LONGEST]


def test_weights_follow_their_part(small_tokenizer):
    tokens, weights = encode([("Q: a", 0.1), (" b", 1.0), (END, 1.0)], small_tokenizer)
    count = len(small_tokenizer("Q: a")["input_ids"])
    assert weights == [0.1] * count + [1.0] * (len(tokens) - count)


def test_padding_has_no_weight(small_tokenizer):
    batch = pad([([5, 6, 7], [1.0, 1.0, 1.0]), ([5], [0.5])], small_tokenizer.pad_token_id)
    pad_id = small_tokenizer.pad_token_id
    assert batch.tokens.tolist() == [[5, 6, 7], [5, pad_id, pad_id]]
    assert batch.weights.tolist() == [[1.0, 1.0, 1.0], [0.5, 0.0, 0.0]]


def flat(batches):
    return [(stage.name, batch.tokens.tolist(), batch.weights.tolist()) for stage, batch in batches]


def test_batches_are_a_function_of_the_step(small_tokenizer):
    whole = flat(stream(STAGES, 0, seed=0, size=3, tokenizer=small_tokenizer))
    assert [name for name, _, _ in whole] == ["one"] * 20 + ["two"] * 20
    for first in (1, BLOCK, 19, 20, 21, 39):
        assert flat(stream(STAGES, first, seed=0, size=3, tokenizer=small_tokenizer)) == whole[first:]
    assert list(stream(STAGES, 40, seed=0, size=3, tokenizer=small_tokenizer)) == []


def test_batches_differ_by_seed_stage_and_step(small_tokenizer):
    zero = flat(islice(stream(STAGES, 0, seed=0, size=3, tokenizer=small_tokenizer), 40))
    one = flat(islice(stream(STAGES, 0, seed=1, size=3, tokenizer=small_tokenizer), 40))
    texts = [str(tokens) for _, tokens, _ in [*zero, *one]]
    assert len(set(texts)) == 80


def test_a_block_holds_the_documents_of_its_generator(small_tokenizer):
    # Sorting by length and cutting must lose no document.
    rng = random.Random("tokenscale/batches/0/one/0")
    expected = sorted(encode(document(MIX, rng), small_tokenizer)[0] for _ in range(BLOCK * 3))
    seen = []
    for _, batch in islice(stream(STAGES, 0, seed=0, size=3, tokenizer=small_tokenizer), BLOCK):
        lengths = (batch.tokens != small_tokenizer.pad_token_id).sum(-1).tolist()
        seen += [row[:length] for row, length in zip(batch.tokens.tolist(), lengths, strict=True)]
    assert sorted(seen) == expected


def test_facts_are_right_of_the_training_split_and_one_operation_each():
    rng = random.Random(5)
    for _ in range(3000):
        head, value = fact(rng).split("=")
        assert split_of(head) == "train"
        assert eval(head) == int(value)
        assert 0 < int(value) <= HARD.total
        assert len(head.replace("*", "+").replace("-", "+").split("+")) == 2


def test_a_brief_mix_has_brief_solutions_and_facts():
    rng = random.Random(6)
    mix = Mix(levels=(0, 0, 1), drills=0.3, direct=0.0, detail=0.0, terse=1.0, packed=0.0, brief=True)
    texts = ["".join(text for text, _ in document(mix, rng)) for _ in range(500)]
    for text in texts:
        assert wrong_lines(text) == []
        lines = re.findall(r"[\d+*/-]+=\d+", text)
        assert all(len(re.findall(r"[-+*/]", line)) == 1 for line in lines)
        assert len(lines) == 10 or " We get " in text
