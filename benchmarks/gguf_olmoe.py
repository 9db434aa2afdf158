"""An OLMoE of transformers as a GGUF file, for llama.cpp: the same numbers, in its names and layout.

Needs the `gguf` package (the extra `bench`). Matrices keep the model's type, vectors and routers are float32, as
llama.cpp has them. The vocabulary is made up: nothing here reads text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

NAMES = {  # of a layer: the module's name in transformers, the tensor's in GGUF
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write(model: Any, path: Path) -> None:
    """Writes the model; it is checked by comparing logits, see `llama_cpp.py`."""
    config, writer = model.config, gguf.GGUFWriter(path, "olmoe")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in tensors(model):
        add(writer, name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(GGUF's name, numbers) of everything that llama.cpp reads."""
    modules = dict(model.named_modules())
    for theirs, ours in OUTER.items():
        yield f"{ours}.weight", modules[theirs].weight
    for number, layer in enumerate(model.model.layers):
        inside = dict(layer.named_modules())
        for theirs, ours in NAMES.items():
            yield f"blk.{number}.{ours}.weight", inside[theirs].weight
        # transformers holds an expert's gate and up matrices in one.
        gate, up = layer.mlp.experts.gate_up_proj.chunk(2, dim=1)
        yield f"blk.{number}.ffn_gate_exps.weight", gate
        yield f"blk.{number}.ffn_up_exps.weight", up
        yield f"blk.{number}.ffn_down_exps.weight", layer.mlp.experts.down_proj


def add(writer: Any, name: str, tensor: Tensor) -> None:
    """One tensor in the type that llama.cpp wants for it."""
    tensor = tensor.detach().contiguous()
    if tensor.ndim == 1 or "ffn_gate_inp" in name or tensor.dtype == torch.float32:
        writer.add_tensor(name, tensor.float().numpy())
        return
    assert tensor.dtype == torch.bfloat16, "float32 and bfloat16 models can be written"
    numbers = tensor.view(torch.int16).numpy().view(np.uint16)
    writer.add_tensor(name, numbers.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
