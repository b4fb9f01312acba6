"""Backbones by name: the attention ResNet, and timm's models.

The attention ResNet is a normalizer-free bottleneck network with weight standardization and ECA:
Brock et al. 2021, "Characterizing signal propagation to close the performance gap in unnormalized
ResNets", sections 3 and 4, https://arxiv.org/abs/2101.08692, with the channel attention of
:mod:`fgvc_core.models.attention`. Without BatchNorm nothing couples the examples of a batch, and
there are no statistics to average between sites: the same network works centrally, in a federation
and under differential privacy. In ANFR (https://arxiv.org/abs/2410.02006) weight standardization
with channel attention worked in the latter two.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.std_conv import ScaledStdConv2d
from torch import nn
from torch.nn import functional as F

from fgvc_core.errors import ConfigurationError, nearest
from fgvc_core.models.attention import ChannelAttention
from fgvc_core.models.tokens import TokenSelection
from fgvc_core.models.weights import (
    InputSpec,
    check_packaged,
    load_local,
    packaged_input,
    packaged_state,
)

ALPHA = 0.2
"""Factor of each residual branch in its block's output (section 3)."""

SILU_GAIN = 1.7881293296813965
"""Restores unit variance after SiLU for standard normal input (section 4)."""

ATTENTION_GAIN = 2.0
"""Compensates for a fresh sigmoid gate, which halves the signal."""


@dataclass(frozen=True)
class Preset:
    """Shape of one network: stem, then four stages of (blocks, channels)."""

    stem: int
    blocks: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]
    deep_stem: bool = False


PRESETS = {
    "fieldmark_nano": Preset(16, (1, 1, 2, 1), (32, 64, 128, 256)),
    "fieldmark_tiny": Preset(32, (1, 2, 3, 2), (128, 256, 384, 512)),
    "fieldmark_small": Preset(48, (2, 3, 5, 2), (192, 384, 768, 1024)),
    "fieldmark_50": Preset(64, (3, 4, 6, 3), (256, 512, 1024, 2048), deep_stem=True),
}


class Activation(nn.Module):
    """SiLU, scaled to keep the variance of standard normal input."""

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        return F.silu(map_NCHW) * SILU_GAIN


class Bottleneck(nn.Module):
    """Bottleneck (1x1, 3x3, 1x1) with attention and a learned gain.

    The gain starts at one: ``ALPHA`` already keeps the branch small, and starting from zero
    (SkipInit) the small presets stayed at chance level for 16 epochs on the embedded set.

    Args:
        inputs: Input channels.
        outputs: Output channels; the middle has a quarter of them, at least 16.
        stride: 1 or 2.
        beta: Inverse of the expected standard deviation of the input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, beta: float) -> None:
        super().__init__()
        middle = max(outputs // 4, 16)
        # Scale factors are folded into the next layer's weights: multiplying the maps took a
        # tenth of a training step.
        entry, inner = SILU_GAIN * beta, SILU_GAIN
        self.act = nn.SiLU()
        self.shortcut = (
            ScaledStdConv2d(inputs, outputs, 1, gamma=entry)
            if stride != 1 or inputs != outputs
            else None
        )
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.conv1 = ScaledStdConv2d(inputs, middle, 1, gamma=entry)
        self.conv2 = ScaledStdConv2d(middle, middle, 3, stride=stride, padding=1, gamma=inner)
        self.conv3 = ScaledStdConv2d(middle, outputs, 1, gamma=inner)
        self.attention = ChannelAttention(outputs)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        active_NCHW = self.act(map_NCHW)
        kept_NCHW = map_NCHW
        if self.shortcut is not None:
            kept_NCHW = self.shortcut(self.pool(active_NCHW))
        branch_NCHW = self.conv1(active_NCHW)
        branch_NCHW = self.conv2(self.act(branch_NCHW))
        branch_NCHW = self.conv3(self.act(branch_NCHW))
        weights_NC11 = self.attention.weights(branch_NCHW) * (ATTENTION_GAIN * ALPHA * self.gain)
        return torch.addcmul(kept_NCHW, branch_NCHW, weights_NC11)


class AttentionResNet(nn.Module):
    """A preset as a backbone."""

    stage_names = ("stem", "stage1", "stage2", "stage3", "stage4")
    idle: frozenset[str] = frozenset()

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.out_channels = preset.channels[-1]
        self.stem = _stem(preset)
        inputs, variance = preset.stem, 1.0
        for number, (blocks, outputs) in enumerate(
            zip(preset.blocks, preset.channels, strict=True), start=1
        ):
            stage = []
            for block in range(blocks):
                stride = 2 if block == 0 and number > 1 else 1
                stage.append(Bottleneck(inputs, outputs, stride, variance**-0.5))
                # The first block of a stage normalizes its shortcut, which resets the variance.
                variance = (1.0 if block == 0 else variance) + ALPHA**2
                inputs = outputs
            self.add_module(f"stage{number}", nn.Sequential(*stage))
        self.act = Activation()

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Map (N, 3, H, W) to (N, out_channels, H / 16, W / 16), or / 32 with the deep stem."""
        map_NCHW = images_NCHW
        for name in self.stage_names:
            map_NCHW = self.get_submodule(name)(map_NCHW)
        return self.act(map_NCHW)


def _stem(preset: Preset) -> nn.Module:
    if not preset.deep_stem:
        return ScaledStdConv2d(3, preset.stem, 3, stride=2, padding=1)
    half = preset.stem // 2
    return nn.Sequential(
        ScaledStdConv2d(3, half, 3, stride=2, padding=1),
        Activation(),
        ScaledStdConv2d(half, half, 3, padding=1),
        Activation(),
        ScaledStdConv2d(half, preset.stem, 3, stride=2, padding=1),
    )


class TimmBackbone(nn.Module):
    """A timm model without its classifier.

    Convolutional models return their last map; token models return timm's pooled vector, as
    a map of one position.

    Args:
        model: Built with ``num_classes=0``.
        size: Side of the input squares, in pixels; see :meth:`probe`.

    Attributes:
        idle: Names of parameters that the map does not depend on. Many timm models have a
            part of their head behind the last map (MobileNetV3's last convolution,
            ConvNeXt's last norm, VGG's two wide layers): these never train or travel.

    Raises:
        RuntimeError, AssertionError, ValueError, TypeError: if the model does not accept that
            size, or does not return a single tensor.
    """

    # Any: timm's models have no common type with their methods.
    model: Any

    def __init__(self, model: Any, size: int) -> None:
        super().__init__()
        self.model = model
        self.selection: TokenSelection | None = None
        self.probe(size)
        self.stage_names = _stages(model, self.idle)

    def end_at(self, stage: str, size: int) -> None:
        """Leave out everything behind a stage, whose map is then the backbone's.

        Args:
            stage: Name of a stage.
            size: Side of the input squares, in pixels.

        Raises:
            ConfigurationError: for an unknown stage, or if the model needs what comes behind.
        """
        if stage not in self.stage_names:
            choices = ", ".join(self.stage_names)
            raise ConfigurationError(
                f"model.until names '{stage}', which is no stage of this backbone.",
                remedy=f"{nearest(stage, list(self.stage_names))} Choices: {choices}.".strip(),
            )
        seen: list[object] = []
        square_NCHW = torch.zeros(1, 3, size, size)
        target = self.model.get_submodule(stage)
        handle = target.register_forward_hook(lambda module, given, found: seen.append(found))
        later = self.stage_names[self.stage_names.index(stage) + 1 :]
        for name in later:
            if not name.startswith(f"{stage}."):
                parent, _, own = name.rpartition(".")
                owner = self.model.get_submodule(parent) if parent else self.model
                # A container's members have gone with it.
                if not isinstance(owner, nn.Identity):
                    setattr(owner, own, nn.Identity())
        try:
            with torch.inference_mode():
                found_NCHW = self.eval()(square_NCHW)
        except (RuntimeError, AssertionError, AttributeError, ValueError, TypeError):
            found_NCHW = None
        finally:
            handle.remove()
        # The same tensor, or what the model does to every map behind its stages has no effect.
        one = seen[0] if len(seen) == 1 else None
        if (
            found_NCHW is None
            or not isinstance(one, torch.Tensor)
            or one.shape != found_NCHW.shape
            or not (one.is_meta or torch.equal(one, found_NCHW))
        ):
            raise ConfigurationError(
                f"model.until = '{stage}' cannot end this backbone.",
                why="What comes behind that stage cannot be left out of it.",
                remedy="Name another stage, or leave model.until out.",
            )
        self.probe(size)
        self.stage_names = _stages(self.model, self.idle)

    def probe(self, size: int) -> None:
        """Determine the map's channels and the idle parameters, from one black square."""
        names, parameters = zip(*self.named_parameters(), strict=True)
        with torch.enable_grad():
            map_NCHW = self.eval()(torch.zeros(1, 3, size, size))
            found = torch.autograd.grad(map_NCHW.sum(), parameters, allow_unused=True)
        pairs = zip(names, found, strict=True)
        self.idle = frozenset(name for name, gradient in pairs if gradient is None)
        self.out_channels = int(map_NCHW.shape[1])

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Map (N, 3, H, W) to (N, C, h, w)."""
        if self.selection is not None:
            found = self.selection.features(images_NCHW)
        else:
            found = self.model.forward_features(images_NCHW)
        if not isinstance(found, torch.Tensor | dict):
            raise TypeError("its features are several tensors, expected one map")
        if isinstance(found, torch.Tensor) and found.ndim == 4:
            last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            return found.permute(0, 3, 1, 2) if last else found
        return self.model.forward_head(found, pre_logits=True)[:, :, None, None]


Backbone = AttentionResNet | TimmBackbone


def make_backbone(name: str, weights: str, size: int) -> tuple[Backbone, InputSpec]:
    """Build a backbone, and the preprocessing that it expects.

    Args:
        name: A preset of the attention ResNet, or any timm model.
        weights: ``none``, ``hub``, ``package`` or a path.
        size: Side of the squares, in pixels.

    Raises:
        ConfigurationError: for an unknown name, a size that the backbone does not accept, or
            missing or wrong weights.
    """
    if name in PRESETS:
        return _ours(name, weights, size)
    architecture = name.split(".")[0]
    if architecture not in timm.list_models():
        raise ConfigurationError(
            f"model.backbone = '{name}' is unknown.",
            why="Nothing was started.",
            remedy=nearest(architecture, [*PRESETS, *timm.list_models()])
            or f"Ours: {', '.join(PRESETS)}; timm's: timm.list_models().",
        )
    if weights == "package":
        return _packaged(name, size), packaged_input(size)
    model = _create(name, weights == "hub", size)
    _no_inplace(model)
    backbone = _wrap(model, name, size)
    config = model.pretrained_cfg
    spec = InputSpec(
        size,
        tuple(config["mean"]),
        tuple(config["std"]),
        config["interpolation"],
        float(config["crop_pct"]),
    )
    if weights not in ("none", "hub"):
        load_local(model, Path(weights), _classifier(config), "backbone.model.")
    elif weights == "none":
        spec = InputSpec(size)
    return backbone, spec


def _create(name: str, pretrained: bool, size: int) -> Any:
    arguments: dict[str, Any] = {"num_classes": 0}
    if _takes_size(name.split(".")[0]):
        arguments["img_size"] = size
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:
        # timm, its registry and the hub can raise almost any type.
        if pretrained:
            raise ConfigurationError(
                f"The weights of '{name}' could not be had from the hub: {error}.",
                remedy="Check the connection, or give a local file in model.weights.",
            ) from None
        raise ConfigurationError(
            f"timm cannot build '{name}' for pictures of {size} px: {error}.",
            remedy="Set another data.image_size or model.backbone; without weights a name "
            "needs no tag after a dot.",
        ) from None


def _wrap(model: Any, name: str, size: int) -> TimmBackbone:
    # Windows and patches must divide the picture: check now rather than fail in round 1.
    try:
        return TimmBackbone(model, size)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"data.image_size = {size} does not suit model.backbone = '{name}': {error}.",
            remedy="Take a multiple of its patch or window (often of 32), for instance 64 or "
            "224, or another backbone.",
        ) from None


def _ours(name: str, weights: str, size: int) -> tuple[Backbone, InputSpec]:
    if weights in ("hub", "package"):
        raise ConfigurationError(
            f"There are no {weights} weights for '{name}'.",
            remedy="Set model.weights to 'none' or to a local file, or take another backbone.",
        )
    backbone = AttentionResNet(PRESETS[name])
    if weights != "none":
        load_local(backbone, Path(weights), ("head.",), "backbone.")
    return backbone, InputSpec(size)


_PACKAGED: dict[tuple[str, int, bytes], tuple[TimmBackbone, torch.Tensor]] = {}
_PACKAGED_KEPT = 3
"""Packaged backbones that are kept: each a few million parameters, and joined ones are few."""


def _packaged(name: str, size: int) -> TimmBackbone:
    """A copy of a backbone with its packaged weights, which a process builds and reads once.

    A site builds its model anew for each request, which took ten times as long as the copy. Like
    building it, the copy leaves the global generator where the next initialization begins.
    """
    check_packaged(name)
    key = name, size, torch.default_generator.get_state().numpy().tobytes()
    if key not in _PACKAGED:
        model = _create(name, False, size)
        _no_inplace(model)
        backbone = _wrap(model, name, size)
        _load_packaged(model, name)
        while len(_PACKAGED) >= _PACKAGED_KEPT:
            del _PACKAGED[next(iter(_PACKAGED))]
        _PACKAGED[key] = backbone, torch.default_generator.get_state()
    backbone, after = _PACKAGED[key]
    torch.default_generator.set_state(after)
    return deepcopy(backbone)


def _load_packaged(model: nn.Module, name: str) -> None:
    whole = timm.create_model(name, num_classes=1000)
    state = packaged_state(name, whole.state_dict())
    kept = model.state_dict()
    model.load_state_dict({k: v for k, v in state.items() if k in kept})


def _classifier(config: dict[str, Any]) -> tuple[str, ...]:
    named = config.get("classifier") or ()
    names = (named,) if isinstance(named, str) else tuple(named)
    return tuple(f"{name}." for name in names)


def _takes_size(architecture: str) -> bool:
    # Models with learned position embeddings need the size when built; timm marks them.
    return bool(timm.get_pretrained_cfg(architecture, allow_unregistered=True)) and bool(
        getattr(timm.get_pretrained_cfg(architecture), "fixed_input_size", False)
    )


def _stages(model: nn.Module, idle: frozenset[str]) -> tuple[str, ...]:
    """Names of a model's parts in order, each container before its members."""
    names: list[str] = []
    for name, child in model.named_children():
        parts = [f"model.{name}.{parameter}" for parameter, _ in child.named_parameters()]
        if all(part in idle for part in parts):
            continue
        names.append(name)
        if isinstance(child, nn.Sequential | nn.ModuleList):
            names += [f"{name}.{member}" for member, _ in child.named_children()]
    return tuple(names)


def _no_inplace(model: nn.Module) -> None:
    """Turn off in-place activations: they break hooks for per-example gradients."""
    for module in model.modules():
        if getattr(module, "inplace", False):
            vars(module)["inplace"] = False
