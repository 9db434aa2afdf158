"""The suite for whole pipelines: what `run` and `stream` promise, on toy models whose every number is exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tokenscale.core.backend import Completion
from tokenscale.core.cost import Cost
from tokenscale.core.data import Ask, Candidate, Result
from tokenscale.core.decode import LocalBackend
from tokenscale.core.errors import PromptError
from tokenscale.core.ledger import decode_cost
from tokenscale.core.model import LanguageModel
from tokenscale.core.prompt import Prompt
from tokenscale.core.streaming import Piece
from tokenscale.models.toy import WORDS, ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.testing.expect import expect

QUESTIONS = ("Q: 1 + 1?\nA:", "and so", "Q: 1 + 1?\nA:")
STOP = "so 7"  # begins in one token of the toy model and ends in another
CHARACTERS = ("é", "数", "½", " ", "\n", "\U0001f9ee", *"0123456789")
MOST = 10


def check_runs(
    pipeline: Pipeline,
    *,
    lm: Callable[[], LanguageModel] = ToyModel,
    max_new_tokens: int = MOST,
    other_vocabularies: bool = True,
) -> None:
    """What a pipeline's results promise, whatever its strategies. Raises AssertionError.

    Equal seeds give equal results; neither the batch nor its size nor the other prompts change one; the bill's
    tokens and rows are those that were decoded; streams end with what `run` returns; and the usual edges: an
    empty prompt, one that fills the context, a stop string across tokens, one token, a text that ends at once,
    characters of several bytes. `other_vocabularies` False is for a pipeline that names a second model, which
    must have the vocabulary of the first. Costs some twenty runs of a few tokens.
    """
    model = lm()
    together = _run(pipeline, model, QUESTIONS, max_new_tokens)
    _check_repeats(pipeline, model, together, max_new_tokens)
    for result in together:
        _check_result(result)
    _check_bill(pipeline, model, max_new_tokens)
    _check_stream(pipeline, model, max_new_tokens)
    _check_edges(pipeline, model, other_vocabularies)


def _keyed(questions: Sequence[str]) -> list[Prompt]:
    return [Prompt(text=text, key=f"{text}{number}") for number, text in enumerate(questions)]


def _run(pipeline: Pipeline, lm: LanguageModel, questions: Sequence[str], most: int) -> list[Result]:
    return pipeline.run(lm, _keyed(questions), seed=3, max_new_tokens=most, batch_size=16)


def _check_repeats(pipeline: Pipeline, lm: LanguageModel, together: list[Result], most: int) -> None:
    expect(_run(pipeline, lm, QUESTIONS, most) == together, "equal seeds give equal results")
    wanted, prompts = [_plain(result) for result in together], _keyed(QUESTIONS)
    narrow = pipeline.run(lm, prompts[::-1], seed=3, max_new_tokens=most, batch_size=2)[::-1]
    expect([_plain(r) for r in narrow] == wanted, "batch size and order change no result, its cost included")
    alone = [pipeline.run(lm, [prompt], seed=3, max_new_tokens=most)[0] for prompt in prompts]
    expect([_plain(r) for r in alone] == wanted, "other prompts change no result, its cost included")


def _plain(result: Result) -> Result:
    """The result with a reward model's scores in four places: such a model computes in float32, in batches."""
    return replace(result, winner=_rounded(result.winner), candidates=tuple(map(_rounded, result.candidates)))


def _rounded(candidate: Candidate) -> Candidate:
    score = None if candidate.score is None else round(candidate.score, 4)
    return replace(
        candidate,
        score=score,
        step_scores=tuple(round(step, 4) for step in candidate.step_scores),
        votes=tuple((answer, round(weight, 4)) for answer, weight in candidate.votes),
        members=tuple(map(_rounded, candidate.members)),
    )


def _check_result(result: Result) -> None:
    expect(bool(result.candidates), "there is a candidate")
    expect(result.text == result.winner.text, "the text is the winner's")
    texts = {candidate.text for candidate in result.candidates}
    expect(result.text in texts, "the winner is one of the candidates")
    for candidate in result.candidates:
        expect(len(candidate.log_probs) == len(candidate.token_ids), "one log-probability a token")
        expect(all(lp <= 1e-9 for lp in candidate.log_probs), "log-probabilities are not positive")
    expect(result.cost.new_tokens > 0, "tokens are billed")


class _Recording(LocalBackend):
    """A backend that keeps what it served."""

    done: list[Completion]

    def submit(self, ask: Ask) -> int:
        self.done = getattr(self, "done", [])
        return super().submit(ask)

    def tick(self) -> list[Completion]:
        completions = super().tick()
        self.done += completions
        return completions


def _check_bill(pipeline: Pipeline, lm: LanguageModel, most: int) -> None:
    """Tokens, rows and products of a problem are the sums over everything that was decoded for it."""
    from tokenscale.core.run import run_problems

    backend = _Recording(
        lm,
        pipeline.proposer,
        pipeline.aggregator,
        pipeline.decoder,
        batch_size=4,
        constraint=pipeline.constraint,
        signals=frozenset().union(*(stage.signals for stage in pipeline.stages)),
    )
    [result] = run_problems(lm, backend, pipeline.strategies, _keyed(QUESTIONS[:1]), seed=3, max_new_tokens=most)
    decoded = Cost.total(decode_cost(usage) for completion in backend.done for usage in completion.usages)
    expect(result.cost.new_tokens >= decoded.new_tokens, "all decoded tokens are billed")
    expect(result.cost.rows >= decoded.rows, "all decoded rows are billed")
    expect(result.cost.flops >= decoded.flops, "all decoded products are billed")
    expect(result.cost.bytes > 0 and result.cost.sequential_steps > 0, "bytes and steps are billed")
    if not _has_reward_model(pipeline):
        expect(result.cost.new_tokens == decoded.new_tokens, "no token is billed twice")
        expect(result.cost.rows == decoded.rows, "no row is billed twice")
    dearest = max(candidate.cost.new_tokens for candidate in result.candidates)
    expect(dearest <= result.cost.new_tokens, "a candidate costs no more than its problem")


def _has_reward_model(pipeline: Pipeline) -> bool:
    return any(hasattr(getattr(stage, "scorer", None), "model") for stage in pipeline.stages)


def _check_stream(pipeline: Pipeline, lm: LanguageModel, most: int) -> None:
    prompt = _keyed(QUESTIONS[:1])[0]
    [wanted] = pipeline.run(lm, [prompt], seed=3, max_new_tokens=most)
    *events, result = pipeline.stream(lm, prompt, seed=3, max_new_tokens=most)
    expect(result == wanted, "a stream ends with what run returns")
    expect("".join(e.text for e in events if isinstance(e, Piece)) == wanted.text, "its pieces are the text")
    stream = pipeline.stream(lm, prompt, seed=3, max_new_tokens=most)
    next(stream)
    stream.close()


def _check_edges(pipeline: Pipeline, lm: LanguageModel, other_vocabularies: bool) -> None:
    [empty] = pipeline.run(lm, [""], max_new_tokens=2)
    expect(bool(empty.candidates), "an empty prompt is the begin-of-sequence token")
    _check_too_long(pipeline)
    [short] = pipeline.run(lm, ["Q:"], max_new_tokens=1)
    expect(bool(short.candidates), "one token is an answer")
    for result in pipeline.run(lm, QUESTIONS, max_new_tokens=MOST, stop_strings=[STOP, "\n"]):
        expect(STOP not in result.text, "a stop string across tokens ends the text before it")
    if pipeline.constraint is None:
        silent = ToyModel(suppressed_ids=range(1, 1 + len(WORDS)))
        [result] = pipeline.run(silent, ["Q:"], max_new_tokens=8)
        digits = any(character.isdigit() for c in result.candidates for character in c.text)
        expect(not digits, "a text may end at once")
    if other_vocabularies:
        [result] = pipeline.run(ToyModel(CHARACTERS, context_length=4096), ["½ 数é:"], max_new_tokens=6)
        expect("\ufffd" not in result.text, "characters of several bytes stay whole")


def _check_too_long(pipeline: Pipeline) -> None:
    small = ToyModel(context_length=24)
    try:
        pipeline.run(small, ["7" * 24], max_new_tokens=2)
    except PromptError as error:
        expect("24 tokens" in error.message and bool(error.hint), "the error says how long the prompt is, and the fix")
    else:
        raise AssertionError("a prompt that fills the context is refused")
