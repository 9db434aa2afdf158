"""Two recipes that are right: one with every key, one with only those that must be given."""

FULL = """\
version: 1
question: At equal FLOPs, wider tokens or more answers?
models:
  demo: {path: demo}
  noisy: {path: demo-noisy, dtype: bfloat16}
tasks:
  arithmetic: {split: test, limit: 2000}
prompt: {chat: auto, system: null, few_shot: null}
generation: {max_new_tokens: 96, stop_strings: ["\\nQ:"]}
seeds: [0, 1, 2]
arms:
  greedy: Greedy()
  vote: [{SelfConsistency: {k: 5}}]
  roe: {pipeline: "RoE(n=4, tau=0.3)", prompt: {few_shot: 2}}
  both: RoE(n=4, tau=0.3) | SelfConsistency(k=5)
contrasts: [[roe, vote], [both, vote]]
margin: 1.0
run: {batch_size: auto, workers: 1}
"""
SMALL = """\
version: 1
question: Why?
models: {demo: {path: demo}}
tasks: {arithmetic: {limit: 10}}
arms:
  greedy: Greedy()
"""
