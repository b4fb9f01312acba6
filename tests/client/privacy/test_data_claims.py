"""No data get a second ledger: the register of this user's homes."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from fgvc_core.errors import ConfigurationError, DataError, PeerError, PolicyRefusal
from fgvc_core.protocol.keys import fingerprint, new_key, public_text, write_private
from fieldmark.client.privacy import data_claims as register
from fieldmark.client.privacy.data_claims import DataClaim, Register, state_folder
from fieldmark.client.privacy.gate import Gate
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site

from ..protected_sites import (
    Work,
    announce,
    answer,
    ledger_of,
    opened,
    request,
    steps,
    unprotected,
    with_data,
)

COORDINATOR = public_text(new_key().public_key())
RECIPE = steps()


def join(home, data=None, **changes):
    return make_home(
        home,
        name=home.name,
        coordinator=COORDINATOR,
        cache=home.parent / "cache",
        data_path=None if data is None else str(data),
        units=40,
        **changes,
    )


@pytest.fixture
def data(tmp_path):
    (tmp_path / "pictures" / "wing").mkdir(parents=True)
    return tmp_path / "pictures"


@pytest.fixture
def first(tmp_path, data):
    return join(tmp_path / "first", data)


def claims():
    return [(claim.data, claim.home) for claim in Register().claims()]


@pytest.mark.parametrize(
    ("own", "xdg", "wanted"),
    [("/a/b", "/c", "/a/b"), ("", "/c", "/c/fieldmark"), ("", "", "/h/.local/state/fieldmark")],
)
def test_it_lies_in_the_users_state_folder(monkeypatch, own, xdg, wanted):
    monkeypatch.setenv("FIELDMARK_STATE", own)
    monkeypatch.setenv("XDG_STATE_HOME", xdg)
    monkeypatch.setenv("HOME", "/h")
    assert state_folder() == Path(wanted)


def test_a_home_with_pictures_of_its_own_is_registered(first, data):
    assert claims() == [(str(data), str(first.home))]
    assert first.settings.data.path == str(data)
    path = Register().path
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("how", ["same", "link", "inside", "around", "dots", "relative"])
def test_a_second_ledger_over_the_same_data_is_refused_and_the_first_is_named(
    first, data, tmp_path, how, monkeypatch
):
    (tmp_path / "link").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    again = {
        "same": data,
        "link": tmp_path / "link",
        "inside": data / "wing",
        "around": tmp_path,
        "dots": data / "wing" / "..",
        "relative": Path("pictures"),
    }[how]
    with pytest.raises(PolicyRefusal, match="have a ledger already") as caught:
        join(tmp_path / "second", again)
    assert caught.value.exit_code == 4
    # What may reach a coordinator names no path; what the person reads names the home.
    assert str(tmp_path) not in caught.value.what
    assert str(first.home) in caught.value.why
    assert str(Register().path) in caught.value.remedy
    assert not (tmp_path / "second").exists()
    assert len(claims()) == 1


def test_the_data_of_a_home_that_is_gone_are_still_taken(first, data, tmp_path):
    shutil.rmtree(first.home)
    with pytest.raises(PolicyRefusal, match="have a ledger already"):
        join(tmp_path / "second", data)
    # Knowingly, by hand: what was spent is not known.
    Register().path.write_text("[]")
    join(tmp_path / "second", data)


def test_other_data_and_data_without_a_path_are_free(first, tmp_path):
    (tmp_path / "pictures-2").mkdir()
    join(tmp_path / "second", tmp_path / "pictures-2")
    join(tmp_path / "third")
    assert len(claims()) == 2


def test_simulated_sites_share_a_data_set_and_are_not_in_it(data, tmp_path):
    for name in ("a", "b"):
        site = join(tmp_path / name, data, simulated=True)
        (site.home / "rows.json").write_text("[1, 2]")
        announce(Site.open(site.home), RECIPE)
    assert not Register().path.exists()


@pytest.mark.parametrize("harm", ["a file is there", "no key", "no coordinator"])
def test_a_home_that_could_not_be_made_lays_no_claim(data, tmp_path, harm, monkeypatch):
    changes = {}
    if harm == "a file is there":
        (tmp_path / "home").write_text("mine")
    elif harm == "no coordinator":
        changes = {"coordinator": "none"}
    else:
        monkeypatch.setattr(
            "fieldmark.client.provision.write_private",
            lambda *_: (_ for _ in ()).throw(OSError("full")),
        )
    with pytest.raises((ConfigurationError, PeerError, OSError)):
        make_home(
            tmp_path / "home",
            **{
                "name": "home",
                "coordinator": COORDINATOR,
                "cache": tmp_path,
                "data_path": str(data),
                **changes,
            },
        )
    assert claims() == []


def test_data_named_later_are_claimed_at_the_first_roll_call(data, tmp_path, first):
    second = join(tmp_path / "second")
    other = tmp_path / "others"
    other.mkdir()
    announce(with_data(second, path=str(other)), RECIPE)
    assert (str(other), str(second.home)) in claims()
    third = with_data(join(tmp_path / "third"), path=str(data))
    with pytest.raises(PolicyRefusal, match="have a ledger already"):
        announce(third, RECIPE)
    assert Gate(third).ledger.plans() == []


def test_a_home_that_was_moved_is_known_by_its_key(first, data, tmp_path):
    announce(first, RECIPE)
    first.home.rename(tmp_path / "moved")
    announce(Site.open(tmp_path / "moved"), RECIPE, "run-2")
    assert claims() == [(str(data), str(tmp_path / "moved"))]


def test_a_home_that_gets_a_new_key_keeps_its_data(first, data):
    announce(first, RECIPE)
    (first.home / "key").unlink()
    write_private(new_key(), first.home / "key")
    announce(Site.open(first.home), RECIPE, "run-2")
    assert claims() == [(str(data), str(first.home))]
    with pytest.raises(PolicyRefusal, match="have a ledger already"):
        join(first.home.with_name("second"), data)


@pytest.mark.parametrize("spent", [False, True])
def test_a_home_is_made_again_in_its_place_only_if_nothing_was_announced(first, data, spent):
    if spent:
        announce(first, RECIPE)
    shutil.rmtree(first.home)
    if spent:
        with pytest.raises(PolicyRefusal, match="older than the one that is registered"):
            join(first.home, data)
        assert not first.home.exists()
    else:
        join(first.home, data)
    assert claims() == [(str(data), str(first.home))]


def test_a_copy_of_a_home_is_a_second_ledger(first, tmp_path):
    announce(first, RECIPE)
    shutil.copytree(first.home, tmp_path / "copy")
    with pytest.raises(PolicyRefusal, match="have a ledger already"):
        announce(Site.open(tmp_path / "copy"), RECIPE, "run-2")
    announce(first, RECIPE, "run-2")


def test_an_old_copy_put_back_with_its_head_is_noticed_at_the_roll_call(first):
    announce(first, RECIPE)
    old = {name: (first.home / name).read_bytes() for name in ("ledger.jsonl", "ledger.head")}
    announce(first, RECIPE, "run-2")
    moved = first.home.with_name("as-a-new-process-sees-it")
    first.home.rename(moved)
    for name, text in old.items():
        (moved / name).write_bytes(text)
    with pytest.raises(PolicyRefusal, match="older than the one that is registered") as caught:
        announce(Site.open(moved), RECIPE, "run-4")
    assert str(Register().path) in caught.value.remedy


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"data": "a"}]', "\ufeff[", "[" * 9999])
def test_a_damaged_register_is_bad_data_and_refuses(data, tmp_path, text):
    Register().path.parent.mkdir(exist_ok=True)
    Register().path.write_text(text)
    with pytest.raises(DataError, match=r"register\.json"):
        join(tmp_path / "home", data)
    assert not (tmp_path / "home").exists()


def test_a_register_that_cannot_be_written_says_what_to_set(data, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FIELDMARK_STATE", str(tmp_path / "file" / "state"))
    with pytest.raises(ConfigurationError, match="cannot be written") as caught:
        join(tmp_path / "home", data)
    assert "FIELDMARK_STATE" in caught.value.remedy


def at_once(acts):
    """Exit code of each act, every one in a process of its own: 0 done, 4 refused, 1 failed."""
    children = []
    for act in acts:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                act()
                code = 0
            except PolicyRefusal:
                code = 4
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_two_processes_cannot_both_have_the_data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    homes = [tmp_path / f"home-{number}" for number in range(4)]
    codes = at_once([partial(join, home, folder) for home in homes])
    assert sorted(codes) == [0, 4, 4, 4]
    assert len(json.loads(Register().path.read_text())) == 1


def test_it_changes_nothing_for_a_claim_that_stands(first, data):
    before = Register().path.stat().st_mtime_ns
    claim = Register().claims()[0]
    Register().claim(claim)
    assert Register().path.stat().st_mtime_ns == before
    assert DataClaim.of(str(data), first.home, claim.key) == claim


def test_a_run_without_privacy_needs_no_register(data, tmp_path, monkeypatch):
    site = join(tmp_path / "home", data)
    monkeypatch.setenv("FIELDMARK_STATE", str(tmp_path / "nowhere" / "deep"))
    recipe = unprotected()
    assert Gate(site).announce(request(recipe, "roll_call", round_=0), recipe) is None
    assert not (tmp_path / "nowhere").exists()


def fill(folder, count=12, start=0, names="{:04d}.png"):
    """Pictures of random bytes: what is in them does not matter here."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        (folder / names.format(number)).write_bytes(os.urandom(300))
    return folder


def spend(site, run="run-1", round_=1):
    """One release, paid for."""
    announce(site, RECIPE, run)
    return answer(site, RECIPE, request(RECIPE, "train", run, round_))


def test_data_that_were_paid_for_stay_claimed_when_data_path_is_edited_away_and_back(
    first, data, tmp_path
):
    spend(first)
    other = fill(tmp_path / "others")
    with pytest.raises(PolicyRefusal, match="belongs to other data"):
        announce(with_data(first, path=str(other)), RECIPE, "run-2")
    with_data(first, path=str(data))
    with pytest.raises(PolicyRefusal, match="have a ledger already"):
        join(tmp_path / "second", data)
    # The other data were never this ledger's: they are free.
    join(tmp_path / "third", other)


def test_a_home_keeps_its_claim_to_each_data_set_that_it_ever_named(first, data, tmp_path):
    other = fill(tmp_path / "others")
    announce(with_data(first, path=str(other)), RECIPE)
    assert claims() == [(str(data), str(first.home)), (str(other), str(first.home))]
    for taken in (data, other):
        with pytest.raises(PolicyRefusal, match="have a ledger already"):
            join(tmp_path / "second", taken)


def test_the_claim_of_a_wiped_home_outlives_a_new_home_in_its_place(first, data, tmp_path):
    spend(first)
    shutil.rmtree(first.home)
    again = join(first.home, fill(tmp_path / "others"))
    spend(again)
    with pytest.raises(PolicyRefusal, match="have a ledger already"):
        join(tmp_path / "second", data)
    with pytest.raises(PolicyRefusal, match="older than the one that is registered"):
        Register().claim(DataClaim.of(str(data), again.home, "f" * 64))


@pytest.mark.parametrize("how", ["copied", "moved", "a part", "with more", "renamed"])
def test_a_copy_of_data_that_have_a_ledger_is_known_by_its_content(tmp_path, how):
    data = fill(tmp_path / "paid", 60)
    join(tmp_path / "first", data)
    copy = tmp_path / "copy"
    if how == "moved":
        data.rename(copy)
    else:
        shutil.copytree(data, copy)
    paths = sorted(copy.iterdir())
    if how == "a part":
        for path in paths[:30]:
            path.unlink()
    elif how == "with more":
        fill(copy, 10, 100)
    elif how == "renamed":
        for number, path in enumerate(paths):
            path.rename(copy / f"new-{number}.png")
    with pytest.raises(PolicyRefusal, match="have a ledger already") as caught:
        join(tmp_path / "second", copy)
    assert str(tmp_path) not in caught.value.what
    assert not (tmp_path / "second").exists()


def test_data_that_share_a_few_pictures_are_two_data_sets(tmp_path):
    data = fill(tmp_path / "one", 40)
    join(tmp_path / "first", data)
    other = fill(tmp_path / "two", 40)
    for path in sorted(data.iterdir())[:5]:
        shutil.copy(path, other / f"shared-{path.name}")
    join(tmp_path / "second", other)
    assert len(claims()) == 2


def test_the_register_knows_the_ledgers_head_after_each_reserve_and_reply(first):
    announce(first, RECIPE)
    heads = set()
    body = request(RECIPE, "train")

    def work():
        heads.add(Register().claims()[0].head)
        assert Register().claims()[0].head == ledger_of(first).head()[1]
        return Work(body)()

    answer(first, RECIPE, body, work)
    assert Register().claims()[0].head == ledger_of(first).head()[1]
    assert Register().claims()[0].head not in heads


def test_a_home_put_back_in_mid_run_releases_nothing(first):
    announce(first, RECIPE)
    shutil.copytree(first.home, first.home.with_name("backup"))
    answer(first, RECIPE, request(RECIPE, "train"))
    shutil.rmtree(first.home)
    # Under another name: a process that has read the ledger before sees the change by itself.
    put_back = Site.open(first.home.with_name("backup"))
    work = Work(request(RECIPE, "train"))
    with pytest.raises(PolicyRefusal, match="older than the one that is registered"):
        answer(put_back, RECIPE, work.asked, work)
    assert work.calls == 0


def test_a_home_put_back_between_charge_and_reply_does_not_release_twice_for_one_charge(first):
    announce(first, RECIPE)
    body = request(RECIPE, "train")
    backup = first.home.with_name("backup")

    def work():
        shutil.copytree(first.home, backup)
        return Work(body)()

    answer(first, RECIPE, body, work)
    shutil.rmtree(first.home)
    again = Work(body)
    with pytest.raises(PolicyRefusal, match="older than the one that is registered"):
        answer(Site.open(backup), RECIPE, body.model_copy(update={"nonce": "0" * 32}), again)
    assert again.calls == 0


def test_two_copies_of_a_home_after_the_roll_call_do_not_both_answer(first, tmp_path):
    announce(first, RECIPE)
    shutil.copytree(first.home, tmp_path / "copy")
    body = request(RECIPE, "train")
    answer(first, RECIPE, body)
    work = Work(body)
    with pytest.raises(PolicyRefusal, match="have a ledger already"):
        answer(Site.open(tmp_path / "copy"), RECIPE, body, work)
    assert work.calls == 0
    # The original goes on.
    answer(first, RECIPE, request(RECIPE, "train", round_=2))


def test_two_copies_of_a_home_without_data_of_its_own_do_not_both_answer(tmp_path):
    site = join(tmp_path / "first")
    announce(site, RECIPE)
    shutil.copytree(site.home, tmp_path / "copy")
    body = request(RECIPE, "train")
    answer(site, RECIPE, body)
    with pytest.raises(PolicyRefusal, match="in another home"):
        answer(Site.open(tmp_path / "copy"), RECIPE, body)


def test_of_two_copies_that_answer_at_once_one_is_refused(first, tmp_path):
    announce(first, RECIPE)
    shutil.copytree(first.home, tmp_path / "copy")
    body = request(RECIPE, "train")

    def answered(home):
        answer(Site.open(home), RECIPE, body)

    codes = at_once([partial(answered, home) for home in (first.home, tmp_path / "copy")])
    # Who comes second finds the other's home, and is refused; a copy that comes first may be too.
    assert codes.count(0) <= 1
    assert 4 in codes


def test_a_run_that_is_on_goes_on_where_the_register_is_gone(first):
    announce(first, RECIPE)
    Register().path.unlink()
    answer(first, RECIPE, request(RECIPE, "train"))
    assert Register().claims()[0].head == ledger_of(first).head()[1]


def test_a_register_of_an_earlier_version_is_read(first, data):
    old = [
        claim.model_dump(include={"data", "home", "key", "head"}) for claim in Register().claims()
    ]
    Register().path.write_text(json.dumps(old))
    spend(first)
    assert Register().claims()[0].length > 0


def test_no_message_makes_the_register_read_a_picture(tmp_path, monkeypatch):
    """Neither an answer nor its time may depend on one, also under a path without a sample."""
    site = join(tmp_path / "home", fill(tmp_path / "data"))
    taken = []
    real = register.take_sample
    monkeypatch.setattr(register, "take_sample", lambda *a: taken.append(a) or real(*a))
    announce(site, RECIPE)
    answer(site, RECIPE, request(RECIPE, "train"))
    announce(site, RECIPE, "run-2")
    assert taken == []
    other = with_data(join(tmp_path / "second"), path=str(fill(tmp_path / "others")))
    announce(other, RECIPE)
    announce(other, RECIPE, "run-2")
    assert taken == []
    Gate(other).admission.claim_data(afresh=True)
    assert len(taken) == 1


def test_one_picture_more_does_not_decide_over_a_roll_call(tmp_path):
    """The first home has all of the second's pictures; the second joined with an empty folder."""
    join(tmp_path / "first", fill(tmp_path / "data"))
    for number in (0, 8):
        folder = tmp_path / f"later-{number}"
        folder.mkdir()
        site = join(tmp_path / f"home-{number}", folder)
        for picture in sorted((tmp_path / "data").iterdir())[:number]:
            shutil.copy(picture, folder)
        announce(site, RECIPE)
        assert [plan.run for plan in Gate(site).ledger.plans()] == ["run-1"]


def test_data_that_grow_are_known_by_what_they_have_become(tmp_path):
    data = fill(tmp_path / "data", 20)
    site = join(tmp_path / "home", data)
    announce(site, RECIPE)
    for day in range(1, 9):
        fill(data / f"day-{day}", 20)
        Gate(site).admission.claim_data(afresh=True)
    late = tmp_path / "late"
    late.mkdir()
    for day in range(1, 9):
        shutil.copytree(data / f"day-{day}", late / f"day-{day}")
    with pytest.raises(PolicyRefusal, match="have a ledger already"):
        join(tmp_path / "second", late)


def test_one_picture_that_many_hand_out_makes_no_data_the_same(tmp_path):
    logo = fill(tmp_path / "logo", 1)
    join(tmp_path / "first", logo)
    other = fill(tmp_path / "other", 30)
    shutil.copy(next(logo.iterdir()), other / "logo.png")
    join(tmp_path / "second", other)
    assert {data for data, _ in claims()} == {str(logo), str(other)}


def test_a_key_that_is_in_use_elsewhere_is_said_to_be_that(tmp_path):
    """Not that the data have a ledger: they are others."""
    first = join(tmp_path / "first", fill(tmp_path / "data"))
    announce(first, RECIPE)
    copy = tmp_path / "copy"
    shutil.copytree(first.home, copy)
    (copy / "ledger.jsonl").unlink()
    (copy / "ledger.head").unlink()
    other = with_data(Site.open(copy), path=str(fill(tmp_path / "others")))
    with pytest.raises(PolicyRefusal, match="key is in use in another home"):
        announce(other, RECIPE)


def test_a_slow_look_at_the_data_does_not_set_the_head_back(tmp_path, monkeypatch):
    site = join(tmp_path / "home", fill(tmp_path / "data"))
    announce(site, RECIPE)
    real = register.take_sample

    def slow(*words):
        spend(site)
        return real(*words)

    monkeypatch.setattr(register, "take_sample", slow)
    Gate(site).admission.claim_data(afresh=True)
    (claim,) = Register().claims()
    assert (claim.length, claim.head) == Gate(site).ledger.head()


def test_a_lost_key_of_the_samples_is_said_and_not_replaced(tmp_path):
    data = fill(tmp_path / "data")
    join(tmp_path / "home", data)
    (Register().path.parent / "sample.key").unlink()
    with pytest.raises(DataError, match=r"sample\.key"):
        join(tmp_path / "second", fill(tmp_path / "others"))


def test_a_path_that_is_no_text_is_refused_before_it_bricks_the_register(tmp_path):
    odd = tmp_path / os.fsdecode(b"bilder-\xe4")
    odd.mkdir()
    with pytest.raises(ConfigurationError, match="cannot be written down"):
        join(tmp_path / "home", odd)
    join(tmp_path / "home", fill(tmp_path / "data"))


def test_a_new_key_takes_over_its_own_claims_alone(tmp_path):
    gone = join(tmp_path / "lyon", fill(tmp_path / "x"))
    announce(gone, RECIPE)
    shutil.rmtree(gone.home)
    here = join(tmp_path / "lyon", fill(tmp_path / "y"))
    announce(here, RECIPE)
    old = fingerprint(here.key.public_key())
    Register().rekey(here.home, "f" * 64, old)
    assert sorted(claim.key == "f" * 64 for claim in Register().claims()) == [False, True]


def test_the_register_holds_no_picture_and_is_for_its_owner_alone(tmp_path):
    join(tmp_path / "home", fill(tmp_path / "data", 300))
    (claim,) = Register().claims()
    assert len(claim.samples[0].marks) == 128
    for path in Register().path.parent.glob("*.*"):
        if not path.name.endswith(".lock"):
            assert path.stat().st_mode & 0o077 == 0, path


def test_data_that_change_slowly_stay_known_as_what_they_were(tmp_path):
    data = fill(tmp_path / "data", 40)
    site = join(tmp_path / "home", data)
    shutil.copytree(data, tmp_path / "first-copy")
    for batch in range(1, 6):
        for path in sorted(data.iterdir())[:15]:
            path.unlink()
        fill(data, 15, 1000 * batch)
        Gate(site).admission.claim_data(afresh=True)
    assert len(Register().claims()[0].samples) > 1
    for copy in (tmp_path / "first-copy", data):
        shutil.copytree(copy, tmp_path / "now", dirs_exist_ok=True)
        with pytest.raises(PolicyRefusal, match="have a ledger already"):
            join(tmp_path / "second", tmp_path / "now")
        shutil.rmtree(tmp_path / "now")


def test_home_and_register_put_back_together_are_not_noticed_here(first):
    """Only a coordinator that has seen more can tell."""
    announce(first, RECIPE)
    backup, register_then = first.home.with_name("backup"), Register().path.read_bytes()
    shutil.copytree(first.home, backup)
    reply = opened(first, answer(first, RECIPE, request(RECIPE, "train")))
    shutil.rmtree(first.home)
    Register().path.write_bytes(register_then)
    site = Site.open(backup)
    body = request(RECIPE, "train", round_=2)
    with pytest.raises(PolicyRefusal, match="The coordinator has seen an entry"):
        answer(site, RECIPE, body.model_copy(update={"known_head": reply.ledger_head}))
    answer(site, RECIPE, body)


def test_a_copy_on_another_machine_is_noticed_by_the_coordinators_next_request(
    first, tmp_path, monkeypatch
):
    announce(first, RECIPE)
    shutil.copytree(first.home, tmp_path / "copy")
    reply = opened(first, answer(first, RECIPE, request(RECIPE, "train")))
    monkeypatch.setenv("FIELDMARK_STATE", str(tmp_path / "another machine"))
    shutil.move(first.home, tmp_path / "out of sight")
    copy, body = Site.open(tmp_path / "copy"), request(RECIPE, "train", round_=2)
    with pytest.raises(PolicyRefusal, match="The coordinator has seen an entry"):
        answer(copy, RECIPE, body.model_copy(update={"known_head": reply.ledger_head}))
    # The very message that the other one has answered, both would answer.
    answer(copy, RECIPE, request(RECIPE, "train"))


def test_pictures_that_were_encoded_anew_elsewhere_are_not_noticed(tmp_path):
    data = fill(tmp_path / "data")
    join(tmp_path / "first", data)
    for path in sorted(data.iterdir()):
        (tmp_path / "anew").mkdir(exist_ok=True)
        (tmp_path / "anew" / path.name).write_bytes(path.read_bytes() + b"another encoder")
    join(tmp_path / "second", tmp_path / "anew")
    # Two claims on the same pictures: what the sharp edges say is not noticed.
    assert len(json.loads(Register().path.read_text())) == 2
