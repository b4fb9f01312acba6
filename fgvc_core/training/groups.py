"""Learning rates by depth: what is near the picture is general and moves little.

Howard and Ruder 2018, "Universal Language Model Fine-tuning", section 3.2 (discriminative
fine-tuning), https://arxiv.org/abs/1801.06146. Costs nothing. A warning: from random weights
every layer has to move, and a factor below 1 only slows it down.
"""

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from fgvc_core.models.classifier import FineGrainedClassifier


def parameter_groups(
    model: "FineGrainedClassifier", lr: float, decay: float
) -> list[dict[str, Any]]:
    """The parameters that train, in groups for an optimiser.

    Head, pooling and attention have the full rate, the last stage ``decay`` times that, the
    stage before ``decay`` times that again.

    Args:
        model: Its stages set the depths.
        lr: The full rate.
        decay: Above 0 to 1; at 1 there is one group.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if decay == 1.0:
        return [{"params": [p for _, p in trained], "lr": lr}]
    depths: dict[int, list[nn.Parameter]] = {}
    for name, parameter in trained:
        depths.setdefault(_depth(name, model.stage_names), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * decay**depth}
        for depth, parameters in sorted(depths.items())
    ]


def _depth(name: str, stages: tuple[str, ...]) -> int:
    """0 behind the backbone, 1 in its last stage, and so on towards the picture."""
    own = name.removeprefix("backbone.").removeprefix("model.")
    if own == name:
        return 0
    # The longest name that fits: a container and its members are both stages.
    fitting = [i for i, stage in enumerate(stages) if own.startswith(f"{stage}.")]
    if not fitting:
        return len(stages)
    return len(stages) - max(fitting)
