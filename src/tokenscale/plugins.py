"""Names of what may stand in a pipeline: the built-in classes, and "path/to/file.py:Name" for everyone else's."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tokenscale.core.errors import PipelineError, TokenscaleError, UnknownNameError, unknown
from tokenscale.core.stage import Kind, Stage
from tokenscale.sequence_level.adaptive_self_consistency import AdaptiveSelfConsistency
from tokenscale.sequence_level.beam_search import BeamSearch
from tokenscale.sequence_level.best_of_n import BestOfN, WeightedBestOfN
from tokenscale.sequence_level.budget_forcing import BudgetForcing
from tokenscale.sequence_level.chain_of_thought import ChainOfThought
from tokenscale.sequence_level.constrained import Constrained
from tokenscale.sequence_level.deepconf import DeepConf
from tokenscale.sequence_level.diverse_beam_search import DiverseBeamSearch
from tokenscale.sequence_level.dvts import DVTS
from tokenscale.sequence_level.early_stopping_self_consistency import EarlyStoppingSelfConsistency
from tokenscale.sequence_level.particle_filter import ParticleFilter
from tokenscale.sequence_level.scorers.function import FunctionScorer
from tokenscale.sequence_level.scorers.judge import LLMJudge
from tokenscale.sequence_level.scorers.log_prob import LogProb
from tokenscale.sequence_level.scorers.reward import ProcessRewardScorer, RewardModelScorer
from tokenscale.sequence_level.scorers.self_certainty import SelfCertainty
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tokenscale.sequence_level.step_beam import StepBeam
from tokenscale.sequence_level.universal_self_consistency import UniversalSelfConsistency
from tokenscale.token_level import aggregators
from tokenscale.token_level.adaptive_roe import AdaptiveRoE
from tokenscale.token_level.contrastive_decoding import ContrastiveDecoding
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.dola import DoLa
from tokenscale.token_level.expert_sample import ExpertSample
from tokenscale.token_level.mc_dropout import MCDropout
from tokenscale.token_level.model_ensemble import ModelEnsemble
from tokenscale.token_level.more_experts import MoreExperts
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.prompt_ensemble import PromptEnsemble
from tokenscale.token_level.roe import RoE
from tokenscale.token_level.scmoe import SCMoE

_REFERENCE = re.compile(r"(?P<path>.+\.py):(?P<name>[A-Za-z_]\w*)", re.DOTALL)
_INTO_A_FILE = "define it at the top level of a file, and name it path/to/file.py:{name}"


def index(classes: Iterable[type[Stage]]) -> dict[str, type[Stage]]:
    """Classes by name. Raises PipelineError where two have one name."""
    named: dict[str, type[Stage]] = {}
    for cls in classes:
        other = named.setdefault(cls.__name__, cls)
        if other is not cls:
            message = f"the name {cls.__name__!r} stands for two classes, of {other.__module__} and {cls.__module__}"
            raise PipelineError(message, "rename one of them")
    return named


BUILT_IN: Mapping[str, type[Stage]] = index(
    (
        *(Plain, RoE, AdaptiveRoE, ExpertSample, SCMoE, MoreExperts, MCDropout, DoLa),
        *(ContrastiveDecoding, PromptEnsemble, ModelEnsemble),
        *(getattr(aggregators, name) for name in aggregators.__all__),
        *(Constrained, Greedy, Sample, BeamSearch, DiverseBeamSearch),
        *(ChainOfThought, BudgetForcing, StepBeam, DVTS, ParticleFilter),
        *(SelfConsistency,),
        *(AdaptiveSelfConsistency, EarlyStoppingSelfConsistency, UniversalSelfConsistency),
        *(BestOfN, WeightedBestOfN, DeepConf),
        *(LogProb, SelfCertainty, FunctionScorer, LLMJudge, RewardModelScorer, ProcessRewardScorer),
    )
)


@dataclass(frozen=True)
class Entry:
    """One line of a listing; `summary` is the first sentence of the class's docstring."""

    name: str
    kind: Kind
    summary: str


def listing() -> list[Entry]:
    """The built-in classes, from the innermost kind to the outermost."""
    entries = [Entry(name, cls.kind, _first_sentence(cls)) for name, cls in BUILT_IN.items()]
    return sorted(entries, key=lambda entry: entry.kind.value)


def _first_sentence(cls: type[Stage]) -> str:
    text = " ".join((cls.__doc__ or "").split())
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]


def lookup(name: str) -> type[Stage]:
    """The class of a built-in name or of a reference "path/to/file.py:Name", relative to the current folder.

    A reference runs the file. Raises UnknownNameError, and PipelineError for a file that cannot be
    loaded or a class that cannot stand in a pipeline.
    """
    if _REFERENCE.fullmatch(name) is None:
        if name not in BUILT_IN:
            raise unknown("strategy", name, BUILT_IN)
        return BUILT_IN[name]
    found = load(name)
    if not (isinstance(found, type) and issubclass(found, Stage)):
        raise PipelineError(f"{name} is not a strategy", "name a class that extends a class of tokenscale")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise PipelineError(f"{name} is abstract", f"define {missing}")
    if "__dataclass_params__" not in vars(found) or not vars(found)["__dataclass_params__"].frozen:
        raise PipelineError(f"{name} is not a frozen dataclass", "put @dataclass(frozen=True) above the class")
    return found


def is_reference(name: str) -> bool:
    """Whether a name has the form "path/to/file.py:Name"."""
    return _REFERENCE.fullmatch(name) is not None


def digest(reference: str) -> str:
    """A hash of the file that "path/to/file.py:Name" names, to tell whether its code changed."""
    path = reference.rpartition(":")[0]
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()


def load(reference: str) -> object:
    """What "path/to/file.py:Name" names; equal references give one object. Raises as `lookup` does."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise PipelineError(f"{reference!r} is not a reference", "write path/to/file.py:Name")
    module = _module(match["path"])
    if not hasattr(module, match["name"]):
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
        raise unknown("name", match["name"], own, match["path"])
    return getattr(module, match["name"])


def _module(path: str) -> ModuleType:
    """The module of a file: the imported one where there is one, so that its classes stay the same."""
    try:
        file = Path(path).resolve()
        exists = file.is_file()
    except (OSError, ValueError, RuntimeError):
        exists = False
    if not exists:
        raise PipelineError(f"there is no file {path!r}", f"give a path relative to {os.curdir!r} or an absolute one")
    for module in list(sys.modules.values()):
        origin = getattr(module, "__dict__", {}).get("__file__")
        if origin and origin.endswith(file.name) and Path(origin).resolve() == file:
            return module
    return _execute(file, path)


def _execute(file: Path, shown: str) -> ModuleType:
    # Dataclasses look their module up by name, so it must be known before it runs.
    name = f"tokenscale_plugin_{file.stem}_{hashlib.blake2b(str(file).encode(), digest_size=6).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        message = f"{shown} cannot be loaded: {type(error).__name__}: {error}"
        raise PipelineError(message, f"run `python {shown}` to see where") from error
    return module


def name_of(thing: object) -> str:
    """The name that `lookup` or `load` turns back into this class or function.

    Raises PipelineError for what is not at the top level of a file.
    """
    name = getattr(thing, "__qualname__", None)
    if not isinstance(name, str):
        raise PipelineError(f"{thing!r:.80} has no text form", _INTO_A_FILE.format(name="NAME"))
    if BUILT_IN.get(name) is thing:
        return name
    module = sys.modules.get(getattr(thing, "__module__", ""))
    file = getattr(module, "__file__", None)
    if file is None or getattr(module, name, None) is not thing or not str(file).endswith(".py"):
        raise PipelineError(f"{name} has no text form", _INTO_A_FILE.format(name=name.rpartition(".")[2]))
    path = Path(file).resolve()
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{name}".replace(os.sep, "/")


def parameters(cls: type[Stage]) -> tuple[str, ...]:
    """A strategy's parameters, in the order in which they may be given without names."""
    return tuple(f.name for f in dataclasses.fields(cls) if f.init)  # type: ignore[arg-type]


def check_parameter(cls: type[Stage], name: str) -> None:
    """Refuses a parameter that a strategy does not have. Raises UnknownNameError."""
    if not parameters(cls):
        message = f"unknown parameter {name!r} in {cls.__name__}"
        raise UnknownNameError(message, f"write {cls.__name__}(), which takes no parameters")
    if name not in parameters(cls):
        raise unknown("parameter", name, parameters(cls), cls.__name__)


def build(cls: type[Stage], arguments: Mapping[str, object]) -> Stage:
    """The strategy with these arguments, all of them named. Raises PipelineError and what the class raises."""
    for name in arguments:
        check_parameter(cls, name)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.init and not has_default and field.name not in arguments:
            given = ", ".join(arguments) or "nothing"
            message = f"{cls.__name__} needs {field.name}, got {given}"
            raise PipelineError(message, f"write {cls.__name__}({field.name}=...)")
    try:
        return cls(**arguments)
    except TokenscaleError:
        raise
    except Exception as error:  # whatever a class of somebody else raises when it is given the wrong thing
        raise PipelineError(f"{cls.__name__}: {error}", f"check its {', '.join(parameters(cls))}") from error
