"""Trains the tokenizer: byte-level BPE, digits isolated, the fixed pieces of the format kept whole.

python -m tools.demo_model.tokenizer --out build/demo_model/tokenizer
"""

import argparse
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tools.demo_model.documents import END, PAD, Mix, document

# Alternatives in order: pieces of the format, one digit, a word with its space, other marks, white space.
PIECES = (
    r"\n\nQ:|\nA:|Q:| #### | Let's think step by step| in detail\.| We get | First, |\. Then | \$"
    r"|[,:] (?=\d)|\d| ?[A-Za-z]+| ?[^\sA-Za-z0-9]|\s"
)
SAMPLE = Mix(levels=(1, 1, 1), drills=0.05, direct=0.2, detail=0.2, terse=0.5, packed=0.1)
VOCABULARY = 704


def train_tokenizer(documents: int = 20_000) -> Tokenizer:
    """A tokenizer fitted to ``documents`` random training documents (fixed seed)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random("tokenscale/tokenizer")
    texts = ("".join(text for text, _ in document(SAMPLE, rng)[:-1]) for _ in range(documents))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The transformers tokenizer: no automatic special tokens; one end token, also named as bos."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        bos_token=END,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        model_input_names=["input_ids", "attention_mask"],
    )


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    tokenizer = wrap(train_tokenizer())
    tokenizer.save_pretrained(out)
    print(f"{len(tokenizer)} tokens -> {out}")


if __name__ == "__main__":
    main()
