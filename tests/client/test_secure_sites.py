"""Whole sites of a masked sum against a coordinator that sends whatever it likes.

After each attack the site has refused, its ledger says so and has charged nothing for it, and no
subset of all answers is a sum of values but the one sum that everybody agreed to.
"""

import os
import shutil
import signal
from itertools import combinations

import numpy as np
import pytest
from secure_sites import CLASSES, MODEL, SIZES, Sites, files_of, given

from fgvc_core.protocol.keys import fingerprint, new_key, public_text
from fgvc_core.protocol.messages import CohortMember, SignedText
from fgvc_core.recipe import parse_recipe
from fgvc_core.secure.masks import new_secret, public_key
from fgvc_core.secure.ready import Ready, sign_ready
from fieldmark.client.privacy import masked
from fieldmark.client.privacy.chain import Chain
from fieldmark.client.privacy.outbox import Outbox


def sums(sites, names, phase="centre"):
    return np.sum([sites.values[name][phase] for name in names], axis=0).reshape(-1)


def check_refused(sites, name, reply, before, said):
    """Refused with a reason, recorded, and the ledger as it was in everything that counts."""
    assert reply.code in ("refused-policy", "refused-request"), reply
    assert said in reply.reason, reply.reason
    assert (reply.ready, reply.tensors) == (None, {})
    after = sites.kinds(name)
    assert after[-2:] == ["refused", "sent"]
    counted = ("reserved", "ready", "view")
    assert [k for k in after if k in counted] == [k for k in before[0] if k in counted]
    assert sites.spent(name) == before[1]


def state(sites, name):
    return sites.kinds(name), sites.spent(name)


def test_both_sums_of_a_round_are_those_of_the_set(sites):
    for phase in SIZES:
        ready = sites.all_ready(phase=phase)
        parts = [sites.send(name, ready, phase)[1] for name in sites.names]
        found = sites.opened(parts, phase)
        scale = sites.scale(phase, 5)
        noise = found - sums(sites, sites.names, phase)
        assert np.abs(noise).max() < 12 * scale.step * 1024 * np.sqrt(5)
        assert np.abs(noise).max() > 0
    for name in sites.names:
        counted = [k for k in sites.kinds(name) if k in ("reserved", "ready", "view")]
        assert counted == ["reserved", "ready", "view"] * 2
        together, alone = sites.spent(name)
        assert 3.99 <= together <= 5.0
        assert alone > 1.8 * together


def test_any_set_of_three_or_more_that_are_ready_is_opened(sites):
    ready = sites.all_ready(sites.names[1:4])
    parts = [sites.send(name, ready)[1] for name in sites.names[1:4]]
    assert np.abs(sites.opened(parts) - sums(sites, sites.names[1:4])).max() < 100
    # The fourth was never asked to work.
    assert sites.calls == [(name, "centre") for name in sites.names[1:4]]


def test_asked_again_a_site_says_and_sends_the_same_and_is_charged_once(sites):
    ready = sites.all_ready()
    assert [signed.text for signed in sites.all_ready()] == [signed.text for signed in ready]
    first = [sites.send(name, ready)[1] for name in sites.names]
    again = [sites.send(name, ready)[1] for name in sites.names]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one, other)
    # Also after the part was sent, the first trip's answer is the same.
    assert [signed.text for signed in sites.all_ready()] == [signed.text for signed in ready]
    assert len(sites.calls) == 5
    assert sites.kinds("site-0").count("reserved") == 1


def test_another_set_to_some_opens_nothing(sites):
    """Five sites, all ways to tell them one of two sets: no subset of answers is a sum of values.

    A part of one set and one of another keep their masks; a site answers one set.
    """
    ready = dict(zip(sites.names, sites.all_ready(), strict=True))
    whole = tuple(ready.values())
    fewer = tuple(ready[name] for name in sites.names[:4])
    told = {"site-0": fewer, "site-1": fewer, "site-2": whole, "site-3": whole, "site-4": whole}
    parts = {name: sites.send(name, views)[1] for name, views in told.items()}
    assert all(part is not None for part in parts.values())
    # Every other set is refused now, at every site.
    for name in sites.names:
        other = whole if told[name] is fewer else fewer
        if name in [n for n, signed in ready.items() if signed in other]:
            before = state(sites, name)
            reply, part = sites.send(name, other)
            assert part is None
            check_refused(sites, name, reply, before, "another set of sites")
    for size in range(1, 6):
        for chosen in combinations(parts.values(), size):
            words = sum(chosen, np.zeros(4, np.uint64)).view(np.int64)
            assert np.abs(words.astype(float)).max() > 1e12


def test_one_less_after_the_sum_is_refused_and_the_first_set_is_named(sites):
    ready = sites.all_ready()
    _, part = sites.send("site-0", ready)
    before = state(sites, "site-0")
    reply, nothing = sites.send("site-0", ready[:4])
    assert nothing is None
    check_refused(sites, "site-0", reply, before, "another set of sites")
    view = next(e for e in sites.entries("site-0") if e.kind == "view").values
    assert view["view"][:16] in reply.reason
    assert view["names"] == sites.names
    assert np.array_equal(sites.send("site-0", ready)[1], part)


def test_a_second_set_from_a_copy_with_the_clear_value_finds_the_first_in_the_ledger(sites):
    """Only the outbox was put back: the ledger knows the view, and the same set gets the bytes."""
    ready = sites.all_ready()
    home = sites.homes["site-0"]
    shutil.copytree(home / "outbox", sites.folder / "copy")
    _, part = sites.send("site-0", ready)
    shutil.rmtree(home / "outbox")
    shutil.copytree(sites.folder / "copy", home / "outbox")
    before = state(sites, "site-0")
    reply, nothing = sites.send("site-0", ready[:4])
    assert nothing is None
    check_refused(sites, "site-0", reply, before, "another set of sites")
    assert np.array_equal(sites.send("site-0", ready)[1], part)


def changed(sites, name="site-0"):
    """Ways to ask one site something else at a place where it has said that it is ready."""
    other_model = {"head.centre": np.ones(4, np.float32)}
    few = sites.members(sites.names[:4])
    return {
        "another model": {"model": other_model},
        "another cohort": {"cohort": few},
        "base round": {"base_round": 1},
        "pull": {"proximal_mu": 1e9},
    }


def test_asked_something_else_at_the_same_place_a_site_refuses(sites):
    sites.all_ready()
    for what, changes in changed(sites).items():
        before = state(sites, "site-0")
        reply = sites.ready("site-0", **changes)
        said = "starts from no round" if what == "base round" else "something else before"
        check_refused(sites, "site-0", reply, before, said)
    assert len(sites.calls) == 5


def test_sites_that_were_asked_differently_refuse_each_others_texts(sites):
    """The coordinator tells one site another model, cohort, class order or setting."""
    ready = dict(zip(sites.names[1:], sites.all_ready(sites.names[1:]), strict=True))
    other = sites.ready("site-0", model={"head.centre": np.ones(4, np.float32)})
    assert other.code == "ok"
    mixed = (other.ready, *ready.values())
    for name in sites.names:
        before = state(sites, name)
        reply, part = sites.send(name, mixed)
        assert part is None
        check_refused(sites, name, reply, before, "was asked something else")
    # The four that were asked the same are not held back.
    for name, signed in ready.items():
        assert signed in tuple(ready.values())
        assert sites.send(name, tuple(ready.values()))[1] is not None


def test_another_class_order_is_another_question(tmp_path, monkeypatch):
    sites = Sites(tmp_path)
    given(monkeypatch, sites.values)
    sites.announce(names=sites.names[:4])
    sites.announce(names=sites.names[4:], classes=CLASSES[::-1])
    ready = sites.all_ready()
    before = state(sites, "site-0")
    reply, part = sites.send("site-0", ready)
    assert part is None
    check_refused(sites, "site-0", reply, before, "was asked something else")


def forged(sites, name="site-3", **changes):
    """A text for a site, signed by a key that the coordinator has made up."""
    key = new_key()
    ready = Ready.parse(sites.ready("site-0").ready.text).model_copy(
        update={"site": name, "identity": public_text(key.public_key()),
                "key": public_key(new_secret()), **changes}
    )  # fmt: skip
    return sign_ready(key, ready)


def resigned(sites, signed, **changes):
    """A site's text with changes, signed by its own key: a malicious site's."""
    ready = Ready.parse(signed.text)
    key = sites.site(ready.site).key
    return sign_ready(key, ready.model_copy(update=changes))


def wrong_sets(sites, ready):
    """Reason -> a set that a site must refuse."""
    edited = SignedText(
        text=ready[3].text.replace('"round":1', '"round":2'), signature=ready[3].signature
    )
    same_key = Ready.parse(ready[2].text).key
    high_bit = int.from_bytes(bytes.fromhex(same_key), "little") | 1 << 255
    return {
        "are possible": ready[:2],
        "not signed by its own key": (*ready[:3], edited, ready[4]),
        "has another key": (*ready[:3], forged(sites), ready[4]),
        "is ready for": (*ready[:3], resigned(sites, ready[3], round=2), ready[4]),
        "something else": (*ready[:3], resigned(sites, ready[3], ctx="a" * 64), ready[4]),
        "not sorted": (ready[0], ready[2], ready[1]),
        "named twice": (*ready[:2], ready[1], ready[2]),
        "same fresh key": (*ready[:3], resigned(sites, ready[3], key=same_key), ready[4]),
        "one encoding": (
            *ready[:3],
            resigned(sites, ready[3], key=high_bit.to_bytes(32, "little").hex()),
            ready[4],
        ),
        "site 'site-3' is a point of small order": (
            *ready[:3],
            resigned(sites, ready[3], key="00" * 32),
            ready[4],
        ),
        "own ready text": ready[1:],
    }


def test_whatever_is_wrong_in_a_set_is_refused_and_the_right_one_still_answered(sites):
    ready = sites.all_ready()
    for said, forwarded in wrong_sets(sites, ready).items():
        before = state(sites, "site-0")
        reply, part = sites.send("site-0", forwarded)
        assert part is None
        check_refused(sites, "site-0", reply, before, said)
    parts = [sites.send(name, ready)[1] for name in sites.names]
    assert np.abs(sites.opened(parts) - sums(sites, sites.names)).max() < 100


def test_a_text_of_another_place_or_of_before_a_restore_is_refused(sites):
    ready = sites.all_ready()
    # The other sites have gone on to the next sum.
    other = sites.all_ready(sites.names[1:], phase="class-sums")
    before = state(sites, "site-0")
    reply, part = sites.send("site-0", (ready[0], other[0], *ready[2:]))
    assert part is None
    check_refused(sites, "site-0", reply, before, "is ready for")
    # A request to send that names another phase than its texts.
    reply, part = sites.send("site-0", ready, phase="class-sums")
    assert part is None
    check_refused(sites, "site-0", reply, before, "about another place")


def cohorts(sites):
    """Reason -> a cohort that a site must refuse before it works."""
    twin = sites.cohort[1].fingerprint
    stranger = CohortMember(name="stranger", fingerprint="5" * 64)
    return {
        "are possible": sites.cohort[:2],
        "5 are possible": (*sites.cohort, stranger),
        "not sorted": sites.cohort[::-1],
        "named twice": (*sites.cohort[:2], *sites.cohort[1:4]),
        "same key": (*sites.cohort[:4], CohortMember(name="site-9", fingerprint=twin)),
        "not among the sites": sites.cohort[1:],
        "compared the key of site 'stranger'": (*sites.cohort[:4], stranger),
        "another than this site has pinned": (
            *sites.cohort[:4], CohortMember(name="site-4", fingerprint="6" * 64)
        ),
    }  # fmt: skip


def test_a_cohort_that_is_not_possible_or_not_pinned_is_refused_uncharged(sites):
    for said, cohort in cohorts(sites).items():
        before = state(sites, "site-0")
        check_refused(sites, "site-0", sites.ready("site-0", cohort=cohort), before, said)
    assert sites.calls == []


def test_a_single_answer_is_not_what_this_run_asks_for(sites):
    before = state(sites, "site-0")
    reply = sites.ready("site-0", cohort=())
    check_refused(sites, "site-0", reply, before, "names no sites to add up over")
    reply = sites.ready("site-0", phase="", cohort=())
    assert reply.code == "refused-request"
    reply, _ = sites.ask("site-0", sites.body("site-0", "train"), MODEL)
    assert reply.code == "refused-request"
    assert sites.calls == []


def test_a_run_without_secure_is_never_asked_for_a_masked_sum(tmp_path, monkeypatch):
    sites = Sites(tmp_path)
    calls = given(monkeypatch, sites.values)
    plain = parse_recipe(sites.recipe.to_toml().split("[secure]")[0])
    sites.announce(recipe=plain)
    body = sites.body("site-0", "release", recipe=plain, phase="centre", cohort=sites.cohort)
    before = state(sites, "site-0")
    reply, _ = sites.ask("site-0", body, MODEL)
    check_refused(sites, "site-0", reply, before, "has no [secure]")
    assert calls == []


def test_a_site_that_was_never_ready_sends_nothing(sites):
    ready = sites.all_ready(sites.names[1:])
    before = state(sites, "site-0")
    made_up = resigned(sites, ready[0], site="site-1")
    reply, part = sites.send("site-0", (made_up, *ready[1:]))
    assert part is None
    check_refused(sites, "site-0", reply, before, "own ready text")


def test_after_it_was_sent_no_clear_value_key_or_seed_is_in_any_file(sites):
    ready = sites.all_ready()
    home = sites.homes["site-0"]
    (key,) = [k for k, _ in Outbox(home).stored("sum-")]
    kept = Outbox(home).find(key)
    secret, noise = kept.fields["secret"], kept.fields["noise"]
    clear = kept.tensors["value"].tobytes()
    assert clear == sites.values["site-0"]["centre"].tobytes()
    peers = {Ready.parse(s.text).site: Ready.parse(s.text).key for s in ready}
    _, part = sites.send("site-0", ready)
    assert part is not None
    from fgvc_core.secure.masks import noise_seed, pair_seed

    view = bytes.fromhex(
        next(e for e in sites.entries("site-0") if e.kind == "view").values["view"]
    )
    hidden = [bytes.fromhex(secret), bytes.fromhex(noise), noise_seed(bytes.fromhex(noise), view)]
    hidden += [
        pair_seed(bytes.fromhex(secret), "site-0", other, name, view)
        for name, other in peers.items()
        if name != "site-0"
    ]
    found = files_of(sites.folder)
    assert len(found) > 30
    for path, data in found.items():
        if path.is_relative_to(home) or path.suffix in (".log", ".jsonl"):
            assert clear not in data, path
            for word in hidden:
                assert word not in data, path
                assert word.hex().encode() not in data, path


def restored(sites, names, copies):
    for name in names:
        shutil.rmtree(sites.homes[name])
        shutil.copytree(copies / name, sites.homes[name])


@pytest.mark.parametrize("stage", ["before", "ready"])
def test_all_homes_but_one_put_back_open_no_second_sum(sites, stage):
    """With one home that is not put back, a second set over it is refused; without it, the sum is
    over other values' masks: the first answers' values are in one sum only."""
    if stage == "before":
        shutil.copytree(sites.folder, sites.folder.with_name(sites.folder.name + "-copies"))
        ready = sites.all_ready()
    else:
        ready = sites.all_ready()
        shutil.copytree(sites.folder, sites.folder.with_name(sites.folder.name + "-copies"))
    first = {name: sites.send(name, ready)[1] for name in sites.names}
    restored(sites, sites.names[1:], sites.folder.with_name(sites.folder.name + "-copies"))
    from fieldmark.client.privacy import ledger

    ledger._OPEN.clear()
    again = dict(zip(sites.names, sites.all_ready(), strict=True))
    for size in (3, 4, 5):
        for chosen in combinations(sites.names, size):
            if "site-0" not in chosen:
                continue
            forwarded = tuple(again[name] for name in chosen)
            reply, part = sites.send("site-0", forwarded)
            same = [s.text for s in forwarded] == [s.text for s in ready]
            assert (part is None) is not same
            if part is not None:
                assert np.array_equal(part, first["site-0"])
            else:
                assert "another set of sites" in reply.reason
    # The four that were put back can answer a set of their own. It is *disjoint* from what the
    # first answer of site-0 opens with: no subset of all answers but the two sums is in the clear.
    others = tuple(again[name] for name in sites.names[1:])
    second = {name: sites.send(name, others)[1] for name in sites.names[1:]}
    parts = [first["site-0"], *(second[name] for name in sites.names[1:])]
    words = sum(parts, np.zeros(4, np.uint64)).view(np.int64)
    assert np.abs(words.astype(float)).max() > 1e12


POINTS = [
    (Outbox, "store", 0), (Outbox, "store", 1), (Chain, "append", 0), (Chain, "append", 1),
    (Chain, "append", 2), (Chain, "append", 3), (Chain, "append", 4),
]  # fmt: skip


class Killed(BaseException):
    """As kill -9: nothing behind it runs."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("point", range(len(POINTS)))
def test_a_site_that_dies_at_any_line_answers_one_set_and_the_same_sum(
    sites, monkeypatch, point, after
):
    """Killed before or after each durable write of both trips; then asked again."""
    kind, name, number = POINTS[point]
    original, seen = getattr(kind, name), []

    def write(self, *values, **named):
        home = self.path.parent if kind is Chain else self._folder.parent
        if home != sites.homes["site-0"]:
            return original(self, *values, **named)
        seen.append(1)
        if len(seen) == number + 1 and not after:
            raise Killed
        done = original(self, *values, **named)
        if len(seen) == number + 1:
            raise Killed
        return done

    others = sites.all_ready(sites.names[1:])
    monkeypatch.setattr(kind, name, write)
    killed = 0
    for _ in range(2):
        try:
            first = sites.ready("site-0")
            break
        except Killed:
            killed += 1
    ready = (first.ready, *others)
    for _ in range(2):
        try:
            _, part = sites.send("site-0", ready)
            break
        except Killed:
            killed += 1
    assert killed == 1
    assert part is not None
    # Another set is refused wherever it died.
    reply, nothing = sites.send("site-0", ready[:4])
    assert nothing is None
    assert "another set of sites" in reply.reason
    parts = [part, *(sites.send(other, ready)[1] for other in sites.names[1:])]
    assert np.abs(sites.opened(parts) - sums(sites, sites.names)).max() < 100
    counted = [k for k in sites.kinds("site-0") if k in ("reserved", "ready", "view")]
    assert counted == ["reserved", "ready", "view"]


def test_a_value_that_has_passed_is_deleted(sites):
    sites.all_ready()
    assert len(Outbox(sites.homes["site-0"]).stored("sum-")) == 1
    ready = sites.all_ready(phase="class-sums")
    kept = [
        Outbox(sites.homes["site-0"]).find(k)
        for k, _ in Outbox(sites.homes["site-0"]).stored("sum-")
    ]
    assert len(kept) == 1
    assert '"phase":"class-sums"' in kept[0].fields["text"]
    before = state(sites, "site-0")
    reply = sites.ready("site-0")
    check_refused(sites, "site-0", reply, before, "is gone")
    assert sites.send("site-0", ready, "class-sums")[1] is not None


def test_a_value_that_nobody_asks_for_is_deleted_after_thirty_days(sites, monkeypatch):
    sites.all_ready()
    sites.announce("run-2")
    monkeypatch.setattr(masked, "KEPT_S", -1.0)
    # The budget has room for what is charged: another run begins.
    sites.ready("site-0", run="run-2")
    keys = [k for k, _ in Outbox(sites.homes["site-0"]).stored("sum-")]
    assert all("run-1" not in Outbox(sites.homes["site-0"]).find(k).fields["text"] for k in keys)


def test_what_a_crash_has_left_of_a_clear_value_is_deleted_with_the_next_request(sites):
    sites.all_ready()
    folder = sites.homes["site-0"] / "outbox"
    for name, when in (("old", 1.0), ("new", None)):
        (folder / f"sum-{name}.safetensors.part").write_bytes(b"clear")
        if when is not None:
            os.utime(folder / f"sum-{name}.safetensors.part", (when, when))
    sites.all_ready(phase="class-sums")
    # The new one may be another process's, which is writing now.
    assert [path.name for path in folder.glob("*.part")] == ["sum-new.safetensors.part"]


def test_two_processes_with_two_sets_answer_one(sites):
    """The lock of the place and the ledger's: whoever comes second is refused."""
    from concurrent.futures import ThreadPoolExecutor

    ready = sites.all_ready()
    sets = [ready, ready[:4], ready[:3], (ready[0], *ready[2:])]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda chosen: sites.send("site-0", chosen), sets))
    parts = [part for _, part in found if part is not None]
    assert len(parts) == 1
    assert sites.kinds("site-0").count("view") == 1


def test_an_old_copy_of_the_home_is_charged_again_for_what_it_forgot(sites):
    """It has new keys and new noise; what it had opened before stays closed."""
    shutil.copytree(sites.homes["site-0"], sites.folder.with_name(sites.folder.name + "-copy"))
    ready = sites.all_ready()
    parts = [sites.send(name, ready)[1] for name in sites.names]
    assert all(part is not None for part in parts)
    shutil.rmtree(sites.homes["site-0"])
    shutil.copytree(sites.folder.with_name(sites.folder.name + "-copy"), sites.homes["site-0"])
    from fieldmark.client.privacy import ledger

    ledger._OPEN.clear()
    again = sites.ready("site-0")
    assert again.code == "ok"
    assert again.ready.text != ready[0].text
    assert sites.kinds("site-0").count("reserved") == 1
    reply, nothing = sites.send("site-1", (again.ready, *ready[1:]))
    assert nothing is None
    assert "another set of sites" in reply.reason
    assert fingerprint(sites.site("site-0").key.public_key()) == sites.cohort[0].fingerprint


def killed_at(sites, others, number):
    """A process of its own answers both trips and is killed at its n-th call to the disk.

    Returns:
        Whether it was killed; False if it came to its end.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)
    seen = []

    def dying(function):
        def call(*values, **named):
            seen.append(1)
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*values, **named)

        return call

    os.fsync, os.replace = dying(os.fsync), dying(os.replace)
    ready = sites.ready("site-0")
    sites.send("site-0", (ready.ready, *others))
    os._exit(0)


@pytest.mark.slow
def test_a_site_that_is_killed_at_any_call_to_the_disk_answers_one_set(tmp_path, monkeypatch):
    """kill -9 in a real process, at every call in turn; another set is refused wherever it died."""
    number = 1
    while True:
        sites = Sites(tmp_path / str(number))
        given(monkeypatch, sites.values)
        sites.announce()
        others = sites.all_ready(sites.names[1:])
        if not killed_at(sites, others, number):
            break
        ready = (sites.ready("site-0").ready, *others)
        _, part = sites.send("site-0", ready)
        reply, nothing = sites.send("site-0", ready[:4])
        assert nothing is None
        assert "another set of sites" in reply.reason
        parts = [part, *(sites.send(other, ready)[1] for other in sites.names[1:])]
        assert np.abs(sites.opened(parts) - sums(sites, sites.names)).max() < 100, number
        counted = [k for k in sites.kinds("site-0") if k in ("reserved", "ready", "view")]
        assert counted == ["reserved", "ready", "view"], number
        clear = sites.values["site-0"]["centre"].tobytes()
        assert not any(clear in data for data in files_of(sites.homes["site-0"]).values()), number
        number += 1
    assert number > 12
