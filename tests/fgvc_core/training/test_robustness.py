import dataclasses

import numpy as np
import pytest
import torch

from fgvc_core.data.catalogue import load_table
from fgvc_core.data.corruptions import CORRUPTIONS
from fgvc_core.data.settings import DataSettings
from fgvc_core.errors import DataError
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.weights import InputSpec
from fgvc_core.training.robustness import robustness, robustness_of

SPEC = InputSpec(32)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    settings = DataSettings(image_size=32, fieldmarks_train=12, fieldmarks_test=24)
    return load_table(settings, tmp_path_factory.mktemp("cache")).where("test")


class ByLookingUp:
    """Knows the clean pictures by heart, and answers class 0 to any other."""

    def __init__(self, table):
        self.known = {
            table.picture(i, 32).transpose(2, 0, 1).tobytes(): int(table.labels_N[i])
            for i in range(len(table))
        }

    def __call__(self, images_NCHW):
        labels = [self.known.get(image.numpy().tobytes(), 0) for image in images_NCHW]
        return torch.nn.functional.one_hot(torch.tensor(labels), 12).float()


def test_what_only_knows_clean_pictures_is_right_on_them_alone(table):
    found = robustness_of(ByLookingUp(table), table, SPEC)
    zero = float((table.labels_N == 0).mean())
    assert found.clean == 1.0
    assert set(found.top1) == set(CORRUPTIONS)
    assert all(values == pytest.approx((zero,) * 5) for values in found.top1.values())
    assert found.mean == pytest.approx(zero)
    assert found.as_json()["corruptions"]["blur"]["mean"] == pytest.approx(zero)


def test_a_network_gets_the_same_figures_however_it_is_batched(table):
    model = build_classifier(ModelSettings(), 12, 32, 1)
    names = ("noise", "background")
    one = robustness(model, table, names=names)
    assert one == robustness(model, table, names=names, batch_size=5)
    assert not model.training


def test_progress_counts_every_pass(table):
    seen = []
    robustness_of(
        ByLookingUp(table), table, SPEC, names=("blur",), tell=lambda *at: seen.append(at)
    )
    assert seen == [(i, 6) for i in range(1, 7)]


def test_without_boxes_the_background_is_left_out_and_said_so(table):
    bare = dataclasses.replace(table, boxes_N4=None)
    found = robustness_of(ByLookingUp(table), bare, SPEC, names=("brightness", "background"))
    assert set(found.top1) == {"brightness"}
    assert "boxes" in found.left_out["background"]


def test_pictures_without_labels_cannot_be_scored(table):
    bare = dataclasses.replace(table, labels_N=np.full(len(table), -1))
    with pytest.raises(DataError, match="label"):
        robustness_of(ByLookingUp(table), bare, SPEC)
