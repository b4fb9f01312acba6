"""What each part promises, without a run."""

from types import SimpleNamespace

import torch
from my_parts.focal import Focal, FocalSettings
from my_parts.gray_squares import build
from torch.nn import functional as F

from fgvc_core.data.settings import DataSettings


def test_without_focus_it_is_the_cross_entropy():
    logits_NK, labels_N = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    losses_N = Focal(FocalSettings(gamma=0.0)).each(SimpleNamespace(logits_NK=logits_NK), labels_N)
    assert torch.allclose(losses_N, F.cross_entropy(logits_NK, labels_N, reduction="none"))


def test_the_table_has_both_splits_of_every_class(tmp_path):
    table = build(DataSettings(name="gray-squares"), tmp_path)
    for split in ("train", "test"):
        assert table.where(split).class_counts_K().all()
