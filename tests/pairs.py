"""Every proposer and every other part, an example each: what the grids of pairs are made of."""

from __future__ import annotations

PROPOSERS = {
    "Plain": "Plain()",
    "RoE": "RoE(n=3, tau=1.0)",
    "RoE, private caches": 'RoE(n=3, tau=1.0, cache="private")',
    "AdaptiveRoE": "AdaptiveRoE(n=4, tau=1.0)",
    "AdaptiveRoE, gated": "AdaptiveRoE(n=4, tau=1.0, exact=False, threshold=0.5)",
    "ExpertSample": "ExpertSample(keep_head=1)",
    "SCMoE": "SCMoE()",
    "MoreExperts": "MoreExperts(k=3)",
    "MCDropout": "MCDropout(n=3)",
    "DoLa": "DoLa()",
    "ContrastiveDecoding": 'ContrastiveDecoding(amateur="OTHER")',
    "PromptEnsemble": 'PromptEnsemble(templates=("{prompt}", "So: {prompt}"))',
    "ModelEnsemble": 'ModelEnsemble(models=("OTHER",))',
}
SAMPLED = {
    "Sample": "Sample(temperature=1.0, top_k=9, top_p=0.95, min_p=0.01)",
    "SelfConsistency": "SelfConsistency(k=3)",
    "SelfConsistency, weighted": 'SelfConsistency(k=3, weight="confidence")',
    "AdaptiveSelfConsistency": "AdaptiveSelfConsistency(max_k=4)",
    "EarlyStoppingSelfConsistency": "EarlyStoppingSelfConsistency(window=2, max_k=4)",
    "UniversalSelfConsistency": "UniversalSelfConsistency(k=2)",
    "BestOfN": "BestOfN(n=3)",
    "BestOfN, certainty": "BestOfN(n=3, scorer=SelfCertainty())",
    "BestOfN, judge": "BestOfN(n=2, scorer=LLMJudge(max_new_tokens=2))",
    "WeightedBestOfN": "WeightedBestOfN(n=3, scorer=SelfCertainty())",
    "DeepConf": "DeepConf(k=4, keep=0.5, window=4)",
    "DeepConf, online": "DeepConf(k=4, keep=0.5, window=4, online=True, warmup=2)",
    "BestOfN, reward model": 'BestOfN(n=2, scorer=RewardModelScorer(model="demo-verifier"))',
    "WeightedBestOfN, steps": 'WeightedBestOfN(n=2, scorer=ProcessRewardScorer(model="demo-verifier", steps="."))',
    "StepBeam": 'StepBeam(width=2, expand=2, scorer=LogProb(), step=" ")',
    "DVTS": 'DVTS(subtrees=2, expand=2, scorer=SelfCertainty(), step=" ")',
    "ParticleFilter": 'ParticleFilter(particles=3, scorer=LogProb(), step=" ")',
    "vote of step searches": 'StepBeam(width=2, expand=2, scorer=LogProb(), step=" ") | SelfConsistency(k=2)',
    "vote of best-of-n": "BestOfN(n=2) | SelfConsistency(k=2)",
}
BEAMS = {
    "BeamSearch": "BeamSearch(width=3, num_return=2)",
    "DiverseBeamSearch": "DiverseBeamSearch(width=4, groups=2, num_return=2)",
    "vote over beams": "BeamSearch(width=3, num_return=3) | SelfConsistency(k=3)",
}
CONSTRAINED = {"Constrained": 'Constrained(regex="[0-9 +]{1,6}")'}
OTHERS = {
    "Greedy": "Greedy()",
    "ChainOfThought": "ChainOfThought()",
    "BudgetForcing": "BudgetForcing(max=6)",
    "ChainOfThought, extraction": 'ChainOfThought(extract="The answer is ")',
}
PARTS = OTHERS | SAMPLED | BEAMS | CONSTRAINED
EXACT = ("is settled, which says nothing about", "use MeanProbability() and Greedy(), or AdaptiveRoE(exact=False)")
REFUSED = {("AdaptiveRoE", part): EXACT for part in SAMPLED | BEAMS}
REFUSED["AdaptiveRoE", "Constrained"] = ("takes no constraints", "use another proposer, such as RoE(n=4)")
