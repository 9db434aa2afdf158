"""Everything that made the demo checkpoints: problems, tokenizer, training, evaluation, export."""
