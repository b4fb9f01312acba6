from dataclasses import replace

import pytest

from fgvc_core.errors import ConfigurationError
from fieldmark.simulations.beginning.choosing import (
    RUNGS,
    Rung,
    choose,
    looking_minutes,
    rung_for,
    scratch_wins,
    worth_trying,
)
from fieldmark.simulations.beginning.trying import Trial

SLOW, FAST = 1e-3, 1e-9


def values(choices):
    return {f"{c.section}.{c.key}".lstrip("."): c.value for c in choices}


def trial(way, top1, macro_f1=None):
    return Trial(way, top1, top1 if macro_f1 is None else macro_f1, 1000, 0.01)


def test_the_closest_look_that_fits_the_time_is_taken(seen):
    disks = seen["disks"]
    assert rung_for(disks, FAST, 1.0) == Rung(96, 1, False), "twice the side of the pictures"
    large = replace(disks, short_side=400)
    assert rung_for(large, FAST, 1.0) == RUNGS[0]
    assert rung_for(large, SLOW, 0.001) == RUNGS[-1]
    between = looking_minutes(large, RUNGS[1], 1e-6)
    assert rung_for(large, 1e-6, between) == RUNGS[1]


def test_minutes_grow_with_pictures_looks_and_pixels(seen):
    one, three = (looking_minutes(seen["disks"], rung, 1e-6) for rung in (RUNGS[1], RUNGS[0]))
    assert three == pytest.approx(3 * one)
    alone = looking_minutes(replace(seen["disks"], cores=1), RUNGS[1], 1e-6)
    assert alone == pytest.approx(36 * 2 * 288**2 * 1e-6 / 60)


def test_the_network_that_is_clearly_better_is_taken(seen):
    disks = seen["disks"]
    assert not scratch_wins(disks, [], "top1")
    assert not scratch_wins(disks, [trial("frozen", 0.7), trial("scratch", 0.74)], "top1")
    assert scratch_wins(disks, [trial("frozen", 0.7), trial("scratch", 0.96)], "top1")
    assert scratch_wins(replace(disks, weights=False), [], "top1"), "there is nothing else"
    few = [trial("frozen", 0.9, 0.4), trial("scratch", 0.8, 0.6)]
    assert scratch_wins(disks, few, "macro-f1")


def test_an_earlier_map_that_is_clearly_better_is_taken_and_said(seen):
    lesions = [trial("frozen", 0.7, 0.38), trial("earlier", 0.69, 0.45), trial("scratch", 0.5, 0.3)]
    for rung in (RUNGS[0], RUNGS[3]):
        choices = choose(seen["disks"], "mine", rung, lesions, None, 20.0)
        # These classes are about equally large: top-1 decides, and it is no better.
        assert "model.until" not in values(choices)
        lesions_by_f1 = [replace(one, top1=one.macro_f1) for one in lesions]
        choices = choose(seen["disks"], "mine", rung, lesions_by_f1, None, 20.0)
        found = values(choices)
        assert (found["model.until"], found["model.pooling"]) == ("blocks.4", "moments")
        assert "model.closer" not in found, "where a map is strong is learned by its last stages"
        assert found.get("model.mirrored", False) == rung.mirrored
        why = next(choice.why for choice in choices if choice.key == "backbone")
        assert "38 % by a frozen backbone, 45 % by an earlier map of it and 30 %" in why
    hardly = [trial("frozen", 0.40), trial("earlier", 0.405), trial("scratch", 0.47)]
    assert "model.until" not in values(choose(seen["disks"], "m", RUNGS[3], hardly, None, 20.0))
    assert scratch_wins(seen["disks"], hardly, "top1")
    hardly[1] = trial("earlier", 0.43)
    assert not scratch_wins(seen["disks"], hardly, "top1"), "both are frozen"


def test_few_pictures_are_not_tried_on(seen):
    assert not worth_trying(seen["stripes"])


def test_real_photographs_get_a_frozen_backbone_and_a_closed_form(seen):
    found = values(choose(seen["disks"], "mine", RUNGS[0], [], None, 20.0))
    assert found["model.backbone"] == "tf_efficientnet_lite0"
    assert found["model.closer"] == 1.5
    assert found["train.start"] == "auto"
    assert found["train.start_metric"] == "top1"
    assert found["federation.rounds"] == 0
    assert found["partition.sites"] == 5


def test_unequal_classes_are_chosen_by_macro_f1_and_tiny_ones_by_nothing(seen):
    found = values(choose(seen["stripes"], "mine", RUNGS[3], [], 2, 20.0))
    assert found["train.start"] == "lda"
    larger = replace(seen["stripes"], table=seen["patches"].table)
    assert values(choose(larger, "mine", RUNGS[3], [], 2, 20.0))["train.start"] == "auto"


def test_the_tables_own_sites_are_the_sites_unless_a_number_is_said(seen):
    own = values(choose(seen["patches"], "mine", RUNGS[3], [], None, 20.0))
    assert (own["partition.scheme"], own["partition.column"]) == ("column", "hospital")
    said = values(choose(seen["patches"], "mine", RUNGS[3], [], 2, 20.0))
    assert (said["partition.scheme"], said["partition.sites"]) == ("dirichlet", 2)


def test_a_column_that_parts_a_subjects_pictures_names_no_sites(seen):
    table = seen["patches"].table
    first = table.subjects.index("animal 0")
    hospitals = ["Lyon"] * len(table)
    for at in range(len(table)):
        if at != first and (table.subjects[at] == "animal 0" or at % 2):
            hospitals[at] = "Bern"
    parted = replace(table, columns={"hospital": tuple(hospitals)})
    found = values(choose(replace(seen["patches"], table=parted), "mine", RUNGS[3], [], None, 20.0))
    assert found["partition.sites"] == 5


def test_sites_with_few_pictures_share_alike(seen):
    found = values(choose(seen["disks"], "mine", RUNGS[3], [], 4, 20.0))
    assert found["partition.scheme"] == "iid"


def test_more_sites_than_pictures_are_refused(seen):
    with pytest.raises(ConfigurationError, match="27 training pictures cannot be dealt"):
        choose(seen["disks"], "mine", RUNGS[3], [], 500, 20.0)


def test_rounds_from_scratch_fit_the_time(seen):
    wins = [trial("frozen", 0.2), trial("scratch", 0.9)]
    disks = replace(seen["disks"], cores=1)
    found = values(choose(disks, "mine", RUNGS[3], wins, 2, 20.0))
    assert found["model.backbone"] == "fieldmark_nano"
    assert found["federation.rounds"] == 80
    # 27 pictures of 0.01 s a round.
    short = values(choose(disks, "mine", RUNGS[3], wins, 2, 10 * 27 * 0.01 / 60))
    assert short["federation.rounds"] == 10


def test_every_choice_has_its_reason(seen):
    for trials in ([], [trial("frozen", 0.2), trial("scratch", 0.9)]):
        for choice in choose(seen["patches"], "mine", RUNGS[0], trials, None, 20.0):
            assert len(choice.why) > 10, choice
