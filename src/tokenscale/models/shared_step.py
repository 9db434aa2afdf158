"""The attention of one decoding step: n query rows a sequence, over segments, its tail, and a key of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tokenscale.core.plan import RowPlan
from tokenscale.models.attention import Layout, Projected
from tokenscale.models.native.bindings import DTYPES, AttentionCall, attention
from tokenscale.models.partial import Partial, attend, merged, nothing, with_sinks
from tokenscale.models.shared_state import Readings, SharedState


class StepLayout(Layout):
    """Every row sees its sequence's segments and tail, and of the current token one key, as the plan says.

    With `kernels` the compiled kernel runs it, in one call a layer; else torch does, part by part.
    """

    def __init__(self, state: SharedState, plan: RowPlan, windows: Sequence[int | None], kernels: bool) -> None:
        self.cache, self.plan, self.windows, self.kernels = state.cache, plan, windows, kernels
        frame = self.cache.frame
        current = frame.width if plan.commit else frame.width - 1
        clean = plan.current_kv == "clean"
        # Where nothing is committed, the current token's clean key is the last one that is stored.
        self.end = current + (clean and not plan.commit)
        self.own_step = -1 if clean and not plan.commit else 0 if clean else 1
        kinds = set(windows)
        self.readings = {window: state.readings(window, current) for window in kinds}
        self.firsts = {w: self._firsts(w, current) for w in kinds}
        self._calls = {w: self._prepared(w) for w in kinds} if kernels else {}

    def _firsts(self, window: int | None, current: int) -> Any:
        """A sequence's first visible column."""
        first = np.array(self.cache.first, np.int64)
        return first if window is None else np.maximum(first, current - window + 1)

    def attend(self, given: Projected) -> Float[Tensor, "batch rows heads value_dim"]:
        layer = self.cache.layer
        tail, window = self.cache.layers[layer], self.windows[layer]
        if self.kernels and given.queries.dtype in DTYPES:
            return self._by_kernel(given, layer, tail, window)
        part = self._of_tail(given, tail, self.firsts[window])
        if self.plan.commit:
            tail.store(given.keys, given.values)
        part = self._with_segments(part, given, layer, self.readings[window])
        if given.sinks is not None:
            part = with_sinks(part, given.sinks)
        return part.out.transpose(1, 2).to(given.queries.dtype).contiguous()  # models view it

    def _of_tail(self, given: Projected, tail: Any, firsts: Any) -> Partial:
        """Over the tail and the keys of the current token."""
        rows, frame, n = len(firsts), self.cache.frame, given.queries.shape[2]
        device = given.queries.device
        columns = torch.arange(frame.start, self.end, device=device)
        past = (columns >= torch.from_numpy(firsts).to(device)[:, None])[:, None].expand(-1, n, -1)
        keys, values = tail.keys[:rows, :, frame.start : self.end], tail.values[:rows, :, frame.start : self.end]
        if self.own_step < 0:
            return attend(given.queries, keys, values, given.scale, past, given.softcap)
        seen = torch.arange(n, device=device) == torch.arange(n, device=device)[:, None] * self.own_step
        visible = torch.cat([past, seen.expand(rows, -1, -1)], -1)
        keys, values = torch.cat([keys, given.keys], 2), torch.cat([values, given.values], 2)
        return attend(given.queries, keys, values, given.scale, visible, given.softcap)

    def _with_segments(self, part: Partial, given: Projected, layer: int, readings: Readings) -> Partial:
        """Merged with the attention over every segment, whose readers' rows are queries of one product."""
        _, count, n, _ = given.queries.shape
        past = nothing(given.queries, given.values.shape[-1])
        for number, (segment, end) in enumerate(readings.parts):
            begin = int(readings.begin[number])
            readers = torch.from_numpy(readings.readers[readings.first[number] : readings.first[number + 1]])
            readers = readers.to(given.queries.device)
            queries = given.queries[readers].transpose(0, 1).reshape(1, count, len(readers) * n, -1)
            keys, values = segment.keys[layer][None, :, begin:end], segment.values[layer][None, :, begin:end]
            found = attend(queries, keys, values, given.scale, softcap=given.softcap)
            out = found.out.view(count, len(readers), n, -1).transpose(0, 1)
            lse = found.lse.view(count, len(readers), n).transpose(0, 1)
            here = merged(Partial(past.out[readers], past.lse[readers]), Partial(out, lse))
            past.out[readers], past.lse[readers] = here.out, here.lse
        return merged(past, part)

    def _prepared(self, window: int | None) -> AttentionCall:
        """What of the kernel's arguments is the same for all layers of one window."""
        readings = self.readings[window]
        call = AttentionCall()
        call.tail_first, call.tail_end = self.firsts[window].ctypes.data, self.end
        call.own_step, call.stored = self.own_step, self.cache.frame.width if self.plan.commit else -1
        call.segments, call.threads = len(readings.parts), torch.get_num_threads()
        for name, array in (
            ("segment_length", readings.tokens),
            ("segment_begin", readings.begin),
            ("segment_end", readings.end),
            ("reader_first", readings.first),
            ("readers", readings.readers),
            ("part_first", readings.place_first),
            ("parts", readings.places),
        ):
            setattr(call, name, array.ctypes.data)
        return call

    def _by_kernel(self, given: Projected, layer: int, tail: Any, window: int | None) -> Tensor:
        q, k, v = (_last_dense(t) for t in (given.queries, given.keys, given.values))
        batch, count, n, dim = q.shape
        call, pointers = self._calls[window], self.readings[window].pointers
        out = q.new_empty(batch, n, count, v.shape[3])
        call.q, (call.q_batch, call.q_head, call.q_row, _) = q.data_ptr(), q.stride()
        call.own_keys, (call.own_key_batch, call.own_key_head, call.own_key_row, _) = k.data_ptr(), k.stride()
        call.own_values, (call.own_value_batch, call.own_value_head, call.own_value_row, _) = v.data_ptr(), v.stride()
        call.tail_keys, (call.key_batch, call.key_head, call.key_column, _) = tail.keys.data_ptr(), tail.keys.stride()
        call.tail_values = tail.values.data_ptr()
        call.value_batch, call.value_head, call.value_column, _ = tail.values.stride()
        if call.segments:
            address = pointers.ctypes.data + layer * 8 * call.segments
            call.segment_keys, call.segment_values = address, address + pointers.strides[0]
        sinks = None if given.sinks is None else given.sinks.float().contiguous()
        call.sinks = None if sinks is None else sinks.data_ptr()
        call.out, call.half = out.data_ptr(), q.dtype == torch.bfloat16
        call.batch, call.heads, call.kv_heads, call.rows = batch, count, k.shape[1], n
        call.dim, call.value_dim, call.scale, call.softcap = dim, v.shape[3], given.scale, given.softcap
        attention(call)
        return out


def _last_dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
