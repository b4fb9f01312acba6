"""Token selection for vision transformers: only the most attended tokens enter the last layer.

He et al. 2022, "TransFG", section 3.2 (part selection module), https://arxiv.org/abs/2103.07976.
The attention matrices of all layers but the last are multiplied; for each head, the token that
the class token attends to most enters the last layer, with the class token. Their contrastive
loss is omitted, because it couples examples. The selection has no gradient and depends on each
picture alone. Cost: queries and keys of each layer once more, and H T^3 for the products; the
last layer gets cheaper. Limits: several heads often select the same token, and a last layer that
was pre-trained without selection sees fewer tokens than it is used to.
"""

from typing import Any

import torch
from torch import nn

from fgvc_core.errors import ConfigurationError


class TokenSelection:
    """Runs a timm vision transformer with token selection before its last layer.

    Args:
        model: A model with a class token and at least two layers.
        name: The model's name, for messages.

    Raises:
        ConfigurationError: if the model does not qualify.
    """

    def __init__(self, model: Any, name: str) -> None:
        blocks = getattr(model, "blocks", None)
        layers = list(blocks) if isinstance(blocks, nn.Sequential) else []
        fits = (
            len(layers) > 1
            and getattr(model, "cls_token", None) is not None
            and getattr(model, "global_pool", "token") == "token"
            and all(hasattr(getattr(layer, "attn", None), "qkv") for layer in layers)
        )
        if not fits:
            raise ConfigurationError(
                f"model.token_selection: '{name}' is no transformer with a class token that "
                "answers for the picture.",
                why="Tokens are picked by what the class token attends to.",
                remedy="Take a ViT or DeiT (vit_small_patch16_224, deit_small_patch16_224), or "
                "leave model.token_selection out.",
            )
        self._model = model

    def features(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Like ``forward_features``, with only the selected tokens left: (N, prefix + H, C)."""
        model = self._model
        tokens_NTC = model.patch_drop(model._pos_embed(model.patch_embed(images_NCHW)))
        tokens_NTC = model.norm_pre(tokens_NTC)
        *layers, last = model.blocks
        rolled_NHTT: torch.Tensor | None = None
        for layer in layers:
            attention_NHTT = attention_of(layer, tokens_NTC)
            rolled_NHTT = attention_NHTT if rolled_NHTT is None else attention_NHTT @ rolled_NHTT
            tokens_NTC = layer(tokens_NTC)
        assert rolled_NHTT is not None
        chosen_NH = picked(rolled_NHTT, model.num_prefix_tokens)
        index_NHC = chosen_NH[:, :, None].expand(-1, -1, tokens_NTC.shape[2])
        prefix_NTC = tokens_NTC[:, : model.num_prefix_tokens]
        kept_NTC = torch.cat([prefix_NTC, tokens_NTC.gather(1, index_NHC)], dim=1)
        return model.norm(last(kept_NTC))


@torch.no_grad()
def attention_of(layer: Any, tokens_NTC: torch.Tensor) -> torch.Tensor:
    """Attention matrix of a layer, (N, H, T, T); each row sums to 1."""
    attention = layer.attn
    count, length, _ = tokens_NTC.shape
    heads = attention.num_heads
    width = attention.qkv.out_features // (3 * heads)
    qkv = attention.qkv(layer.norm1(tokens_NTC)).reshape(count, length, 3, heads, width)
    query_NHTC, key_NHTC, _ = qkv.permute(2, 0, 3, 1, 4)
    query_NHTC, key_NHTC = attention.q_norm(query_NHTC), attention.k_norm(key_NHTC)
    return (query_NHTC @ key_NHTC.transpose(2, 3) * attention.scale).softmax(dim=3)


def picked(rolled_NHTT: torch.Tensor, prefix: int) -> torch.Tensor:
    """int64 (N, H): for each head the token that the class token attends to most.

    Args:
        rolled_NHTT: Product of the layers' attention matrices.
        prefix: Number of tokens before the picture's own; they are not selected.
    """
    return rolled_NHTT[:, :, 0, prefix:].argmax(dim=2) + prefix
