import pytest
import torch

from fgvc_core.models.pooling import Scaling


def test_roots_keep_signs_and_units_have_length_one():
    features_ND = torch.tensor([[4.0, -9.0, 0.0]])
    assert Scaling("none")(features_ND).tolist() == features_ND.tolist()
    assert Scaling("root")(features_ND).tolist() == [pytest.approx([2.0, -3.0, 0.0])]
    assert Scaling("unit")(features_ND).norm().item() == pytest.approx(1.0)
    assert Scaling("root-unit")(features_ND).tolist() == [
        pytest.approx([2 / 13**0.5, -3 / 13**0.5, 0.0])
    ]


@pytest.mark.parametrize("kind", ["none", "root", "unit", "root-unit"])
def test_zero_vectors_and_empty_batches_have_finite_gradients(kind):
    for shape in ((2, 3), (0, 3)):
        features_ND = torch.zeros(shape, requires_grad=True)
        Scaling(kind)(features_ND).sum().backward()
        assert features_ND.grad is not None
        assert torch.isfinite(features_ND.grad).all()


def test_a_mirrored_model_gives_a_picture_and_its_mirror_image_one_vector():
    from fgvc_core.models.build import build_classifier
    from fgvc_core.models.settings import ModelSettings

    model = build_classifier(ModelSettings(mirrored=True), 3, 32, 0)
    images_NCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.embed(images_NCHW), model.embed(images_NCHW.flip(-1)))
    model.train()
    assert not torch.allclose(model.embed(images_NCHW), model.embed(images_NCHW.flip(-1)))
