"""The rows' aggregate, tile by tile where their logits are too large to be held at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tokenscale.core import unread
from tokenscale.core.strategy import Aggregator, Rows
from tokenscale.core.unread import ALL, too_large


def aggregated(aggregator: Aggregator, rows: Rows) -> tuple[Float[Tensor, "batch vocab"], list[bool]]:
    """`aggregate` and `fell_back` of the rows.

    Logits of more than LOGITS_BYTES are read in tiles of at most so many: a few sequences with all their rows, or,
    where one sequence's rows are too many, chunks of them for an aggregator that folds. One that does not fold
    reads one sequence at a time, whatever its size.
    """
    if not too_large(rows.held.shape):
        return aggregator.aggregate(rows), _fell_back(aggregator, rows)
    found, fell_back = list[Tensor](), list[bool]()
    for sequences in whole(rows):
        some = rows.part(sequences, ALL)
        if too_large(some.held.shape) and _folds(aggregator):
            log_probs, fell = _folded(aggregator, some)
        else:
            log_probs, fell = aggregator.aggregate(some), _fell_back(aggregator, some)
        found.append(log_probs)
        fell_back += fell
    return torch.cat(found), fell_back


def whole(rows: Rows) -> Iterator[slice]:
    """Neighbouring sequences whose rows can be read together; at least one each."""
    batch, n, vocab = rows.held.shape
    return _even(batch, max(1, unread.LOGITS_BYTES // (4 * n * vocab)))


def chunks(rows: Rows) -> Iterator[Rows]:
    """Neighbouring rows that can be read together; at least one of every sequence each."""
    batch, n, vocab = rows.held.shape
    for some in _even(n, max(1, unread.LOGITS_BYTES // (4 * batch * vocab))):
        yield rows.part(ALL, some)


def _even(count: int, most: int) -> Iterator[slice]:
    """The fewest slices of at most `most`, as equal as can be."""
    slices = -(-count // most)
    for i in range(slices):
        yield slice(i * count // slices, (i + 1) * count // slices)


def _folds(aggregator: Aggregator) -> bool:
    """Whether its fold says all that its function says. Who has fallen back may not be known to it."""
    kind = type(aggregator)
    tells = kind.fell_back is Aggregator.fell_back or kind.fold_fell_back is not Aggregator.fold_fell_back
    return aggregator.folds and tells


def _fell_back(aggregator: Aggregator, rows: Rows) -> list[bool]:
    if type(aggregator).fell_back is Aggregator.fell_back:  # nobody does
        return [False] * rows.held.shape[0]
    fell: list[bool] = aggregator.fell_back(rows).tolist()
    return fell


def _folded(aggregator: Aggregator, rows: Rows) -> tuple[Float[Tensor, "batch vocab"], list[bool]]:
    batch, _, vocab = rows.held.shape
    accumulator = aggregator.init(batch, vocab)
    for chunk in chunks(rows):
        accumulator = aggregator.update(accumulator, chunk)
    fell = aggregator.fold_fell_back(accumulator)
    return aggregator.finish(accumulator), [False] * batch if fell is None else fell.tolist()
