"""Composable decoding strategies for sequence and token scaling.

    lm = tokenscale.load("demo")
    pipe = tokenscale.Pipeline(tokenscale.RoE(n=4), tokenscale.SelfConsistency(k=5))
    [result] = pipe.run(lm, ["Q: ..."], seed=0)

Names are imported when they are first used, so that `import tokenscale` is quick and loads neither
transformers nor outlines.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenscale.core.admission import Schedule as Schedule
    from tokenscale.core.backend import Backend as Backend
    from tokenscale.core.backend import Completion as Completion
    from tokenscale.core.constraint import Constraint as Constraint
    from tokenscale.core.constraint import Guide as Guide
    from tokenscale.core.cost import Cached as Cached
    from tokenscale.core.cost import Cost as Cost
    from tokenscale.core.cost import Prefill as Prefill
    from tokenscale.core.cost import Usage as Usage
    from tokenscale.core.data import Ask as Ask
    from tokenscale.core.data import Candidate as Candidate
    from tokenscale.core.data import Result as Result
    from tokenscale.core.data import RoutingStats as RoutingStats
    from tokenscale.core.data import Trace as Trace
    from tokenscale.core.errors import ArgumentError as ArgumentError
    from tokenscale.core.errors import CapabilityError as CapabilityError
    from tokenscale.core.errors import ModelError as ModelError
    from tokenscale.core.errors import OutOfMemoryError as OutOfMemoryError
    from tokenscale.core.errors import PipelineError as PipelineError
    from tokenscale.core.errors import PromptError as PromptError
    from tokenscale.core.errors import RecipeError as RecipeError
    from tokenscale.core.errors import RoutingError as RoutingError
    from tokenscale.core.errors import TokenscaleError as TokenscaleError
    from tokenscale.core.errors import TokenscaleWarning as TokenscaleWarning
    from tokenscale.core.errors import UnknownNameError as UnknownNameError
    from tokenscale.core.model import ROUTING_NOISE as ROUTING_NOISE
    from tokenscale.core.model import Holding as Holding
    from tokenscale.core.model import LanguageModel as LanguageModel
    from tokenscale.core.model import State as State
    from tokenscale.core.noise import Stream as Stream
    from tokenscale.core.plan import Dropout as Dropout
    from tokenscale.core.plan import Routing as Routing
    from tokenscale.core.plan import RowPlan as RowPlan
    from tokenscale.core.prompt import Prompt as Prompt
    from tokenscale.core.reward import Grade as Grade
    from tokenscale.core.reward import Graded as Graded
    from tokenscale.core.reward import RewardModel as RewardModel
    from tokenscale.core.score import Chosen as Chosen
    from tokenscale.core.score import Score as Score
    from tokenscale.core.score import choose_option as choose_option
    from tokenscale.core.scorer import Scorer as Scorer
    from tokenscale.core.shape import ModelShape as ModelShape
    from tokenscale.core.signals import StopRule as StopRule
    from tokenscale.core.stage import Kind as Kind
    from tokenscale.core.stage import Stage as Stage
    from tokenscale.core.starting import all_valid as all_valid
    from tokenscale.core.starting import start_all as start_all
    from tokenscale.core.step import Step as Step
    from tokenscale.core.step import Work as Work
    from tokenscale.core.strategy import Aggregator as Aggregator
    from tokenscale.core.strategy import Asks as Asks
    from tokenscale.core.strategy import Choice as Choice
    from tokenscale.core.strategy import Decoder as Decoder
    from tokenscale.core.strategy import Proposals as Proposals
    from tokenscale.core.strategy import Rows as Rows
    from tokenscale.core.strategy import SequenceStrategy as SequenceStrategy
    from tokenscale.core.strategy import TokenProposer as TokenProposer
    from tokenscale.core.streaming import Piece as Piece
    from tokenscale.core.streaming import Progress as Progress
    from tokenscale.integrations.transformers import custom_generate as custom_generate
    from tokenscale.models.hf import HFModel as HFModel
    from tokenscale.models.hf import load as load
    from tokenscale.models.hf import wrap as wrap
    from tokenscale.models.reward import load_reward as load_reward
    from tokenscale.models.toy import ToyModel as ToyModel
    from tokenscale.pipeline import Pipeline as Pipeline
    from tokenscale.sequence_level.adaptive_self_consistency import AdaptiveSelfConsistency as AdaptiveSelfConsistency
    from tokenscale.sequence_level.beam_search import BeamSearch as BeamSearch
    from tokenscale.sequence_level.best_of_n import BestOfN as BestOfN
    from tokenscale.sequence_level.best_of_n import WeightedBestOfN as WeightedBestOfN
    from tokenscale.sequence_level.budget_forcing import BudgetForcing as BudgetForcing
    from tokenscale.sequence_level.chain_of_thought import ChainOfThought as ChainOfThought
    from tokenscale.sequence_level.constrained import Constrained as Constrained
    from tokenscale.sequence_level.deepconf import DeepConf as DeepConf
    from tokenscale.sequence_level.diverse_beam_search import DiverseBeamSearch as DiverseBeamSearch
    from tokenscale.sequence_level.dvts import DVTS as DVTS
    from tokenscale.sequence_level.early_stopping_self_consistency import (
        EarlyStoppingSelfConsistency as EarlyStoppingSelfConsistency,
    )
    from tokenscale.sequence_level.particle_filter import ParticleFilter as ParticleFilter
    from tokenscale.sequence_level.scorers.function import FunctionScorer as FunctionScorer
    from tokenscale.sequence_level.scorers.judge import LLMJudge as LLMJudge
    from tokenscale.sequence_level.scorers.log_prob import LogProb as LogProb
    from tokenscale.sequence_level.scorers.reward import ProcessRewardScorer as ProcessRewardScorer
    from tokenscale.sequence_level.scorers.reward import RewardModelScorer as RewardModelScorer
    from tokenscale.sequence_level.scorers.self_certainty import SelfCertainty as SelfCertainty
    from tokenscale.sequence_level.self_consistency import SelfConsistency as SelfConsistency
    from tokenscale.sequence_level.step_beam import StepBeam as StepBeam
    from tokenscale.sequence_level.universal_self_consistency import (
        UniversalSelfConsistency as UniversalSelfConsistency,
    )
    from tokenscale.token_level.adaptive_roe import AdaptiveRoE as AdaptiveRoE
    from tokenscale.token_level.aggregators import CleanAnchored as CleanAnchored
    from tokenscale.token_level.aggregators import ConfidenceWeighted as ConfidenceWeighted
    from tokenscale.token_level.aggregators import ContrastRows as ContrastRows
    from tokenscale.token_level.aggregators import DoLaContrast as DoLaContrast
    from tokenscale.token_level.aggregators import EntropyWeighted as EntropyWeighted
    from tokenscale.token_level.aggregators import LogSumExpLogits as LogSumExpLogits
    from tokenscale.token_level.aggregators import MaxProbability as MaxProbability
    from tokenscale.token_level.aggregators import MeanLogit as MeanLogit
    from tokenscale.token_level.aggregators import MeanProbability as MeanProbability
    from tokenscale.token_level.aggregators import MedianProbability as MedianProbability
    from tokenscale.token_level.aggregators import MinProbability as MinProbability
    from tokenscale.token_level.aggregators import TokenVote as TokenVote
    from tokenscale.token_level.aggregators import Weighted as Weighted
    from tokenscale.token_level.contrastive_decoding import ContrastiveDecoding as ContrastiveDecoding
    from tokenscale.token_level.decoders import Greedy as Greedy
    from tokenscale.token_level.decoders import Sample as Sample
    from tokenscale.token_level.dola import DoLa as DoLa
    from tokenscale.token_level.expert_sample import ExpertSample as ExpertSample
    from tokenscale.token_level.mc_dropout import MCDropout as MCDropout
    from tokenscale.token_level.model_ensemble import ModelEnsemble as ModelEnsemble
    from tokenscale.token_level.more_experts import MoreExperts as MoreExperts
    from tokenscale.token_level.plain import Plain as Plain
    from tokenscale.token_level.prompt_ensemble import PromptEnsemble as PromptEnsemble
    from tokenscale.token_level.roe import RoE as RoE
    from tokenscale.token_level.scmoe import SCMoE as SCMoE

__version__ = "0.1.0"

_HOMES = {
    "core.admission": "Schedule",
    "core.backend": "Backend Completion",
    "core.constraint": "Constraint Guide",
    "core.cost": "Cached Cost Prefill Usage",
    "core.data": "Ask Candidate Result RoutingStats Trace",
    "core.errors": "ArgumentError CapabilityError ModelError OutOfMemoryError PipelineError PromptError RecipeError "
    "RoutingError TokenscaleError TokenscaleWarning UnknownNameError",
    "core.model": "Holding LanguageModel ROUTING_NOISE State",
    "core.noise": "Stream",
    "core.plan": "Dropout Routing RowPlan",
    "core.prompt": "Prompt",
    "core.reward": "Grade Graded RewardModel",
    "core.score": "Chosen Score choose_option",
    "core.scorer": "Scorer",
    "core.shape": "ModelShape",
    "core.signals": "StopRule",
    "core.stage": "Kind Stage",
    "core.starting": "all_valid start_all",
    "core.step": "Step Work",
    "core.strategy": "Aggregator Asks Choice Decoder Proposals Rows SequenceStrategy TokenProposer",
    "core.streaming": "Piece Progress",
    "integrations.transformers": "custom_generate",
    "models.hf": "HFModel load wrap",
    "models.reward": "load_reward",
    "models.toy": "ToyModel",
    "pipeline": "Pipeline",
    "sequence_level.adaptive_self_consistency": "AdaptiveSelfConsistency",
    "sequence_level.beam_search": "BeamSearch",
    "sequence_level.best_of_n": "BestOfN WeightedBestOfN",
    "sequence_level.budget_forcing": "BudgetForcing",
    "sequence_level.chain_of_thought": "ChainOfThought",
    "sequence_level.constrained": "Constrained",
    "sequence_level.deepconf": "DeepConf",
    "sequence_level.diverse_beam_search": "DiverseBeamSearch",
    "sequence_level.dvts": "DVTS",
    "sequence_level.early_stopping_self_consistency": "EarlyStoppingSelfConsistency",
    "sequence_level.particle_filter": "ParticleFilter",
    "sequence_level.scorers.function": "FunctionScorer",
    "sequence_level.scorers.judge": "LLMJudge",
    "sequence_level.scorers.log_prob": "LogProb",
    "sequence_level.scorers.reward": "ProcessRewardScorer RewardModelScorer",
    "sequence_level.scorers.self_certainty": "SelfCertainty",
    "sequence_level.self_consistency": "SelfConsistency",
    "sequence_level.step_beam": "StepBeam",
    "sequence_level.universal_self_consistency": "UniversalSelfConsistency",
    "token_level.adaptive_roe": "AdaptiveRoE",
    "token_level.aggregators": "CleanAnchored ConfidenceWeighted ContrastRows DoLaContrast EntropyWeighted "
    "LogSumExpLogits MaxProbability MeanLogit MeanProbability MedianProbability MinProbability TokenVote Weighted",
    "token_level.contrastive_decoding": "ContrastiveDecoding",
    "token_level.decoders": "Greedy Sample",
    "token_level.dola": "DoLa",
    "token_level.expert_sample": "ExpertSample",
    "token_level.mc_dropout": "MCDropout",
    "token_level.model_ensemble": "ModelEnsemble",
    "token_level.more_experts": "MoreExperts",
    "token_level.plain": "Plain",
    "token_level.prompt_ensemble": "PromptEnsemble",
    "token_level.roe": "RoE",
    "token_level.scmoe": "SCMoE",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = [*sorted(_HOME_OF), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"tokenscale has no {name!r}; known: {', '.join(sorted(_HOME_OF))}")
    importlib.import_module("tokenscale.pipeline")  # it says what `|` between two stages makes
    value = getattr(importlib.import_module(f"tokenscale.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
