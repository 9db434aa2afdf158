"""What a router does, read off the operations of one forward of its own code.

Transformers' routers are about eighty classes of few kinds. Here a router is run once on random hidden
states while torch tells every operation, and these are found: the one that takes the router logits R,
the one that ranks the experts, and what stands between them (a score function, a bias, a limit to
groups). Operations are known by their number, which is the same in every forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

LINEAR = {"linear", "matmul", "mm", "addmm", "bmm"}
SCORES = {"softmax", "sigmoid", "softplus", "log_softmax"}
MAKERS = LINEAR | {"float", "to", "type", "mul", "div", "tanh"}
SHAPES = {"reshape", "view", "flatten", "unsqueeze"}
LIKE = {"full_like", "zeros_like", "empty_like", "ones_like"}
BIAS = {"add", "__add__", "__radd__", "add_"}


@dataclass(frozen=True)
class Operation:
    """One operation that torch ran: its name, its first argument, and its result."""

    name: str
    first: Any
    result: Any
    others: tuple[Any, ...]


@dataclass(frozen=True)
class Rule:
    """How a router gets from logits to experts.

    `taken_at` is the number of the operation that takes the logits R, `choice_at` that of the operation
    that ranks `experts` scores and takes `top_k`. `made_at` is the operation that makes R, where gate
    weights are made of R once more: None where not, -1 where it must not be touched, being no product
    of torch's own (a kernel that fills a tensor later).

    `monotone`: what is ranked grows with R, the same for all experts. `indices_at` is the place of the
    indices in the output, None where they are not given back as they were chosen. `masked_at` is the
    operation that excludes experts outside the best groups; `operations` names all up to the choice.
    """

    family: str
    experts: int
    top_k: int
    taken_at: int
    choice_at: int
    made_at: int | None
    monotone: bool
    indices_at: int | None
    masked_at: int | None
    operations: tuple[str, ...]


class Trace(TorchFunctionMode):
    """Notes all operations that give tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if gives_tensors(result):
            given = (*args, *(kwargs or {}).values())
            self.operations.append(Operation(func.__name__, given[0] if given else None, result, given[1:]))
        return result


def gives_tensors(result: Any) -> bool:
    """Whether an operation counts: a getter of a shape, say, does not."""
    if isinstance(result, Tensor):
        return True
    return isinstance(result, tuple) and any(isinstance(r, Tensor) for r in result)


def traced(call: Callable[..., Any], args: Sequence[Any]) -> tuple[list[Operation], Any]:
    """The operations of `call(*args)`, and its output.

    A router that needs values where there are none (on the meta device) stops after its choice.
    """
    output = None
    with torch.no_grad(), Trace() as trace:
        try:
            output = call(*args)
        except (RuntimeError, NotImplementedError):
            if not args[0].is_meta:
                raise
    return trace.operations, output


def rule_of(operations: Sequence[Operation], output: Any) -> Rule | None:
    """The rule behind the operations of a router's run; None where no choice is seen."""
    choices = [i for i, op in enumerate(operations) if op.name == "topk"]
    if not choices:
        return None
    choice_at = choices[-1]
    ranked, (_, indices) = operations[choice_at].first, operations[choice_at].result
    chain = _ancestors(operations, choice_at)
    taken_at = next((i for i in chain if _takes_logits(operations, chain, i)), choice_at)
    made_at = _made_at(operations, taken_at)
    family, monotone = _family(operations, chain, choice_at)
    outputs = output if isinstance(output, tuple) else (output,)
    places = [i for i, value in enumerate(outputs) if value is indices]
    place = places[0] if places else None
    masked = next((i for i in chain[::-1] if operations[i].name == "masked_fill"), None)
    names = tuple(op.name for op in operations[: choice_at + 1])
    sizes = ranked.shape[-1], indices.shape[-1]
    return Rule(family, *sizes, taken_at, choice_at, made_at, monotone, place, masked, names)


def _ancestors(operations: Sequence[Operation], choice_at: int) -> list[int]:
    """The operations that made what is ranked, followed by first arguments back to a matrix product, in order."""
    chain: list[int] = []
    wanted = operations[choice_at].first
    for i in range(choice_at - 1, -1, -1):
        if operations[i].result is wanted:
            chain.append(i)
            if operations[i].name in LINEAR:
                break
            wanted = operations[i].first
    return chain[::-1]


def _takes_logits(operations: Sequence[Operation], chain: Sequence[int], number: int) -> bool:
    """Whether an operation of the chain is the score function; without one, whether it adds a bias."""
    scores = [i for i in chain if operations[i].name in SCORES]
    return number in scores if scores else operations[number].name in BIAS


def _made_at(operations: Sequence[Operation], taken_at: int) -> int | None:
    """The operation that makes R, where R is used again; -1 where that is no operation to touch."""
    logits = operations[taken_at].first
    same, again = [logits], False
    for op in operations[taken_at + 1 :]:
        if any(op.first is tensor for tensor in same):
            same += [op.result] if op.name in SHAPES else []
            again = again or op.name not in SHAPES | LIKE
    if not again:
        return None
    return next((i for i, op in enumerate(operations) if op.result is logits and op.name in MAKERS), -1)


def _family(operations: Sequence[Operation], chain: Sequence[int], choice_at: int) -> tuple[str, bool]:
    """A name such as "sigmoid + bias, groups, top-k, renormalised", and whether the choice grows with R."""
    before, after = [operations[i] for i in chain], operations[choice_at + 1 :]
    top_k = operations[choice_at].result[1].shape[-1]
    scores = next((op.name for op in before if op.name in SCORES), "logits")
    biased = any(op.name in BIAS and isinstance(op.others[0], Tensor) for op in before)
    groups = any(op.name == "masked_fill" for op in before) and _limits_groups(operations, choice_at)
    late = next((op.name for op in after if op.name in SCORES), "") if scores == "logits" else ""
    sums = any(op.name in ("sum", "norm") and _chosen_sum(op, top_k) for op in after)
    parts = [scores + (" + bias" if biased else ""), "groups" if groups else "", f"top-{'k' if top_k > 1 else 1}"]
    parts += [late, "renormalised" if sums else ""]
    return ", ".join(part for part in parts if part), not (biased or groups)


def _limits_groups(operations: Sequence[Operation], choice_at: int) -> bool:
    """Whether fewer than all groups are taken before experts are."""
    ranks = operations[choice_at].first.ndim
    earlier = [op for op in operations[:choice_at] if op.name == "topk" and op.first.ndim == ranks]
    return any(op.result[1].shape[-1] < op.first.shape[-1] for op in earlier)


def _chosen_sum(op: Operation, top_k: int) -> bool:
    """Whether an operation adds up over the chosen experts."""
    return bool(op.first.shape[-1] == top_k and op.result.shape == (*op.first.shape[:-1], 1))
