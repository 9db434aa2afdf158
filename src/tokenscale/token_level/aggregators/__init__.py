"""Ways to make one distribution of several rows, one idea per file."""

from tokenscale.token_level.aggregators.confidence import ConfidenceWeighted, EntropyWeighted
from tokenscale.token_level.aggregators.contrast import ContrastRows, DoLaContrast
from tokenscale.token_level.aggregators.means import LogSumExpLogits, MeanLogit, MeanProbability
from tokenscale.token_level.aggregators.order import MaxProbability, MedianProbability, MinProbability
from tokenscale.token_level.aggregators.votes import TokenVote
from tokenscale.token_level.aggregators.weighted import CleanAnchored, Weighted

__all__ = [
    "CleanAnchored",
    "ConfidenceWeighted",
    "ContrastRows",
    "DoLaContrast",
    "EntropyWeighted",
    "LogSumExpLogits",
    "MaxProbability",
    "MeanLogit",
    "MeanProbability",
    "MedianProbability",
    "MinProbability",
    "TokenVote",
    "Weighted",
]
