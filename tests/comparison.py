"""A small comparison: a recipe, and a model that answers its problems within a second."""

from tokenscale.models.toy import SPELLING, ToyModel

RECIPE = """\
version: 1
question: Does it run?
models: {toy: {path: toy}}
tasks: {arithmetic: {limit: 5}}
generation: {max_new_tokens: 4}
seeds: [0]
arms:
  greedy: Greedy()
  roe: RoE(n=2, tau=1.0, clean_layers=0)
  vote: SelfConsistency(k=2)
contrasts: [[vote, greedy]]
"""


def small_toy(*_, **__):
    """The same model, whatever is asked for; it can spell every packaged problem."""
    return ToyModel(spelling=SPELLING + "£€", moe_layers=1, experts=4, width=4)
