import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.privacy.sampling import clip_scales, protected_units, unit_names

pictures = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=14)


def units_of(kind, found):
    contents = [bytes([content]) for content, _ in found]
    subjects = [str(subject) for _, subject in found]
    return protected_units(kind, contents, subjects).tolist()


def test_byte_equal_pictures_are_one_unit_whatever_they_are_called():
    assert units_of("image", [(1, 1), (2, 1), (1, 2)]) == [0, 1, 0]


def test_all_pictures_of_a_subject_are_one_unit():
    assert units_of("subject", [(1, 1), (2, 1), (3, 2)]) == [0, 0, 1]


def test_subjects_that_share_a_picture_are_one_unit_also_through_a_third():
    chain = [(1, 1), (2, 2), (1, 3), (3, 3), (3, 2), (9, 9)]
    assert units_of("subject", chain) == [0, 0, 0, 0, 0, 1]


def test_no_examples_are_no_units():
    assert units_of("subject", []) == []


def classes(kind, found):
    """Connected components by repeated relabelling: slow, and not by union and find."""
    label = list(range(len(found)))
    for _ in found:
        for i, (content, subject) in enumerate(found):
            for j, (other_content, other_subject) in enumerate(found):
                same = content == other_content or (kind == "subject" and subject == other_subject)
                if same:
                    label[i] = label[j] = min(label[i], label[j])
    return label


@given(st.sampled_from(["image", "subject"]), pictures)
def test_units_are_the_components_numbered_from_zero(kind, found):
    units, label = units_of(kind, found), classes(kind, found)
    assert sorted(set(units)) == list(range(len(set(units))))
    pairs = {(a, b) for a, b in zip(units, label, strict=True)}
    assert len(pairs) == len(set(units)) == len(set(label))


@given(st.sampled_from(["image", "subject"]), pictures, st.integers(0, 20))
def test_taking_one_unit_out_changes_no_other(kind, found, pick):
    units = units_of(kind, found)
    if not units:
        return
    gone = pick % (max(units) + 1)
    left = [p for p, unit in zip(found, units, strict=True) if unit != gone]
    names = [n for n, u in zip(
        unit_names(np.array(units), [str(s) for _, s in found]), units, strict=True) if u != gone
    ]  # fmt: skip
    again = units_of(kind, left)
    kept = [unit for unit in units if unit != gone]
    assert len({(a, b) for a, b in zip(kept, again, strict=True)}) == len(set(kept))
    # Nor by which name its side of a split is drawn.
    assert unit_names(np.array(again, dtype=np.int64), [str(s) for _, s in left]) == names


@given(st.sampled_from(["image", "subject"]), pictures)
def test_a_units_pictures_share_one_name(kind, found):
    units = units_of(kind, found)
    names = unit_names(np.array(units, dtype=np.int64), [str(s) for _, s in found])
    assert len({(u, n) for u, n in zip(units, names, strict=True)}) == len(set(units))


squares = st.one_of(
    st.floats(0, 1e300),
    st.sampled_from([0.0, 5e-324, np.inf, np.nan, 1e308]),
)


@given(st.lists(squares, min_size=1, max_size=8), st.floats(1e-6, 1e6))
def test_scales_bound_every_norm_and_drop_what_is_not_finite(values, bound):
    found = clip_scales(np.array(values), bound)
    for square, scale in zip(values, found, strict=True):
        if not np.isfinite(square):
            assert scale == 0
            continue
        norm = np.sqrt(square)
        assert 0 < scale <= 1
        assert norm * scale <= bound * (1 + 1e-12)
        assert scale == 1 or norm > bound * (1 - 1e-12)
