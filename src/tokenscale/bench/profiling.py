"""Where the time of one RoE step goes, by torch.profiler: the parts of the model, and what runs in each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.part import LeftOut, Outcome, Sizes
from tokenscale.bench.steps import TAU, Step
from tokenscale.bench.subject import Subject
from tokenscale.core.model import ROUTING_NOISE

MARK = "part: "
ROWS = 8
REST = "the rest of the step"


def parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a decoder by what they are; modules inside a part may be parts of their own."""
    inside = ""
    for name, module in model.named_modules():
        kind, leaf = type(module).__name__, name.rpartition(".")[2]
        if kind.endswith("Attention"):
            inside = f"{name}."
            yield "attention to the cache", module
        elif inside and name.startswith(inside) and isinstance(module, nn.Linear):
            yield "attention projections", module
        elif kind.endswith("Experts"):
            yield "experts", module
        elif kind.lower().endswith("router"):
            yield "router", module
        elif "norm" in leaf:
            yield "norms", module
        elif leaf in ("lm_head", "embed_tokens"):
            yield leaf, module
        elif leaf == "rotary_emb":
            yield "rotary embedding", module


@contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    """Every part of a model is a range of the profile."""
    with ExitStack() as stack:
        for name, module in parts(model):
            open_ranges: list[Any] = []
            stack.callback(module.register_forward_pre_hook(_opens(name, open_ranges)).remove)
            stack.callback(module.register_forward_hook(_closes(open_ranges)).remove)
        yield


def _opens(name: str, ranges: list[Any]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any) -> None:
        ranges.append(record_function(MARK + name))
        ranges[-1].__enter__()

    return hook


def _closes(ranges: list[Any]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        ranges.pop().__exit__(None, None, None)

    return hook


def measure(subject: Subject, sizes: Sizes, limits: Limits) -> Outcome:
    """The parts of a step of 8 rows, largest first. The profiler itself slows small operations down."""
    if ROUTING_NOISE not in subject.lm.capabilities:
        raise LeftOut(f"RoE does not run on it: {subject.lm.lacks(ROUTING_NOISE)}")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on stderr
    step = Step(subject.lm, subject.prompt(sizes.context), ROWS)
    with marked(subject.lm.model):
        for _ in range(3):
            step()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(sizes.steps):
                with record_function(MARK + REST):
                    step()
    return Outcome("profile", facts={"n": ROWS, "tau": TAU, "parts": shares(profiled.events(), sizes.steps)})


def shares(events: Any, steps: int) -> list[dict[str, Any]]:
    """Per part: its own microseconds a step, its share, and the operation in it that takes most."""
    own: Counter[str] = Counter()
    operations: dict[str, Counter[str]] = {}
    for event in events:
        part = _part_of(event)
        if part is None:
            continue
        own[part] += event.self_cpu_time_total
        if not event.name.startswith(MARK):
            operations.setdefault(part, Counter())[event.name] += event.self_cpu_time_total
    total = sum(own.values()) or 1
    return [
        {
            "part": part,
            "ms": time / steps / 1e3,
            "share": time / total,
            "largest_operation": next((name for name, _ in operations.get(part, Counter()).most_common(1)), ""),
            "share_in_operations": sum(operations.get(part, Counter()).values()) / time if time else 0.0,
        }
        for part, time in own.most_common()
    ]


def _part_of(event: Any) -> str | None:
    """The innermost part around an event; None outside of all."""
    while event is not None:
        if event.name.startswith(MARK):
            return str(event.name.removeprefix(MARK))
        event = event.cpu_parent
    return None
