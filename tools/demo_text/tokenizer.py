"""Trains the tokenizer: byte-level BPE of 2,048 entries, on the train split alone.

python -m tools.demo_text.tokenizer --out build/demo_text/tokenizer
"""

import argparse
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tools.demo_model.documents import END, PAD
from tools.demo_model.tokenizer import wrap
from tools.demo_text.corpus import read

VOCABULARY = 2048


def train_tokenizer(texts: list[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A tokenizer fitted to the texts; words with their space, digits and marks in runs, as GPT-2 splits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrap(tokenizer)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("build/demo_text/corpus"))
    parser.add_argument("--out", type=Path, default=Path("build/demo_text/tokenizer"))
    options = parser.parse_args()
    tokenizer = train_tokenizer(read(options.corpus / "train.jsonl"))
    tokenizer.save_pretrained(options.out)
    print(f"{len(tokenizer)} tokens -> {options.out}")


if __name__ == "__main__":
    main()
