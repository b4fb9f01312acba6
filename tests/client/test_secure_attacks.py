"""Sites of masked sums attacked from their disk and from two processes at once."""

import os
import shutil
import time

import numpy as np
import pytest
from secure_sites import Sites, files_of, given

from fgvc_core.protocol.keys import fingerprint, new_key, public_text
from fgvc_core.protocol.messages import CohortMember
from fgvc_core.secure.masks import new_secret, public_key
from fgvc_core.secure.ready import Ready, sign_ready
from fieldmark.client.privacy import ledger
from fieldmark.client.privacy.outbox import Outbox
from fieldmark.client.privacy.peers import Peers
from fieldmark.client.privacy.report import write_report

SAVED = ("ledger.jsonl", "ledger.head")


def copied(home, names, folder):
    """Copies of parts of a home."""
    folder.mkdir()
    for name in names:
        source = home / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)


def put_back(home, folder):
    for source in folder.iterdir():
        if source.is_dir():
            shutil.rmtree(home / source.name)
            shutil.copytree(source, home / source.name)
        else:
            shutil.copy(source, home / source.name)
    ledger._OPEN.clear()


@pytest.mark.parametrize("when", ["announced", "ready"])
@pytest.mark.parametrize("parts", [SAVED, ("outbox",)], ids=["ledger", "outbox"])
def test_with_only_one_of_ledger_and_outbox_put_back_a_second_set_is_refused(sites, parts, when):
    home, copy = sites.homes["site-0"], sites.folder.with_name(sites.folder.name + "-copy")
    Outbox(home)._folder.mkdir(exist_ok=True)
    if when == "announced":
        copied(home, parts, copy)
    ready = sites.all_ready()
    if when == "ready":
        copied(home, parts, copy)
    _, part = sites.send("site-0", ready)
    assert part is not None
    spent = sites.spent("site-0")
    put_back(home, copy)
    for chosen in (ready[:4], ready[:3], (ready[0], *ready[2:])):
        assert sites.send("site-0", chosen)[1] is None
    # Asked for its work again, it says the same (charged again where that was forgotten), or that
    # it is gone; never a second key for the same place.
    again = sites.ready("site-0")
    assert again.code == "refused-policy" or again.ready.text == ready[0].text
    for chosen in (ready[:4], ready[:3]):
        assert sites.send("site-0", chosen)[1] is None
    same = sites.send("site-0", ready)[1]
    assert same is None or np.array_equal(same, part)
    assert sites.spent("site-0") == spent
    assert len([call for call in sites.calls if call == ("site-0", "centre")]) == 1


@pytest.mark.parametrize("when", ["announced", "ready"])
def test_a_whole_home_put_back_between_the_trips_answers_nothing(tmp_path, monkeypatch, when):
    """A real home: it has its keys of then, and the register outside it knows of what was sent.

    A copy of between the trips would answer a second set under the same charge. Where the register
    is put back too, nothing at the site can tell (docs/secure-aggregation.md says so).
    """
    sites = Sites(tmp_path, count=3, simulated=False)
    given(monkeypatch, sites.values)
    sites.announce()
    home, copy = sites.homes["site-0"], tmp_path / "copy"
    if when == "announced":
        shutil.copytree(home, copy)
    ready = sites.all_ready()
    if when == "ready":
        shutil.copytree(home, copy)
    assert sites.send("site-0", ready)[1] is not None
    shutil.rmtree(home)
    shutil.copytree(copy, home)
    ledger._OPEN.clear()
    for chosen in (ready, ready[:2]):
        assert sites.send("site-0", chosen)[1] is None
    reply = sites.ready("site-0")
    assert (reply.code, reply.ready) == ("refused-policy", None)
    assert "older" in reply.reason or "old copy" in reply.reason


def test_a_key_that_was_compared_later_does_not_vouch_for_the_one_that_a_sum_was_sent_under(
    tmp_path, monkeypatch
):
    """first-seen, and an invented site-4 in the sum; then people compare the true one's key."""
    sites = Sites(tmp_path, pinned=False, peers="first-seen", epsilon_cap="none")
    given(monkeypatch, sites.values)
    sites.announce()
    key = new_key()
    invented = CohortMember(name="site-4", fingerprint=fingerprint(key.public_key()))
    cohort = (*sites.cohort[:4], invented)
    ready = sites.all_ready(sites.names[:4], cohort=cohort)
    made_up = Ready.parse(ready[0].text).model_copy(
        update={"site": "site-4", "identity": public_text(key.public_key()),
                "key": public_key(new_secret())}
    )  # fmt: skip
    ready = (*ready, sign_ready(key, made_up))
    assert sites.send("site-0", ready)[1] is not None
    assert "another than this site has pinned" in sites.ready("site-0", "class-sums").reason
    peers = Peers(sites.site("site-0"))
    peers.accept(peers.fingerprint(peers.pins()), "N.N.")
    write_report(sites.homes["site-0"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Fingerprints NOT compared: site-4." in page
    # In the first line too, beside the smaller figure.
    assert "not all compared, so against a dishonest coordinator that is what holds" in page


def aged(home, days):
    for path in (home / "outbox").glob("sum-*.safetensors"):
        os.utime(path, (time.time() - days * 86400,) * 2)


def test_a_clear_value_that_is_never_asked_for_is_gone_after_thirty_days_whatever_comes(sites):
    """Also if no further sum is ever asked for: the next message of any kind deletes it."""
    sites.all_ready()
    home = sites.homes["site-0"]
    aged(home, 29)
    sites.announce("run-2", names=["site-0"])
    assert len(Outbox(home).stored("sum-")) == 1
    aged(home, 31)
    sites.announce("run-3", names=["site-0"])
    clear = sites.values["site-0"]["centre"].tobytes()
    assert not any(clear in data for data in files_of(home).values())


def test_a_stored_file_that_cannot_be_read_holds_back_no_other_sum(sites):
    sites.all_ready()
    home = sites.homes["site-0"]
    (path,) = (home / "outbox").glob("sum-*.safetensors")
    path.write_bytes(b"?")
    assert sites.ready("site-0", "class-sums").code == "ok"
    assert path.exists()


def test_files_that_another_process_renames_or_deletes_meanwhile_are_no_error(sites, monkeypatch):
    folder = sites.homes["site-0"] / "outbox"
    gone = [folder / "sum-x.safetensors.part", folder / "sum-x.safetensors"]
    glob = type(folder).glob

    def listed(self, pattern):
        found = list(glob(self, pattern))
        return [*found, *(p for p in gone if p.parent == self and p.match(pattern))]

    monkeypatch.setattr(type(folder), "glob", listed)
    assert sites.ready("site-0").code == "ok"
    assert [key for key, _ in Outbox(sites.homes["site-0"]).stored("sum-x")] == []


def in_processes(tasks):
    """Run tasks in processes of their own that start together; what each returned, as bytes."""
    go_out, go_in = os.pipe()
    pipes = []
    for task in tasks:
        out, into = os.pipe()
        child = os.fork()
        if not child:
            os.close(go_in)
            os.read(go_out, 1)  # Until all are there: the parent closes its end.
            try:
                os.write(into, task())
            finally:
                os._exit(0)
        os.close(into)
        pipes.append((child, out))
    os.close(go_out)
    os.close(go_in)
    found = []
    for child, out in pipes:
        with os.fdopen(out, "rb") as file:
            found.append(file.read())
        os.waitpid(child, 0)
    return found


def test_of_two_processes_with_two_sets_one_answers(sites):
    """Processes, as two workers of one home are: nothing in memory is shared."""
    ready = sites.all_ready()
    sets = [ready, ready[:4], ready[:3], (ready[0], *ready[2:])]

    def sending(chosen):
        def task():
            part = sites.send("site-0", chosen)[1]
            return b"" if part is None else part.tobytes()

        return task

    found = in_processes([sending(chosen) for chosen in sets])
    assert len([part for part in found if part]) == 1
    assert sites.kinds("site-0").count("view") == 1
    assert sites.kinds("site-0").count("refused") == 3


def test_of_two_processes_with_two_requests_one_works(sites):
    """Two cohorts at once: one clear value, one charge, one key."""
    cohorts = [sites.cohort, sites.members(sites.names[:4]), sites.members(sites.names[:3])]

    def asking(cohort):
        return lambda: sites.ready("site-0", cohort=cohort).code.encode()

    found = in_processes([asking(cohort) for cohort in cohorts])
    assert sorted(found) == [b"ok", b"refused-policy", b"refused-policy"]
    counted = [k for k in sites.kinds("site-0") if k in ("reserved", "ready")]
    assert counted == ["reserved", "ready"]
    assert len(Outbox(sites.homes["site-0"]).stored("sum-")) == 1


def test_every_other_request_of_the_run_says_nothing_about_the_value(sites):
    """Scores, personal models, pre-training, training, statistics: between the two trips."""
    sites.all_ready()
    clear = sites.values["site-0"]["centre"]
    spent = sites.spent("site-0")
    others = [
        ("score", ""), ("score", "personal"), ("train", ""), ("train", "pretrain"),
        ("release", "statistics"), ("release", "gradients"), ("release", "fold-counts"),
        ("release", "class-sums"), ("release", "centre"), ("send", ""), ("send", "class-sums"),
    ]  # fmt: skip
    for kind, phase in others:
        for cohort in ((), sites.cohort):
            if (kind, phase) in (("release", "class-sums"), ("release", "centre")) and cohort:
                continue
            body = sites.body("site-0", kind, phase=phase, cohort=cohort)
            reply, tensors = sites.ask("site-0", body, {"head.centre": clear.astype(np.float32)})
            assert tensors == {}, (kind, phase)
            assert (reply.scores, reply.personal, reply.noisy_scores, reply.loss) == (None,) * 4
            assert reply.examples == 0
    assert sites.spent("site-0") == spent
    assert clear.tobytes() in b"".join(files_of(sites.homes["site-0"] / "outbox").values())
