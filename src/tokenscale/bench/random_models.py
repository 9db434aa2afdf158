"""Random models of known shapes: nothing has to be downloaded, and routers spread their choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

TILE = 2**24  # random numbers that large models repeat

SHAPES: Mapping[str, Mapping[str, Any]] = {
    # hidden 512, 8 layers, 64 experts of inner size 256, top-8: small enough for a laptop, larger than caches.
    "random-olmoe": {
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "max_position_embeddings": 1024,
    },
    # The shape of allenai/OLMoE-1B-7B: 13.8 GB in bfloat16.
    "random-olmoe-1b-7b": {
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "max_position_embeddings": 4096,
    },
    # For tests.
    "random-olmoe-tiny": {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
    },
}
RANDOM = tuple(SHAPES)


def random_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model of `SHAPES`, 64 experts top-8, weights N(0, 0.02), always the same; sdpa, experts as grouped_mm.

    Large ones are made on the meta device and filled layer by layer, so that no second copy is ever held.
    """
    config = OlmoeConfig(**SHAPES[name], num_experts=64, num_experts_per_tok=8, pad_token_id=0, eos_token_id=1)
    options = {"attn_implementation": "sdpa", "experts_implementation": "grouped_mm", "dtype": dtype}
    torch.manual_seed(0)
    make = filled if "1b" in name else plain
    model = make(config, options)
    model.name_or_path = name
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    return model.eval()


def numbers_tokenizer(size: int) -> Any:
    """A tokenizer whose words are the token ids, for what reads text: a vote."""
    words = WordLevel({str(number): number for number in range(size)}, unk_token="0")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def plain(config: Any, options: Mapping[str, Any]) -> Any:
    """The model of a configuration as transformers draws it."""
    return OlmoeForCausalLM._from_config(config, **options)


def filled(config: Any, options: Mapping[str, Any], tile: int = TILE) -> Any:
    """The model of a configuration without a second copy of its weights.

    A tile of random numbers is repeated over all matrices, each of which begins at another place of it:
    drawing 7e9 numbers would take minutes. Vectors (norms) are ones.
    """
    with torch.device("meta"):
        model = OlmoeForCausalLM._from_config(config, **options)
    numbers = (torch.randn(tile, generator=torch.Generator().manual_seed(0)) * config.initializer_range).to(
        options["dtype"]
    )
    rotary = type(model.model.rotary_emb)(config)  # its frequencies are no parameters
    for number, module in enumerate(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            real = torch.ones(parameter.shape, dtype=parameter.dtype)
            if parameter.ndim > 1:
                repeat(numbers.roll(997 * number), real.view(-1))
            setattr(module, name, nn.Parameter(real, requires_grad=False))
    model.model.rotary_emb = rotary
    return model


def repeat(numbers: torch.Tensor, into: torch.Tensor) -> None:
    """Fills a vector with `numbers`, as often as it takes."""
    for start in range(0, len(into), len(numbers)):
        part = into[start : start + len(numbers)]
        part.copy_(numbers[: len(part)])
