"""Pipelines inside transformers' own `generate`: ``model.generate(**inputs, custom_generate=...)``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import EosTokenCriteria, MaxLengthCriteria, StopStringCriteria

from tokenscale.asked import check_stop_strings
from tokenscale.core.admission import Bound, check_bounds
from tokenscale.core.backend import OnToken
from tokenscale.core.data import Result
from tokenscale.core.errors import ArgumentError, CapabilityError, at_least
from tokenscale.core.permitted import LogitsProcessor
from tokenscale.core.prompt import Prompt
from tokenscale.core.stage import Kind, Stage
from tokenscale.dsl import to_text
from tokenscale.models.hf import HFModel, wrap
from tokenscale.pipeline import Pipeline

MOST_TOKENS = 2**31
UNKEPT = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def custom_generate(
    pipe: Pipeline,
    seed: int = 0,
    tokenizer: Any = None,
    streamer: Any = None,
    batch_size: Bound = "auto",
    stop_strings: Sequence[str] = (),
    max_batch_tokens: Bound = "auto",
) -> Callable[..., Any]:
    """A decoding method for transformers' `generate`, which hands it the prepared arguments.

    `generate` gives the prompts, `max_new_tokens` or `max_length`, the end tokens,
    `return_dict_in_generate`, its stopping criteria of these three kinds (length, end tokens, stop
    strings; a stop string counts in new text), and the logits processors, which are applied once per
    token, to the aggregate's log-probabilities (as in beam search; `repetition_penalty` acts on raw
    logits in `generate`'s greedy search, and so differs). How tokens are chosen is the pipeline's alone:
    `do_sample`, `temperature` and the other sampling settings have no effect. Every row of the input
    is a problem of its own, so `num_return_sequences` (which `generate` allows with `do_sample=True`
    only) repeats it with other draws. The ids returned are the prompt's and the winner's; text that a
    prompting stage adds between them is not among them.

    `tokenizer` is needed where a stage or a stop string reads text. `streamer` takes one prompt at a
    time; a vote streams its winner once it is known. `batch_size` and `max_batch_tokens` are those of
    `Pipeline.run`. `generate` passes neither on to a callable, and
    refuses its own `stop_strings` without a tokenizer; hence all three are bound here.

    Raises ArgumentError for what is no pipeline and for arguments out of range, at once; when `generate`
    calls it, CapabilityError for other stopping criteria, for text to be read without a tokenizer, for
    input embeddings, for beams (they are the pipeline's to name), for scores, logits, attentions and
    hidden states in the output, and for several prompts with a streamer or `prefix_allowed_tokens_fn`.
    """
    _check_arguments(pipe, seed, batch_size, max_batch_tokens)
    bound = check_stop_strings("custom_generate", stop_strings)
    wrapped: list[HFModel] = []

    def decoding_method(
        model: Any,
        input_ids: Int[Tensor, "batch length"],
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        ends = _ends(stopping_criteria, bound)
        _refuse(model_kwargs, generation_config)
        _refuse_several(len(input_ids), logits_processor, streamer)
        _require_tokenizer(pipe, ends, tokenizer)
        if not wrapped or wrapped[0].model is not model:
            wrapped[:] = [wrap(model, tokenizer)]
        lm = wrapped[0]
        lm.eos_ids = ends.eos_ids
        prompts = _unpadded(input_ids, model_kwargs.get("attention_mask"))
        results = pipe.run(
            lm,
            [Prompt(token_ids=ids) for ids in prompts],
            seed=seed,
            max_new_tokens=ends.new_tokens(input_ids.shape[1]),
            stop_strings=ends.stop_strings,
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            processor=_processor(logits_processor, prompts, input_ids.shape[1], generation_config),
            on_token=_stream(pipe, input_ids, streamer),
        )
        _end_stream(pipe, results, streamer)
        return _output(input_ids, results, generation_config)

    return decoding_method


def _check_arguments(pipe: object, seed: int, batch_size: Bound, max_batch_tokens: Bound) -> None:
    if not isinstance(pipe, Pipeline):
        written = f"ts.Pipeline.parse({pipe!r:.80})" if isinstance(pipe, str) else f"ts.Pipeline({pipe!r:.80})"
        stage = isinstance(pipe, str | Stage)
        hint = f"write custom_generate({written if stage else 'ts.Pipeline(ts.RoE(n=4))'})"
        raise ArgumentError(f"custom_generate takes a pipeline, got {pipe!r:.80}", hint)
    at_least("custom_generate", "seed", seed, 0)
    check_bounds("custom_generate", batch_size, max_batch_tokens)


@dataclass(frozen=True)
class _Ends:
    """Where texts end, by `generate`'s stopping criteria. `max_length` counts the padded prompt in."""

    max_length: int
    eos_ids: frozenset[int]
    stop_strings: tuple[str, ...]

    def new_tokens(self, prompt_tokens: int) -> int:
        """How many tokens may follow a prompt. Raises ArgumentError where none may."""
        if self.max_length > prompt_tokens:
            return self.max_length - prompt_tokens
        message = f"the prompt has {prompt_tokens} tokens, and max_length={self.max_length} leaves none to generate"
        raise ArgumentError(message, "give max_new_tokens, or a larger max_length")


def _ends(criteria: Sequence[Any] | None, bound: tuple[str, ...]) -> _Ends:
    """Reads the criteria: those that `generate` made of its arguments, and the caller's in their place."""
    max_length, eos_ids, stops = MOST_TOKENS, set[int](), list(bound)
    for one in criteria or ():
        if type(one) is MaxLengthCriteria:
            max_length = min(max_length, one.max_length)
        elif type(one) is EosTokenCriteria:
            eos_ids |= set(one.eos_token_id.flatten().tolist())
        elif type(one) is StopStringCriteria:
            stops += one.stop_strings
        else:
            raise CapabilityError(
                f"custom_generate cannot apply the stopping criteria {type(one).__name__}",
                "use max_new_tokens, eos_token_id, or custom_generate(pipe, tokenizer=tokenizer, stop_strings=[...])",
            )
    return _Ends(max_length, frozenset(eos_ids), tuple(dict.fromkeys(stops)))


def _require_tokenizer(pipe: Pipeline, ends: _Ends, tokenizer: Any) -> None:
    readers = [to_text(stage) for stage in pipe.stages if stage.reads_text]
    readers += [f"the stop string {stop!r}" for stop in ends.stop_strings]
    if readers and tokenizer is None:
        message = f"{readers[0]} reads text, and generate passes no tokenizer on"
        raise CapabilityError(message, "write custom_generate(pipe, tokenizer=tokenizer)")


def _refuse(model_kwargs: dict[str, Any], generation_config: Any) -> None:
    if model_kwargs.get("inputs_embeds") is not None:
        raise CapabilityError("custom_generate takes no inputs_embeds", "pass input_ids")
    if (generation_config.num_beams or 1) > 1:
        message = f"num_beams={generation_config.num_beams}: how tokens are chosen is the pipeline's alone"
        raise CapabilityError(message, "leave num_beams out, and name a decoder in the pipeline")
    unkept = [name for name in UNKEPT if getattr(generation_config, name, None)]
    if generation_config.return_dict_in_generate and unkept:
        message = f"custom_generate returns sequences alone, not what {', '.join(unkept)} asks for"
        raise CapabilityError(message, "leave it out; Pipeline.run(..., trace=True) keeps records of every token")


def _refuse_several(prompts: int, processors: Any, streamer: Any) -> None:
    """What is meant for one prompt only, or tells prompts apart by their row in the batch."""
    if prompts == 1:
        return
    if streamer is not None:
        raise CapabilityError(f"a streamer takes one prompt, and {prompts} were given", "pass them one by one")
    if "PrefixConstrainedLogitsProcessor" in {type(p).__name__ for p in processors or ()}:
        message = (
            f"prefix_allowed_tokens_fn tells {prompts} prompts apart by their row in the batch, which changes here"
        )
        raise CapabilityError(message, "pass the prompts one by one")


def _unpadded(input_ids: Tensor, mask: Tensor | None) -> list[tuple[int, ...]]:
    """Each row's token ids without its padding."""
    if mask is None:
        return [tuple(row) for row in input_ids.tolist()]
    return [tuple(row[kept].tolist()) for row, kept in zip(input_ids, mask.bool(), strict=True)]


def _processor(
    processors: Any, prompts: Sequence[tuple[int, ...]], length: int, generation_config: Any
) -> LogitsProcessor | None:
    """transformers' processors without the sampling warpers, fed ids that are padded as `generate` pads them."""
    kept = [p for p in processors or () if not type(p).__name__.endswith("Warper")]
    if not kept:
        return None
    pad = generation_config.pad_token_id or 0
    longest_first = sorted(set(prompts), key=len, reverse=True)

    def process(ids: Int[Tensor, "1 length"], scores: Float[Tensor, "1 vocab"]) -> Float[Tensor, "1 vocab"]:
        row = tuple(ids[0].tolist())
        prompt = next((p for p in longest_first if row[: len(p)] == p), row)
        padding = ids.new_full((1, max(length - len(prompt), 0)), pad)
        padded = torch.cat([padding, ids], dim=-1)
        for processor in kept:
            scores = _apply(processor, ids, padded, scores)
        return scores

    return process


def _apply(processor: Any, ids: Tensor, padded: Tensor, scores: Tensor) -> Any:
    """One processor on one sequence. The repetition penalty alone knows the padding of each row of the batch."""
    if not isinstance(getattr(processor, "prompt_ignore_length", None), Tensor):
        return processor(padded, scores)
    alone = copy.copy(processor)
    alone.prompt_ignore_length = None
    return alone(ids, scores)


def _streams_tokens(pipe: Pipeline) -> bool:
    """Whether tokens are final as they are decoded: nothing is searched or voted."""
    return all(stage.kind is Kind.PROMPTING for stage in pipe.strategies)


def _stream(pipe: Pipeline, input_ids: Tensor, streamer: Any) -> OnToken | None:
    if streamer is None:
        return None
    streamer.put(input_ids.cpu())
    if not _streams_tokens(pipe):
        return None
    return lambda ticket, copy, token: streamer.put(torch.tensor([token]))


def _end_stream(pipe: Pipeline, results: list[Result], streamer: Any) -> None:
    if streamer is None:
        return
    if not _streams_tokens(pipe):
        for token in results[0].winner.token_ids:
            streamer.put(torch.tensor([token]))
    streamer.end()


def _output(input_ids: Tensor, results: list[Result], generation_config: Any) -> Any:
    """Prompt and winner of every row, padded on the right."""
    new = [result.winner.token_ids for result in results]
    pad = generation_config.pad_token_id or 0
    padded = torch.full((len(new), max(map(len, new))), pad, dtype=input_ids.dtype)
    for row, ids in enumerate(new):
        padded[row, : len(ids)] = torch.tensor(ids)
    sequences = torch.cat([input_ids, padded.to(input_ids.device)], dim=-1)
    if not generation_config.return_dict_in_generate:
        return sequences
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    return GenerateDecoderOnlyOutput(sequences=sequences)
