"""The network in the form that is exported: uint8 squares to logits, with constants folded."""

import copy

import torch
from timm.layers.std_conv import ScaledStdConv2d
from torch import nn

from fgvc_core.models.classifier import FineGrainedClassifier


class ExportedGraph(nn.Module):
    """The computation from a square picture to its logits.

    It includes normalization and multiple views (mirrored, middle, closer), but not resizing.

    Args:
        model: The classifier; it is copied and not changed.
    """

    def __init__(self, model: FineGrainedClassifier) -> None:
        super().__init__()
        self.classifier = copy.deepcopy(model).cpu().requires_grad_(False).eval()
        _fold_standardised(self.classifier)
        self.classifier.to(memory_format=torch.contiguous_format)
        self.eval()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """uint8 (N, S, S, 3) to float32 (N, K)."""
        model = self.classifier
        images_NCHW = model.normalise(pictures.permute(0, 3, 1, 2))
        if not model.mirrored or model.closer or model.middle:
            return model(images_NCHW)
        # Both views in one pass need half the nodes of two passes.
        both_2NCHW = torch.cat([images_NCHW, images_NCHW.flip(-1)])
        vectors_2ND = model._vectors(both_2NCHW).reshape(2, -1, model.feature_dim)
        return model.classify(vectors_2ND.mean(dim=0))


def multiply_adds(model: FineGrainedClassifier) -> int:
    """Multiply-adds for one picture: half of the operations that torch's counter counts."""
    from torch.utils.flop_counter import FlopCounterMode

    size = model.input.size
    graph = ExportedGraph(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        graph(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    return int(counter.get_total_flops()) // 2


def _fold_standardised(parent: nn.Module) -> None:
    """Replace layers with standardized weights by plain ones; the weights are constant by now."""
    for name, child in parent.named_children():
        if type(child) is ScaledStdConv2d:
            setattr(parent, name, _plain(child))
        else:
            _fold_standardised(child)


def _plain(layer: ScaledStdConv2d) -> nn.Conv2d:
    plain = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        layer.groups,
        layer.bias is not None,
    )
    flat_OI = layer.weight.double().flatten(1)
    mean_O1 = flat_OI.mean(dim=1, keepdim=True)
    spread_O1 = (flat_OI.var(dim=1, keepdim=True, unbiased=False) + layer.eps).sqrt()
    gain_O1 = layer.gain.double().flatten()[:, None] * layer.scale
    with torch.no_grad():
        plain.weight.copy_(((flat_OI - mean_O1) / spread_O1 * gain_O1).view_as(layer.weight))
        if plain.bias is not None and layer.bias is not None:
            plain.bias.copy_(layer.bias)
    return plain.requires_grad_(False)
