import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.losses.base import Loss, build_loss
from fgvc_core.losses.settings import LossSettings


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_cross_entropy_has_its_closed_form(smoothing):
    logits_NK = torch.tensor([[2.0, 0.0, -1.0]])
    log_p = torch.log_softmax(logits_NK, dim=1)[0].tolist()
    expected = -(1 - smoothing) * log_p[1] - smoothing * sum(log_p) / 3
    loss = build_loss(LossSettings(label_smoothing=smoothing))(logits_NK, torch.tensor([1]))
    assert math.isclose(loss.item(), expected, rel_tol=1e-6)


@given(st.integers(0, 2**31), st.floats(0.0, 0.99), st.integers(1, 8), st.integers(2, 12))
def test_it_is_the_cross_entropy_against_the_mixture_of_one_and_all(seed, share, count, classes):
    generator = torch.Generator().manual_seed(seed)
    logits_NK = torch.randn(count, classes, generator=generator, dtype=torch.float64) * 4
    labels_N = torch.randint(classes, (count,), generator=generator)
    targets_NK = torch.full((count, classes), share / classes, dtype=torch.float64)
    targets_NK[torch.arange(count), labels_N] += 1 - share
    expected = -(targets_NK * logits_NK.log_softmax(dim=1)).sum(dim=1).mean()
    loss = build_loss(LossSettings(label_smoothing=share))
    torch.testing.assert_close(loss(logits_NK, labels_N), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_it_couples_no_examples_as_it_says(smoothing):
    loss = build_loss(LossSettings(label_smoothing=smoothing))
    assert loss.couples_examples is False
    logits_NK = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    other_NK = logits_NK.clone()
    other_NK[1:] = other_NK[1:].flip(1) * 7

    def gradient_of_the_first(batch_NK, labels):
        batch_NK = batch_NK.clone().requires_grad_()
        loss(batch_NK, torch.tensor(labels)).backward()
        return batch_NK.grad[0]

    alone_K = gradient_of_the_first(logits_NK[:1], [2]) / 4
    torch.testing.assert_close(gradient_of_the_first(logits_NK, [2, 0, 1, 3]), alone_K)
    torch.testing.assert_close(gradient_of_the_first(other_NK, [2, 4, 4, 4]), alone_K)


def test_a_loss_without_a_forward_says_so():
    with pytest.raises(TypeError, match="says what each"):
        Loss()(torch.zeros(1, 2), torch.tensor([0]))
