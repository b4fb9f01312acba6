import doctest
from itertools import product
from typing import get_args

import pytest

from fgvc_core.errors import PeerError
from fgvc_core.privacy.accountant import Purpose
from fgvc_core.protocol import stages
from fgvc_core.protocol.messages import Kind, Phase, Request
from fgvc_core.protocol.stages import STAGES, stage_of, stages_of
from fgvc_core.recipe import parse_recipe


def request(kind, phase):
    return Request(
        kind=kind, run="r", round=1, site="a", nonce="0" * 32, recipe_digest="0" * 64, phase=phase
    )


def test_every_kind_phase_and_purpose_has_its_stage_and_no_other_pair_has_one():
    assert {kind for kind, _ in STAGES} == set(get_args(Kind))
    assert {phase for _, phase in STAGES} == set(get_args(Phase))
    assert {stage.privacy for stage in STAGES.values()} == {None, *get_args(Purpose)}
    assert len({stage.name for stage in STAGES.values()}) == len(STAGES)
    for kind, phase in product(get_args(Kind), get_args(Phase)):
        if (kind, phase) in STAGES:
            assert stage_of(request(kind, phase)).kind == kind
        else:
            with pytest.raises(PeerError, match=f"There is no '{kind}' of phase '{phase}'"):
                stage_of(request(kind, phase))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ([], ["train", "score"]),
        (
            ["train.start=lda", "personal.epochs=1"],
            ["statistics", "train", "score", "personal"],
        ),
        (
            ["train.start=regression", "model.train=head"],
            ["statistics", "gradients", "train", "score"],
        ),
        (
            ["train.start=auto", "model.train=head", "federation.rounds=0"],
            ["statistics", "fold-counts", "gradients", "train", "score"],
        ),
        (["pretrain.method=simclr", "model.train=all"], ["pretrain", "train", "score"]),
        (["privacy.epsilon=4", "privacy.method=gradients"], ["train"]),
        (
            [
                "privacy.epsilon=4",
                "privacy.score_share=0.1",
                "model.head=subspace",
                "model.train=head",
                "federation.rounds=1",
            ],
            ["centre", "class-sums", "score"],
        ),
    ],
)
def test_a_recipe_says_which_stages_its_run_has(changes, names):
    assert [stage.name for stage in stages_of(parse_recipe("", tuple(changes)))] == names


def test_the_examples_in_the_documentation_hold():
    found = doctest.testmod(stages)
    assert found.attempted
    assert not found.failed
