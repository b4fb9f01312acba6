"""What a site checks before it sends: whatever the coordinator forwards, in every wrong way."""

import hashlib

import pytest
from secure_lab import CTX, RULES, ReadySite, cohort_of, identity, members_of, names, view_of

from fgvc_core.errors import PeerError
from fgvc_core.protocol.keys import fingerprint, new_key, public_text
from fgvc_core.protocol.messages import CohortMember, Request, SignedText
from fgvc_core.secure.ready import Ready, context_of, read_ready, sign_ready
from fgvc_core.secure.rules import SumRules
from fgvc_core.secure.view import check_cohort, read_view


@pytest.fixture
def sites():
    return [ReadySite(name) for name in names(5)]


def test_all_members_see_the_same_view(sites):
    views = [view_of(sites, own) for own in sites]
    assert len({view.digest for view in views}) == 1
    assert views[0].names == tuple(names(5))
    assert views[0].keys("site-002").keys() == set(names(5)) - {"site-002"}
    assert view_of(sites[:4]).digest != views[0].digest


def test_the_digest_is_over_each_text_with_its_length(sites):
    texts = [site.text.encode() for site in sites]
    data = b"".join(len(text).to_bytes(8, "big") + text for text in texts)
    assert view_of(sites).digest == hashlib.sha256(b"fieldmark view v1" + data).digest()


def stranger(**changes):
    return ReadySite("site-002", **changes)


def edited(site):
    text = site.text.replace('"round":1', '"round":2')
    return SignedText(text=text, signature=site.signed.signature)


def test_whatever_is_wrong_in_a_set_is_refused(sites):
    twin = sites[0].secret
    other_encoding = int.from_bytes(bytes.fromhex(sites[1].ready.key), "little") | 1 << 255
    cases = {
        "are possible": sites[:2],
        "is ready for": [*sites[:2], stranger(round=2), *sites[3:]],
        "release, centre": [*sites[:2], stranger(phase="centre"), *sites[3:]],
        "(train)": [*sites[:2], stranger(kind="train"), *sites[3:]],
        "run 'old'": [*sites[:2], stranger(run="old"), *sites[3:]],
        "asked something else": [*sites[:2], stranger(ctx="d" * 64), *sites[3:]],
        "not sorted": [sites[0], sites[2], sites[1]],
        "named twice": [sites[0], sites[1], sites[1], sites[2]],
        "same fresh key": [*sites[:2], stranger(secret=twin), *sites[3:]],
        "one encoding": [
            *sites[:2], stranger(key=other_encoding.to_bytes(32, "little").hex()), *sites[3:]
        ],
        "own ready text": sites[1:],
        "not among the sites asked": [*sites, ReadySite("zorro")],
    }  # fmt: skip
    cohort = cohort_of(sites)
    for reason, forwarded in cases.items():
        with pytest.raises(PeerError) as refused:
            view_of(forwarded, sites[0], cohort=cohort)
        assert reason in str(refused.value), reason


def test_a_text_that_is_edited_or_signed_by_another_key_is_refused(sites):
    cohort = cohort_of(sites)
    signed = [site.signed for site in sites]
    with pytest.raises(PeerError, match="not signed by its own key"):
        read_view([*signed[:2], edited(sites[2]), *signed[3:]], sites[0].text, cohort, RULES)
    imposter = new_key()
    ready = sites[2].ready.model_copy(
        update={"identity": public_text(imposter.public_key()), "key": sites[3].ready.key}
    )
    forged = sign_ready(imposter, ready)
    # Its own signature holds; the key is not that of the cohort.
    read_ready(forged)
    with pytest.raises(PeerError, match="has another key"):
        read_view([*signed[:2], forged, *signed[3:]], sites[0].text, cohort, RULES)
    with pytest.raises(PeerError):
        read_ready(SignedText(text="{}", signature="0" * 128))


def test_a_ready_text_of_before_a_restore_is_not_the_stored_one(sites):
    """Its key is another: the masks could not be taken off."""
    before = ReadySite(sites[0].name)
    with pytest.raises(PeerError, match="own ready text"):
        view_of([before, *sites[1:]], sites[0], cohort=cohort_of(sites))


def test_who_is_asked_together_is_checked_before_any_work(sites):
    members, own = members_of(sites), fingerprint(identity(names(1)[0]).public_key())
    rules = SumRules(3, 6, 1)

    def check(cohort, name="site-000", key=own):
        return check_cohort(cohort, rules, name, key)

    assert check(members) == cohort_of(sites)
    twin = CohortMember(name="site-009", fingerprint=members[1].fingerprint)
    for reason, cohort in {
        "are possible": members[:2],
        "sorted": members[::-1],
        "twice": (*members[:2], *members[1:]),
        "same key": (*members, twin),
        "not among": members[1:],
    }.items():
        with pytest.raises(PeerError) as refused:
            check(cohort)
        assert reason in str(refused.value), reason
    with pytest.raises(PeerError, match="with another key"):
        check(members, key="0" * 64)
    with pytest.raises(PeerError, match="6 are possible"):
        check((*members, *(m.model_copy(update={"name": f"z{m.name}"}) for m in members)))


BASE = Request(
    kind="release", run="r", round=1, site="a", nonce="0" * 32, recipe_digest="1" * 64,
    phase="centre", tensors={"head.weight": "2" * 64},
    cohort=(CohortMember(name="a", fingerprint="3" * 64),),
)  # fmt: skip


def test_everything_that_is_asked_is_bound_but_what_has_to_differ():
    def ctx(coordinator="f" * 64, names=("x", "y"), **changes):
        return context_of(BASE.model_copy(update=changes), coordinator, names)

    same = ctx()
    for name, value in {
        "site": "b", "nonce": "9" * 32, "known_head": "4" * 64, "notice": "late"
    }.items():  # fmt: skip
        assert ctx(**{name: value}) == same
    different = [
        ctx(coordinator="e" * 64),
        ctx(names=("y", "x")),
        ctx(kind="train"),
        ctx(run="other"),
        ctx(round=2),
        ctx(recipe_digest="5" * 64),
        ctx(recipe="x = 1"),
        ctx(class_names=("x",)),
        ctx(proximal_mu=1e-9),
        ctx(phase="class-sums"),
        ctx(base_round=1),
        ctx(tensors={"head.weight": "6" * 64}),
        ctx(tensors={}),
        ctx(class_shares=(0.25, 0.75)),
        ctx(cohort=()),
        ctx(cohort=(CohortMember(name="a", fingerprint="7" * 64),)),
        ctx(ready=(SignedText(text="x", signature="0" * 128),)),
    ]
    assert len({same, *different}) == len(different) + 1
    # A field that is added to requests is bound, or is thought about here.
    assert set(Request.model_fields) == {
        "kind", "run", "round", "site", "nonce", "recipe_digest", "recipe", "class_names",
        "proximal_mu", "phase", "known_head", "base_round", "notice", "tensors", "cohort", "ready",
        "class_shares",
    }  # fmt: skip


def test_a_ready_text_says_where_it_is_of(sites):
    ready, found = read_ready(sites[0].signed)
    assert isinstance(ready, Ready)
    assert (ready.ctx, ready.site) == (CTX, "site-000")
    assert found == fingerprint(identity("site-000").public_key())
    assert str(ready.place) == "round 1 of run 'run' (release)"
