import math

import pytest
import torch

from fgvc_core.losses.classification import build_loss
from fgvc_core.losses.settings import LossSettings


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_cross_entropy_has_its_closed_form(smoothing):
    logits_NK = torch.tensor([[2.0, 0.0, -1.0]])
    log_p = torch.log_softmax(logits_NK, dim=1)[0].tolist()
    expected = -(1 - smoothing) * log_p[1] - smoothing * sum(log_p) / 3
    loss = build_loss(LossSettings(label_smoothing=smoothing))(logits_NK, torch.tensor([1]))
    assert math.isclose(loss.item(), expected, rel_tol=1e-6)
