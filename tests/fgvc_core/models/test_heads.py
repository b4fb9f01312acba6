import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fgvc_core.models.heads import CosineHead, LinearHead


@given(st.integers(0, 2**31), st.floats(0.5, 128.0), st.integers(1, 6), st.integers(1, 9))
def test_cosine_logits_are_the_scaled_cosine_of_each_pair(seed, scale, classes, features):
    generator = torch.Generator().manual_seed(seed)
    head = CosineHead(features, classes, scale)
    with torch.no_grad():
        head.weight.copy_(torch.randn(classes, features, generator=generator))
    features_ND = torch.randn(3, features, generator=generator)
    expected_NK = scale * F.cosine_similarity(features_ND[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(head(features_ND), expected_NK, rtol=1e-4, atol=1e-3)
    assert head(features_ND).abs().max() <= scale * (1 + 1e-5)


@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e4])
def test_cosine_logits_do_not_change_with_contrast(factor):
    head, features_ND = CosineHead(6, 3, 16.0), torch.randn(4, 6)
    torch.testing.assert_close(head(features_ND * factor), head(features_ND), rtol=1e-4, atol=1e-4)


def test_a_zero_vector_gives_zero_and_no_gradient_while_its_neighbour_learns():
    head = CosineHead(4, 3, 16.0)
    features_ND = torch.tensor([[0.0] * 4, [1.0, -2.0, 0.5, 3.0]], requires_grad=True)
    logits_NK = head(features_ND)
    assert torch.equal(logits_NK[0], torch.zeros(3))
    F.cross_entropy(logits_NK, torch.tensor([0, 1])).backward()
    assert torch.equal(features_ND.grad[0], torch.zeros(4))
    assert features_ND.grad[1].abs().sum() > 0
    assert torch.isfinite(head.weight.grad).all()
    assert head.weight.grad.abs().sum() > 0


def test_a_direction_learns_only_sideways():
    head = CosineHead(5, 2, 8.0)
    F.cross_entropy(head(torch.randn(6, 5)), torch.tensor([0, 1, 0, 1, 0, 1])).backward()
    along_K = (head.weight.grad * head.weight).sum(dim=1)
    torch.testing.assert_close(along_K, torch.zeros(2), rtol=0, atol=1e-5)


def test_a_linear_head_learns_from_its_first_step():
    head = LinearHead(4, 3)
    loss = F.cross_entropy(head(torch.randn(5, 4)), torch.tensor([0, 1, 2, 0, 1]))
    assert loss.item() == pytest.approx(torch.log(torch.tensor(3.0)).item())
    loss.backward()
    assert head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "head", [CosineHead(4, 3, 16.0), LinearHead(4, 3)], ids=["cosine", "linear"]
)
def test_no_vectors_have_no_logits(head):
    assert head(torch.zeros(0, 4)).shape == (0, 3)
