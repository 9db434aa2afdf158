"""The clean cache against lists of keys, under any sequence of steps, selections and joins."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenscale.models.clean_cache import CleanCache, CleanState

LAYERS = 2


class Model:
    """Every token's key is its own number; each sequence is also kept as a plain list."""

    def __init__(self) -> None:
        self.next = 1.0

    def prefill(self, lengths: list[int]) -> tuple[CleanState, list[list[float]]]:
        longest = max(lengths)
        cache = CleanCache(LAYERS, len(lengths))
        cache.first = [longest - n for n in lengths]
        lists = [[self.number() for _ in range(n)] for n in lengths]
        if longest:
            padded = [[-1.0] * (longest - len(row)) + row for row in lists]
            self.write(cache, torch.tensor(padded))
            cache.commit(longest)
            cache.frame.start = min(cache.first)
        return CleanState(cache, list(range(len(lengths))), [None] * len(lengths)), lists  # type: ignore[list-item]

    def number(self) -> float:
        self.next += 1
        return self.next

    def write(self, cache: CleanCache, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys = numbers[:, None, :, None].expand(-1, 3, -1, 2)
        for layer in range(LAYERS):
            out = cache.update(keys + layer, -keys, layer)
        return out

    def step(self, state: CleanState, lists: list[list[float]], rows: int) -> None:
        fresh = [[self.number() for _ in range(rows)] for _ in lists]
        physical = torch.empty(len(lists), rows)
        for b, row in enumerate(state.order):
            physical[row] = torch.tensor(fresh[b])
        state.cache.reserve(rows)
        keys, values = self.write(state.cache, physical)
        for b, row in enumerate(state.order):
            expected = lists[b] + fresh[b]  # what attention sees: the past, then all rows of the step
            assert (keys[row, 0, -len(expected) :, 0] - (LAYERS - 1)).tolist() == expected
            assert (-values[row, 0, -len(expected) :, 0]).tolist() == expected
        state.cache.commit(1)
        for own, new in zip(lists, fresh, strict=True):
            own.append(new[0])


@given(st.data())
def test_every_sequence_keeps_its_own_keys(data: st.DataObject) -> None:
    model = Model()
    lengths = st.lists(st.integers(0, 90), min_size=1, max_size=4)
    state, lists = model.prefill(data.draw(lengths))
    for _ in range(data.draw(st.integers(1, 8))):
        action = data.draw(st.sampled_from(["step", "step", "select", "fork", "join"]))
        if action == "step":
            model.step(state, lists, data.draw(st.integers(1, 5)))
        elif action == "join":
            newcomers, their_lists = model.prefill(data.draw(lengths))
            state, lists = state.join(newcomers), lists + their_lists
        else:
            index = data.draw(_indices(len(lists), unique=action == "select"))
            state, lists = state.select(index), [list(lists[i]) for i in index]
        assert state.lengths == [len(own) for own in lists]
    model.step(state, lists, 3)


def _indices(count: int, unique: bool) -> Any:
    return st.lists(st.integers(0, count - 1), min_size=1, max_size=count if unique else 6, unique=unique)


def test_memory_does_not_grow_with_the_rows() -> None:
    held = {}
    for rows in (1, 8):
        model = Model()
        state, lists = model.prefill([40, 40])
        for _ in range(12):
            model.step(state, lists, rows)
        held[rows] = state.cache.kv_bytes
    assert held[1] == held[8]


def test_a_step_copies_nothing() -> None:
    model = Model()
    state, lists = model.prefill([40, 30])
    buffers = [layer.keys.data_ptr() for layer in state.cache.layers]
    model.step(state, lists, 4)
    assert [layer.keys.data_ptr() for layer in state.cache.layers] == buffers
    keys, _ = model.write(state.cache, torch.zeros(2, 1))
    assert keys.data_ptr() == state.cache.layers[-1].keys.data_ptr()


def test_beams_that_change_places_stay_in_the_buffers() -> None:
    """Only copies of a beam are written, into the rows of those that were dropped."""
    model = Model()
    state, lists = model.prefill([40, 30, 20, 10])
    buffers = [layer.keys.data_ptr() for layer in state.cache.layers]
    for index in ([2, 2, 3, 0], [1, 0, 3, 2], [3, 1], [0, 0, 1, 1]):
        state, lists = state.select(index), [list(lists[i]) for i in index]
        model.step(state, lists, 1)
    assert [layer.keys.data_ptr() for layer in state.cache.layers] == buffers
