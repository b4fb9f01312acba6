"""A cache that runs have filled: what was used longest ago goes, and is made anew."""

import json
import os
import shutil

import pytest

from fieldmark.client.cache_room import CacheRoom, in_use, make_room
from fieldmark.client.limits import Limits

from .protected_sites import make_site

DAY_S = 86_400
A, B, C = (letter * 64 for letter in "abc")
FAULTS = ".tolerant.faults.json"
STORE = f"v2-{'2' * 40}"


def with_cache_gb(site, gigabytes):
    # Smaller than any site.toml may say: a test need not write gigabytes.
    limits = Limits.model_construct(**{**Limits().model_dump(), "cache_gb": gigabytes})
    object.__setattr__(site, "settings", site.settings.model_copy(update={"limits": limits}))
    return site


@pytest.fixture
def site(tmp_path):
    """A site whose cache has three banks of 1000 bytes, and features of 2000 bytes."""
    made = make_site(tmp_path)
    for number, name in enumerate((A, B, C)):
        keep(made, f"pictures/{name}.npy", 900, number + 1)
        keep(made, f"pictures/{name}.tolerant.faults.json", 100, number + 1)
        keep(made, f"pictures/{name}.lock", 0, 30)
    keep(made, f"features/{STORE}/1.safetensors", 1000, 9)
    keep(made, f"features/{STORE}/2.safetensors", 1000, 20)
    keep(made, "elsewhere/notes.txt", 10_000, 40)
    return made


def keep(site, name, size, days_ago):
    path = site.cache / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    when = path.stat().st_mtime - days_ago * DAY_S
    os.utime(path, (when, when))


def left(site):
    return sorted(str(p.relative_to(site.cache)) for p in site.cache.rglob("*") if p.is_file())


def test_within_the_limit_nothing_goes(site):
    before = left(site)
    assert make_room(with_cache_gb(site, 5e-6)) == []
    assert left(site) == before


def test_what_was_used_longest_ago_goes_first_and_as_a_whole(site):
    assert make_room(with_cache_gb(site, 2.5e-6)) == [STORE, f"{C}.lock"]
    kept = (f"pictures/{n}{end}" for n in (A, B) for end in (".lock", ".npy", FAULTS))
    assert left(site) == ["elsewhere/notes.txt", *kept]


def test_what_was_used_last_stays_however_large_it_is(site):
    make_room(with_cache_gb(site, 1e-9))
    assert left(site) == ["elsewhere/notes.txt", f"pictures/{A}.lock", f"pictures/{A}.npy",
                          f"pictures/{A}.tolerant.faults.json"]  # fmt: skip


def test_a_reading_counts_as_a_use(site):
    when = (site.cache / f"pictures/{C}.npy").stat().st_mtime
    os.utime(site.cache / f"pictures/{C}.npy", (when + 30 * DAY_S, when))
    make_room(with_cache_gb(site, 1e-9))
    assert f"pictures/{C}.npy" in left(site)
    assert f"pictures/{A}.npy" not in left(site)


def test_a_look_is_taken_once_a_minute_and_at_no_simulated_sites_cache(site, monkeypatch):
    looked = []
    monkeypatch.setattr(
        "fieldmark.client.cache_room.make_room", lambda found: looked.append(found) or []
    )
    room = CacheRoom(site.home)
    room.look()
    room.look()
    assert len(looked) == 1
    (site.home / "rows.json").write_text(json.dumps([0]))
    CacheRoom(site.home).look()
    assert len(looked) == 1


def test_what_is_not_named_as_ours_stays(site):
    others = (f"pictures/{A}.jpg", "pictures/thesis.npy", f"pictures/{A[:-1]}.npy",
              f"pictures/{A}.npy.backup", "features/mine/1.safetensors",
              f"features/{STORE}-copy/1.safetensors", f"pictures/{B}/x.npy")  # fmt: skip
    for name in others:
        keep(site, name, 5000, 90)
    make_room(with_cache_gb(site, 1e-9))
    assert set(others) <= set(left(site))
    assert f"pictures/{B}.npy" not in left(site)


def test_a_removal_that_is_cut_short_leaves_no_bank_that_is_refused(site, monkeypatch):
    keep(site, f"pictures/{C}.tolerant.npy", 900, 3)
    gone = []

    def killed(path, missing_ok=False):
        gone.append(path.name)
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.unlink", killed)
    shutil.rmtree(site.cache / "features")
    with pytest.raises(KeyboardInterrupt):
        make_room(with_cache_gb(site, 1e-9))
    assert gone == [f"{C}.tolerant.npy"]


def test_while_another_home_is_at_work_in_a_cache_nothing_goes(site, monkeypatch):
    looked = []
    monkeypatch.setattr(
        "fieldmark.client.cache_room.make_room", lambda found: looked.append(found) or []
    )
    room = CacheRoom(site.home)
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        with in_use(str(site.cache)):
            os.write(ready[1], b"x")
            os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    # Homes do not keep each other from work.
    with in_use(str(site.cache)):
        pass
    room.look()
    assert looked == []
    os.write(go[1], b"x")
    os.waitpid(pid, 0)
    # Not only a minute later.
    room.look()
    assert len(looked) == 1
    for descriptor in (*ready, *go):
        os.close(descriptor)


@pytest.mark.parametrize("cache", ["", "/proc/none/such"])
def test_a_cache_that_cannot_be_locked_ends_no_work(cache):
    done = []
    with in_use(cache):
        done.append("work")
    assert done == ["work"]


def test_a_home_that_cannot_be_opened_ends_no_runner(site):
    (site.home / "site.toml").write_text("[")
    assert CacheRoom(site.home).look() == []


def test_a_bank_that_went_is_decoded_anew(tmp_path):
    import numpy as np
    from PIL import Image

    from fgvc_core.data.catalogue import load_table
    from fgvc_core.data.pictures import PictureBank
    from fgvc_core.data.settings import DataSettings

    for name in ("one", "two"):
        (tmp_path / "data" / name).mkdir(parents=True)
        picture = np.full((40, 40, 3), 90, np.uint8)
        Image.fromarray(picture).save(tmp_path / "data" / name / f"{name}.png")
    site = make_site(tmp_path)
    settings = DataSettings(name="folder", path=str(tmp_path / "data"), classes=("one", "two"))
    table = load_table(settings, site.cache)
    banks = [PictureBank(table, size, cache=site.cache) for size in (16, 32)]
    assert len(make_room(with_cache_gb(site, 1e-9))) == 1
    again = PictureBank(table, 16, cache=site.cache)
    assert (again.batch(np.arange(2)) == banks[0].batch(np.arange(2))).all()
