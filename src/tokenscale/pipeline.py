"""Pipelines: stages in the order of `grammar.py`, checked when built, printed as what parses, and run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from tokenscale import dsl, spec
from tokenscale.asked import prompts_of, run_options
from tokenscale.core.admission import Bound, Schedule, check_bounds
from tokenscale.core.backend import OnToken
from tokenscale.core.constraint import Constraint
from tokenscale.core.data import Result
from tokenscale.core.decode import LocalBackend
from tokenscale.core.errors import ArgumentError, CapabilityError, PipelineError
from tokenscale.core.model import LanguageModel, set_opener
from tokenscale.core.opening import check_free
from tokenscale.core.permitted import LogitsProcessor
from tokenscale.core.prompt import Prompt
from tokenscale.core.reward import RewardModel, set_reward_opener
from tokenscale.core.run import OnResult, run_problems, solve_problems
from tokenscale.core.score import set_plain
from tokenscale.core.stage import Composable, Kind, Stage, require_stage, set_composer
from tokenscale.core.strategy import Aggregator, Decoder, SequenceStrategy, TokenProposer
from tokenscale.core.streaming import Event, TextStream, events
from tokenscale.grammar import check_chance, ordered
from tokenscale.notes import alike, unmet
from tokenscale.sequence_level.answers import extract
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.plain import Plain

Chat = Sequence[Mapping[str, str]]


@dataclass(frozen=True, init=False, repr=False)
class Pipeline(Composable):
    """Stages in canonical order; equal where their stages are, and a part of other pipelines.

    `Pipeline(a, b)`, `a | b` and `Pipeline.parse("a | b")` are the same. Pipelines among the stages
    are replaced by their stages. Raises PipelineError for what cannot be meant.
    """

    stages: tuple[Stage, ...]

    def __init__(self, *stages: Stage | Pipeline) -> None:
        object.__setattr__(self, "stages", ordered(_flattened(stages)))
        self.proposer.fits(self.aggregator, self.decoder)
        if self.constraint is not None:
            check_free(self.proposer, f"constraints such as {dsl.to_text(self.constraint)}")
        check_chance(self.stages, self.proposer, self.decoder)

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """The pipeline of a text such as "RoE(n=4) | SelfConsistency(k=5)" (see `dsl`). Raises PipelineError."""
        if not isinstance(text, str):
            raise PipelineError(f"parse reads text, got {text!r:.80}", 'write Pipeline.parse("RoE(n=4)")')
        return cls(*dsl.parse(text))

    @classmethod
    def from_spec(cls, data: object) -> Pipeline:
        """The pipeline of what `to_spec` returned (see `spec`). Raises PipelineError."""
        return cls(*spec.read(data))

    def to_spec(self) -> list[dict[str, object]]:
        """Plain values for JSON and YAML: one mapping a stage, `{"RoE": {"n": 4, "tau": 0.3, ...}}`.

        All parameters are written, defaults included, so that a stored spec keeps its meaning.
        Raises PipelineError for values without a text form.
        """
        return spec.write(self.stages)

    def __repr__(self) -> str:
        return " | ".join(map(dsl.to_text, self.stages))

    def __len__(self) -> int:
        return len(self.stages)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    @overload
    def __getitem__(self, index: int) -> Stage: ...

    @overload
    def __getitem__(self, index: slice) -> Pipeline: ...

    def __getitem__(self, index: int | slice) -> Stage | Pipeline:
        part = self.stages[index]
        return Pipeline(*part) if isinstance(part, tuple) else part

    @property
    def proposer(self) -> TokenProposer:
        """The proposer; the model itself where none is named."""
        return next((s for s in self.stages if isinstance(s, TokenProposer)), Plain())

    @property
    def aggregator(self) -> Aggregator:
        """The aggregator; the proposer's own where none is named."""
        named = next((s for s in self.stages if isinstance(s, Aggregator)), None)
        return named or self.proposer.default_aggregator

    @property
    def constraint(self) -> Constraint | None:
        """What the text must look like, where a stage says so."""
        return next((s for s in self.stages if isinstance(s, Constraint)), None)

    @property
    def decoder(self) -> Decoder:
        """The decoder. Where none is named: sampling under a search or a choice, else greedy."""
        named = next((s for s in self.stages if isinstance(s, Decoder)), None)
        sampling = any(s.kind in (Kind.SEARCH, Kind.CHOOSING) for s in self.stages)
        return named or (Sample(temperature=0.7) if sampling else Greedy())

    @property
    def strategies(self) -> tuple[SequenceStrategy, ...]:
        """The sequence-level stages, inner to outer."""
        return tuple(s for s in self.stages if isinstance(s, SequenceStrategy))

    def resolved(self) -> Pipeline:
        """This pipeline with its defaults written out."""
        constraints = [self.constraint] if self.constraint is not None else []
        return Pipeline(self.proposer, self.aggregator, *constraints, self.decoder, *self.strategies)

    def check(self, lm: LanguageModel) -> None:
        """Raises CapabilityError, or ArgumentError for parameters that do not fit this model."""
        if not isinstance(lm, LanguageModel):
            hint = 'pass ts.load("demo"), or ts.wrap(model, tokenizer) for a model in memory'
            raise ArgumentError(f"a pipeline runs on a model of tokenscale, got {lm!r:.80}", hint)
        self.proposer.check(lm)
        missing = ", ".join(sorted(self.proposer.needs - lm.capabilities))
        if missing:
            message = f"{dsl.to_text(self.proposer)} needs {missing}, which {lm.name} lacks"
            raise CapabilityError(message, "use another proposer, or a model that offers it")
        reader = next((s for s in self.stages if s.reads_text), None)
        if reader is not None and lm.tokenizer is None:
            message = f"{dsl.to_text(reader)} reads text, and {lm.name} has no tokenizer"
            raise CapabilityError(message, "pass one: ts.wrap(model, tokenizer)")

    def run(
        self,
        lm: LanguageModel,
        prompts: Sequence[Prompt | str | Chat],
        *,
        seed: int = 0,
        max_new_tokens: int = 256,
        stop_strings: Sequence[str] = (),
        batch_size: Bound = "auto",
        max_batch_tokens: Bound = "auto",
        trace: bool = False,
        progress: Callable[[int, int], None] | None = None,
        on_result: OnResult | None = None,
        processor: LogitsProcessor | None = None,
        on_token: OnToken | None = None,
        on_schedule: Callable[[Schedule], None] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Result]:
        """Answers every prompt (a string, chat messages, or a Prompt); results in their order.

        Equal seeds give equal draws, whatever `batch_size` (candidates decoded at once; "auto": 64) and whatever
        else is asked. `max_batch_tokens` bounds the tokens that their caches may come to hold ("auto": by free
        memory); where memory runs out all the same, both are halved with a TokenscaleWarning, and nothing is
        lost. `on_schedule(schedule)` is called at the end, whatever ended the run. A candidate ends with the
        model's end token, a stop string, or `max_new_tokens`.
        `trace` keeps per-token records. As problems end, in whatever order, `on_result(number of the
        prompt, result)` and `progress(done, total)` are called. `processor` (transformers'
        LogitsProcessorList fits) is applied once per token, to the aggregate's log-probabilities;
        `on_token(ask, copy, token)` is called as tokens are decided. `chat_template_kwargs`, such as
        {"enable_thinking": False}, go to the tokenizer's chat template.
        Raises ArgumentError, PromptError and CapabilityError before anything is decoded, and OutOfMemoryError.
        """
        asked = prompts_of(prompts, chat_template_kwargs)
        options = run_options("run", seed, max_new_tokens, stop_strings)
        bounds = batch_size, max_batch_tokens
        backend = self._backend(lm, "run", *bounds, trace=trace, processor=processor, on_token=on_token)
        tell = on_result or (lambda index, result: None)
        try:
            results = run_problems(
                lm,
                backend,
                self.strategies,
                asked,
                progress=progress,
                on_result=lambda index, result: tell(index, self.with_notes(result, lm)),
                **options,
            )
        finally:
            if on_schedule is not None:
                on_schedule(backend.schedule)
        return [self.with_notes(result, lm) for result in results]

    def stream(
        self,
        lm: LanguageModel,
        prompt: Prompt | str | Chat,
        *,
        seed: int = 0,
        max_new_tokens: int = 256,
        stop_strings: Sequence[str] = (),
        batch_size: Bound = "auto",
        max_batch_tokens: Bound = "auto",
        trace: bool = False,
        processor: LogitsProcessor | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Generator[Event, None, None]:
        """Answers one prompt as `run` does, and yields what is decided as it is decided; the Result comes last.

        Pieces of the answer's text where the first text is the answer (no search and no choice, one beam),
        token by token; together they are `result.text`. Else Progress as searches end, and one Piece. Closing
        the generator cancels what is outstanding. Costs what `run` costs, and raises what it raises, before
        the first event.
        """
        asked = prompts_of([prompt], chat_template_kwargs)
        options = run_options("stream", seed, max_new_tokens, stop_strings)
        self.check(lm)
        live = self.decoder.width == 1 and all(s.streams for s in self.strategies) and lm.tokenizer is not None
        text = TextStream(lm, options["stop_strings"], lm.encode(asked[0]), live)
        on_token = (lambda ticket, copy, token: text.add(token)) if live else None
        bounds = batch_size, max_batch_tokens
        backend = self._backend(lm, "stream", *bounds, trace=trace, processor=processor, on_token=on_token)
        steps = solve_problems(lm, backend, self.strategies, asked, **options)
        return events(steps, backend, text, lambda result: self.with_notes(result, lm))

    def _backend(
        self, lm: LanguageModel, owner: str, batch_size: Bound, max_batch_tokens: Bound, **options: Any
    ) -> LocalBackend:
        """What decodes this pipeline's asks, once all is checked."""
        check_bounds(owner, batch_size, max_batch_tokens)
        self.check(lm)
        return LocalBackend(
            lm,
            self.proposer,
            self.aggregator,
            self.decoder,
            constraint=self.constraint,
            signals=frozenset().union(*(stage.signals for stage in self.stages)),
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            **options,
        )

    def with_notes(self, result: Result, lm: LanguageModel) -> Result:
        """The result with the token level's notes and, where no stage chose or found an answer, the text's number."""
        notes = self.proposer.notes(result.routing)
        if lm.bill_note:
            notes += (f"the cost of {lm.name} is an estimate: {lm.bill_note}. `tokenscale inspect` shows both counts.",)
        notes += alike(result, self.proposer, self.decoder) + unmet(result, self.constraint)
        found = result.answer is not None or any(stage.kind is Kind.CHOOSING for stage in self.strategies)
        answer = result.answer if found else extract(result.text)
        return replace(result, answer=answer, notes=(*result.notes, *notes))


def _open_model(reference: str) -> LanguageModel:
    from tokenscale.models.hf import opened  # it loads transformers

    return opened(reference)


def _open_reward_model(reference: str) -> RewardModel:
    from tokenscale.models.reward import opened  # it loads transformers

    return opened(reference)


set_opener(_open_model)
set_reward_opener(_open_reward_model)
set_composer(lambda inner, outer: Pipeline(inner, outer))
set_plain(Plain)


def _flattened(stages: Iterable[object]) -> list[Stage]:
    flat: list[Stage] = []
    for stage in stages:
        if isinstance(stage, str):
            raise PipelineError(f"{stage!r:.80} is text, not a stage", f"write Pipeline.parse({stage!r:.80})")
        flat.extend(stage.stages if isinstance(stage, Pipeline) else [require_stage(stage)])
    return flat
