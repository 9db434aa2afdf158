"""Bills against figures worked by hand and a plain re-computation, one forward at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import takewhile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenscale.core.cost import Cached, Cost, Lane, Prefill, Ran, Usage
from tokenscale.core.ledger import Ledger, decode_cost
from tokenscale.core.shape import ModelShape

SHAPE = ModelShape(
    dense_flops=100,
    head_flops=50,
    expert_flops=20,
    attention=((2, None), (1, 3)),
    dense_bytes=700,
    head_bytes=300,
    expert_bytes=10,
    kv_bytes=6,  # 4 of the layers that see all keys, 2 of those that see three
    moe_layers=2,
    experts=10,
    top_k=2,
)
NO_EXPERTS = np.zeros((2, 2), np.uint8)


def packed(marks: list[list[set[int]]]) -> np.ndarray:
    """Packed bits [steps, layers, 2] of the experts named per step and layer."""
    bits = np.zeros((len(marks), SHAPE.moe_layers, SHAPE.experts), bool)
    for step, layers in enumerate(marks):
        for layer, experts in enumerate(layers):
            bits[step, layer, list(experts)] = True
    return np.packbits(bits, axis=-1)


def used(
    prompt: tuple[int, ...],
    rows: tuple[int, ...],
    experts: np.ndarray,
    prefill: np.ndarray,
    beams: tuple[int, ...] = (),
    shape: ModelShape = SHAPE,
) -> Usage:
    """A candidate of one cache whose rows all have logits and run the top k."""
    per_row = shape.moe_layers * shape.top_k
    cached = Cached("model", shape, prompt, Prefill(prefill, per_row * (len(prompt) - 1)))
    return Usage((Lane(cached, rows, rows, tuple(per_row * n for n in rows), experts, beams),))


def test_flops_by_hand() -> None:
    # At context 5 a row sees 5 keys at 2 FLOPs and, through the window, 3 keys at 1.
    assert SHAPE.attention_flops([1, 5]).tolist() == [3, 13]
    # Steps of 2 and 1 rows at contexts 5 and 6: 2 * (170 + 13) + (170 + 15).
    assert SHAPE.decode_flops([2, 1], 5) == 551
    # Three prompt tokens without head: 3 * 120 + (3 + 6 + 9).
    assert SHAPE.prefill_flops(3) == 378
    assert SHAPE.prefill_flops(0) == 0


def test_a_candidate_by_hand() -> None:
    usage = used((7, 8, 9), (1, 4), packed([[{0, 1}, {2, 3}], [{0, 1, 9}, {2, 3}]]), packed([[{0, 5}, {1, 2, 8}]])[0])
    decode = Cost(
        flops=(170 + 9) + 4 * (170 + 11),
        bytes=2 * 1000 + 9 * 10 + (3 + 4) * 4 + (3 + 3) * 2,
        expert_loads=9,
        new_tokens=2,
        rows=5,
        sequential_steps=2,
    )
    assert decode_cost(usage) == decode
    ledger = Ledger()
    assert ledger.add([usage], 0) == 2
    prefill = Cost(flops=2 * 120 + 3 + 6, bytes=700 + 5 * 10, expert_loads=5, prompt_tokens=3, sequential_steps=1)
    assert ledger.bill() == decode + prefill


def test_candidates_in_lockstep_share_prompt_weights_and_experts() -> None:
    prefill = packed([[{0}, {0}]])[0]
    one = used((1, 2), (1, 1), packed([[{0, 1}, {0, 1}], [{0, 1}, {0, 1}]]), prefill)
    other = used((1, 2), (1,), packed([[{1, 2}, {0, 1}]]), prefill)
    ledger = Ledger()
    assert ledger.add([one, other], 0) == 2
    bill = ledger.bill()
    assert bill.expert_loads == (3 + 2) + (2 + 2) + 2
    # Keys read: the prompt's 2 in both steps, and in the second the first candidate's own token.
    assert bill.bytes == 700 + 2 * 10 + 2 * 1000 + 9 * 10 + (2 + 2 + 1) * 6
    assert (bill.prompt_tokens, bill.new_tokens, bill.rows, bill.sequential_steps) == (2, 3, 3, 3)
    alone = [decode_cost(u) for u in (one, other)]
    assert bill.flops == sum(c.flops for c in alone) + SHAPE.prefill_flops(1)


def test_a_prompt_of_one_token_needs_no_prefill() -> None:
    ledger = Ledger()
    ledger.add([used((1,), (1,), packed([[{0}, {0}]]), NO_EXPERTS)], 0)
    bill = ledger.bill()
    assert (bill.prompt_tokens, bill.sequential_steps) == (1, 1)


def test_beams_are_billed_each() -> None:
    marks = packed([[{0}, {0}], [{0, 1}, {0}]])
    usage = used((1, 2, 3), (1, 2), marks, NO_EXPERTS, beams=(1, 2))
    bill = decode_cost(usage)
    assert (bill.new_tokens, bill.rows) == (3, 3)
    # The second step reads the prompt's 3 keys once, and each beam's own token.
    # Of three keys, the window then holds two of the prompt's and each beam's own.
    assert bill.bytes == 2 * 1000 + 5 * 10 + (3 + 3 + 2) * 4 + (3 + 2 + 2) * 2


def test_forwards_of_a_step_are_billed_each() -> None:
    """The second of two steps takes three forwards, the last of one beam alone."""
    marks = packed([[{0}, {0}], [{0, 1}, {0}], [{1}, {0}], [{1, 2}, set()]])
    cached = Cached("model", SHAPE, (1, 2, 3), Prefill(NO_EXPERTS, 0))
    later = (Ran(2, 2, 8, marks[2], beams=2), Ran(1, 1, 4, marks[3]))
    steps = [Ran(1, 1, 4, marks[0]), Ran(2, 2, 8, marks[1], later)]
    lane = Lane.of(cached, steps, (1, 2))
    assert (lane.steps, lane.rows, lane.beams, lane.forwards) == (2, (1, 2, 2, 1), (1, 2, 2, 1), (1, 3))
    bill = decode_cost(Usage((lane,)))
    assert (bill.new_tokens, bill.rows, bill.sequential_steps, bill.expert_loads) == (3, 6, 4, 2 + 3 + 2 + 2)
    assert bill.flops == (170 + 2 * 3 + 3) + 5 * (170 + 2 * 4 + 3)
    # Every forward of the second step reads the prompt's 3 keys once (the window 2), and its beams' own token.
    keys = (3 + 3 + 3 + 3 + 2 + 2 + 1) * 4 + (3 + 2 + 2 + 2 + 2 + 2 + 1) * 2
    assert bill.bytes == 4 * 1000 + 9 * 10 + keys


def test_a_dense_model_loads_no_experts() -> None:
    shape = ModelShape(100, 50, 0, ((2, None),), 700, 300, 0, 4, 0, 0, 0)
    usage = used((1, 2), (1, 1), np.zeros((2, 0, 0), np.uint8), np.zeros((0, 0), np.uint8), shape=shape)
    ledger = Ledger()
    ledger.add([usage], 0)
    assert ledger.bill().expert_loads == 0
    assert ledger.bill().bytes == 700 + 2 * 1000 + (2 + 3) * 4


def test_an_empty_ledger_bills_nothing() -> None:
    assert Ledger().bill() == Cost()
    assert Ledger().add([], 5) == 5


PROMPTS = [(1,), (1, 2), (1, 2, 3), (4, 5)]
OTHER = ModelShape(7, 11, 24, ((5, None),), 250, 50, 30, 9, moe_layers=2, experts=10, top_k=1)


@st.composite
def lanes(draw: st.DrawFn, steps: int, beams: tuple[int, ...], model: str) -> Lane:
    forwards = draw(st.sampled_from([(), tuple(draw(st.lists(st.integers(1, 3), min_size=steps, max_size=steps)))]))
    every = sum(forwards) if forwards else steps
    if beams and forwards:
        later = st.integers(1, 3)
        beams = tuple(draw(later) if i else b for b, of in zip(beams, forwards, strict=True) for i in range(of))
    bits = st.integers(0, 255)
    experts = np.array(draw(st.lists(bits, min_size=4 * every, max_size=4 * every)), np.uint8)
    experts = (experts.reshape(every, 2, 2) & [255, 0b11000000]).astype(np.uint8)
    prompt = draw(st.sampled_from(PROMPTS))
    # What a prefill runs is a function of the prompt.
    prefill = np.array([[len(prompt), 0], [prompt[-1], 128]], np.uint8) if len(prompt) > 1 else NO_EXPERTS
    source = draw(st.sampled_from(["", "noise"]))
    shape = {"main": SHAPE, "second": OTHER}[model]
    cached = Cached(model, shape, prompt, Prefill(prefill, 3 * (len(prompt) - 1)), source)
    counts = st.lists(st.integers(0, 5), min_size=every, max_size=every).map(tuple)
    rows = draw(counts)
    numbers = [i for of in forwards or [1] * steps for i in range(of)]
    rows = tuple(max(count, bool(number)) for count, number in zip(rows, numbers, strict=True))
    return Lane(cached, rows, draw(counts), draw(counts), experts, beams, forwards)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    steps = draw(st.integers(1, 4))
    beams = tuple(draw(st.lists(st.integers(1, 3), min_size=steps, max_size=steps)))
    beams = draw(st.sampled_from([(), beams]))
    models = draw(st.lists(st.sampled_from(["main", "second"]), min_size=1, max_size=3))
    texts = draw(st.lists(st.lists(st.integers(2, 4), max_size=3).map(tuple), max_size=2))
    return Usage(tuple(draw(lanes(steps, beams, model)) for model in models), tuple(texts))


entered = st.lists(st.tuples(usages(), st.integers(0, 5)), min_size=1, max_size=6)


def plain_bill(entries: list[tuple[Usage, int]]) -> dict[str, float]:
    """The scenario "alone", one forward after the other, with sets and loops."""
    bill = {"flops": 0.0, "bytes": 0.0, "expert_loads": 0, "prompt_tokens": 0}
    bill |= {"new_tokens": 0, "rows": 0, "sequential_steps": 0}
    known: set[object] = set()
    earlier: list[tuple[str, tuple[int, ...]]] = []
    for time in range(20):
        ended = [u for u, start in entries if start + u.steps == time]
        starting = [lane.cached for u, start in entries if start == time for lane in u.lanes]
        clean = [(lane.cached, text) for u in ended for lane in u.lanes for text in u.texts if not lane.cached.source]
        earlier += [(cached.model, (*cached.prompt, *text)) for cached, text in clean]
        fresh = {(c.model, c.source, c.prompt): c for c in starting if (c.model, c.prompt, c.source) not in known}
        known |= {(c.model, c.prompt, c.source) for c in fresh.values()}
        waits = [bill_prefill(bill, fresh[key], earlier) for key in sorted(fresh)]
        bill["sequential_steps"] += any(waits)
        live = [(u, time - start) for u, start in entries if 0 <= time - start < u.steps]
        for number in range(3):
            for model in ("main", "second"):
                mine = [(x, step) for u, step in live for x in u.lanes if x.cached.model == model]
                bill_forward(bill, [(x, step, place(x, step, number)) for x, step in mine if number < took(x, step)])
            bill["sequential_steps"] += any(number < took(x, step) for u, step in live for x in u.lanes)
        bill["new_tokens"] += sum(beams_of(u.lanes[0], place(u.lanes[0], step, 0)) for u, step in live)
    return bill


def took(lane: Lane, step: int) -> int:
    """Forwards of one step."""
    return lane.forwards[step] if lane.forwards else 1


def place(lane: Lane, step: int, number: int) -> int:
    """Where a lane records a step's forward."""
    return sum(took(lane, earlier) for earlier in range(step)) + number


def beams_of(lane: Lane, forward: int) -> int:
    return lane.beams[forward] if lane.beams else 1


def bill_prefill(bill: dict[str, float], cached: Cached, earlier: list[tuple[str, tuple[int, ...]]]) -> bool:
    """Enters one prompt, but what an earlier sequence of its model has in common with it; whether any token ran."""
    shape, prompt = cached.shape, cached.prompt
    others = [ids for model, ids in earlier if model == cached.model] if cached.source == "" else []
    if cached.source == "":
        earlier.append((cached.model, prompt))
    common = [
        (sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, prompt, strict=False))), ids)
        for ids in others
    ]
    bill["prompt_tokens"] += len(prompt) - max((n for n, _ in common), default=0)
    held = max((min(n, len(ids) - 1) for n, ids in common), default=0)
    new = len(prompt) - 1 - held
    if new <= 0:
        return False
    count, runs = len(unpacked(cached.prefill.experts)), cached.prefill.runs * new // (len(prompt) - 1)
    count = min(count, runs) if held else count
    kinds = [(4, 10**6), (2, 3)] if shape is SHAPE else [(9, 10**6)]
    bill["bytes"] += shape.dense_bytes + count * shape.expert_bytes + sum(size * min(held, w) for size, w in kinds)
    bill["expert_loads"] += count
    bill["flops"] += new * shape.dense_flops + runs * expert_flops(shape)
    bill["flops"] += sum(seen(shape, context) for context in range(held + 1, len(prompt)))
    return True


def bill_forward(bill: dict[str, float], live: list[tuple[Lane, int, int]]) -> None:
    """Enters one forward of one model's caches: of each the step, and where the forward is recorded."""
    running = [(lane, step, i) for lane, step, i in live if lane.rows[i]]
    loads = {e for lane, _, i in live for e in unpacked(lane.experts[i])}
    shape = live[0][0].cached.shape if live else SHAPE
    for lane, step, i in live:
        bill["flops"] += lane.rows[i] * (shape.dense_flops + seen(shape, len(lane.cached.prompt) + step))
        bill["flops"] += lane.heads[i] * shape.head_flops + lane.runs[i] * expert_flops(shape)
        bill["rows"] += lane.rows[i]
    kinds = [(4, 10**6), (2, 3)] if shape is SHAPE else [(9, 10**6)]
    bill["bytes"] += sum(size * keys_read(running, window) for size, window in kinds)
    bill["expert_loads"] += len(loads)
    bill["bytes"] += len(loads) * shape.expert_bytes + bool(running) * (shape.dense_bytes + shape.head_bytes)


def keys_read(running: list[tuple[Lane, int, int]], window: int) -> int:
    """Places within the window, one by one: those of a prompt are a set, the others every beam's own."""
    shared, own = set(), 0
    for lane, step, forward in running:
        prompt, context = lane.cached.prompt, len(lane.cached.prompt) + step
        for place in range(max(context - window, 0), context):
            if place < len(prompt):
                shared.add((prompt, lane.cached.source, place))
            else:
                own += beams_of(lane, forward)
    return len(shared) + own


def expert_flops(shape: ModelShape) -> float:
    """One row in one expert of one layer."""
    return {SHAPE: 20 / 4, OTHER: 24 / 2}[shape]


def seen(shape: ModelShape, keys: int) -> float:
    """Attention of one row."""
    return 2 * keys + min(keys, 3) if shape is SHAPE else 5 * keys


def unpacked(bits: np.ndarray) -> set[tuple[int, int]]:
    return {(layer, e) for layer, row in enumerate(np.unpackbits(bits, axis=-1)) for e in np.flatnonzero(row).tolist()}


@given(entered)
def test_a_bill_equals_the_plain_recomputation(entries: list[tuple[Usage, int]]) -> None:
    ledger = Ledger()
    for usage, start in entries:
        assert ledger.add([usage], start) == start + usage.steps
    assert ledger.bill().to_dict() == plain_bill(entries)


@given(entered, st.randoms(use_true_random=False))
def test_the_order_of_entry_does_not_matter(entries: list[tuple[Usage, int]], random: object) -> None:
    one, other = Ledger(), Ledger()
    entries = [(unround(usage), start) for usage, start in entries]
    shuffled = list(entries)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for ledger, order in ((one, entries), (other, shuffled)):
        for usage, start in order:
            ledger.add([usage], start)
    assert one.bill() == other.bill()


def unround(usage: Usage) -> Usage:
    """The same with figures that float64 cannot hold, so that the order of a plain sum would show."""
    odd = {"dense_flops": 0.1, "attention": ((1e-3, None), (1 / 3, 3)), "dense_bytes": 0.7, "kv_bytes": 0.3}
    return Usage(
        tuple(
            replace(x, cached=replace(x.cached, shape=replace(x.cached.shape, **odd)))  # type: ignore[arg-type]
            for x in usage.lanes
        )
    )


@given(entered)
def test_what_candidates_share_is_billed_once_and_the_rest_adds_up(entries: list[tuple[Usage, int]]) -> None:
    ledger = Ledger()
    for usage, start in entries:
        ledger.add([usage], start)
    together, alone = ledger.decode(), Cost.total(decode_cost(usage) for usage, _ in entries)
    assert (together.flops, together.new_tokens, together.rows) == (alone.flops, alone.new_tokens, alone.rows)
    assert together.bytes <= alone.bytes
    assert together.expert_loads <= alone.expert_loads


@given(st.lists(st.floats(0, 1e20), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_bills_add_up_in_any_order(flops: list[float], random: object) -> None:
    bills = [Cost(flops=f, new_tokens=1) for f in flops]
    total = Cost.total(bills)
    random.shuffle(bills)  # type: ignore[attr-defined]
    assert Cost.total(bills) == total == Cost(flops=math.fsum(flops), new_tokens=len(flops))


def test_costs_add_field_by_field() -> None:
    total = Cost(1.0, 2.0, 3, 4, 5, 6, 7) + Cost(10.0, 20.0, 30, 40, 50, 60, 70)
    assert total == Cost(11.0, 22.0, 33, 44, 55, 66, 77)
    assert total.to_dict()["rows"] == 66
    assert Cost.total([]) == Cost()
    with pytest.raises(AttributeError):
        total.rows = 0  # type: ignore[misc]
