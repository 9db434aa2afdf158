"""The models: a small OLMoE in OLMoE's own shape, a tiny Mixtral, and the training-time router.

OLMoE: 64 experts of inner size 32, top-8, gates not renormalised, tied embeddings. The saved files are
plain transformers models; noise exists during training only.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MixtralConfig, MixtralForCausalLM, OlmoeConfig, OlmoeForCausalLM, PreTrainedModel

AUX_LOSS = 0.01  # weight of the load-balancing loss, OLMoE's value
GUMBEL_SCALE = 0.3  # of the noisy twin's expert selection; fixed before any result was seen


def olmoe_config(vocabulary: int, pad: int, end: int) -> OlmoeConfig:
    """The demo model's configuration."""
    return OlmoeConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_experts=64,
        num_experts_per_tok=8,
        norm_topk_prob=False,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        router_aux_loss_coef=AUX_LOSS,
        pad_token_id=pad,
        bos_token_id=end,
        eos_token_id=end,
    )


def mixtral_config(vocabulary: int, pad: int, end: int) -> MixtralConfig:
    """The test model's configuration: under 1 MB in float16."""
    return MixtralConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        sliding_window=None,
        pad_token_id=pad,
        bos_token_id=end,
        eos_token_id=end,
    )


class TrainingRouter(nn.Module):
    """A softmax router that keeps what the load-balancing loss needs and may select noisily.

    Selection is TopK(logits + scale * Gumbel); the gate weights are those of the original scores,
    so at scale 0 this is transformers' router (norm: as ``norm_topk_prob``).
    """

    def __init__(self, plain: nn.Module, top_k: int, renormalise: bool, scale: float, noise: torch.Generator):
        super().__init__()
        self.weight = plain.weight
        self.top_k, self.renormalise, self.scale, self.noise = top_k, renormalise, scale, noise
        self.balance = torch.zeros(())

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[tokens, experts]``, gate weights and expert indices ``[tokens, top_k]``."""
        logits = F.linear(hidden.reshape(-1, hidden.shape[-1]), self.weight)
        scores = logits.float().softmax(-1)
        selection = logits.detach()
        if self.scale:
            uniform = torch.rand(logits.shape, generator=self.noise).clamp(1e-9, 1 - 1e-7)
            selection = selection - self.scale * (-uniform.log()).log()
        indices = selection.topk(self.top_k, dim=-1).indices
        gates = scores.gather(-1, indices)
        if self.renormalise:
            gates = gates / gates.sum(-1, keepdim=True)
        load = torch.bincount(indices.reshape(-1), minlength=scores.shape[-1]) / indices.shape[0]
        self.balance = scores.shape[-1] * (load * scores.mean(0)).sum()
        return logits, gates, indices


def install_routers(model: PreTrainedModel, scale: float, noise: torch.Generator) -> list[TrainingRouter]:
    """Replaces every layer's router in place; the weights stay the same parameters."""
    config, routers = model.config, []
    renormalise = getattr(config, "norm_topk_prob", True)  # Mixtral always renormalises
    for layer in model.model.layers:
        layer.mlp.gate = TrainingRouter(layer.mlp.gate, config.num_experts_per_tok, renormalise, scale, noise)
        routers.append(layer.mlp.gate)
    return routers


def build(name: str, vocabulary: int, pad: int, end: int) -> PreTrainedModel:
    """A freshly initialised model ("olmoe" or "mixtral"), float32, experts by grouped products."""
    config, kind = {
        "olmoe": (olmoe_config, OlmoeForCausalLM),
        "mixtral": (mixtral_config, MixtralForCausalLM),
    }[name]
    model = kind._from_config(config(vocabulary, pad, end), experts_implementation="grouped_mm", dtype=torch.float32)
    return model.train()


def parameter_counts(model: PreTrainedModel) -> tuple[int, int]:
    """(all parameters, parameters active for one token); the tied embedding is counted once."""
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    share = model.config.num_experts_per_tok / model.config.num_local_experts
    return total, round(total - experts * (1 - share))
