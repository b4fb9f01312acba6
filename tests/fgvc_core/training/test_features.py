import multiprocessing
import resource

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from fgvc_core.data.fieldmarks import build_table
from fgvc_core.data.settings import DataSettings
from fgvc_core.errors import DataError
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.trainable import frozen_digest
from fgvc_core.training.features import FeatureStore, ensure_features, read_features


def build(size=32, seed=0, **settings):
    chosen = {"attention": "none", "train": "head", **settings}
    return build_classifier(ModelSettings(**chosen), 12, size, seed)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    settings = DataSettings(image_size=32, fieldmarks_train=30, fieldmarks_test=12)
    return build_table(settings, tmp_path_factory.mktemp("pictures")).where("train")


def watched(model, monkeypatch):
    """How many pictures each call of the model's embed saw."""
    seen, embed = [], model.embed
    monkeypatch.setattr(model, "embed", lambda images: seen.append(len(images)) or embed(images))
    return seen


def store_of(model, cache):
    return FeatureStore(cache, frozen_digest(model))


def test_what_is_on_disk_is_never_computed_again(table, tmp_path, monkeypatch):
    model = build()
    seen = watched(model, monkeypatch)
    first_ND = read_features(model, table, store_of(model, tmp_path))
    assert seen == [32] * -(-len(table) // 32)
    seen.clear()
    second_ND = read_features(model, table, store_of(model, tmp_path))
    assert seen == []
    assert torch.equal(first_ND, second_ND)


def test_progress_counts_what_is_missing(table, tmp_path):
    model, told = build(), []
    ensure_features(model, table.take(range(10)), store_of(model, tmp_path))
    read_features(model, table, store_of(model, tmp_path), lambda *at: told.append(at))
    missing = len(table) - 10
    assert told[-1] == (missing, missing)
    assert len(told) == -(-missing // 32)


def test_only_what_is_missing_is_computed(table, tmp_path, monkeypatch):
    model, told = build(), []
    ensure_features(model, table.take(range(10)), store_of(model, tmp_path))
    seen = watched(model, monkeypatch)
    ensure_features(model, table, store_of(model, tmp_path), batch_size=8, tell=told.append)
    assert told == [8, 8, 4]
    # Batches are always full: a picture's features do not depend on its company.
    assert seen == [8, 8, 8]


def test_kept_features_are_those_of_the_model_in_the_tables_order(table, tmp_path):
    model = build()
    kept_ND = read_features(model, table, store_of(model, tmp_path))
    turned_ND = read_features(model, table.take(range(29, -1, -1)), store_of(model, tmp_path))
    assert torch.equal(turned_ND.flip(0), kept_ND)
    picture_NCHW = torch.from_numpy(table.picture(4).transpose(2, 0, 1).copy())[None]
    with torch.no_grad():
        expected_ND = model.embed(model.normalise(picture_NCHW))
    torch.testing.assert_close(kept_ND[4:5], expected_ND, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"size": 48}, {"pooling": "max"}, {"attention": "spatial"}], ids=str
)
def test_other_weights_or_another_preprocessing_is_another_store(other, tmp_path):
    one, two = store_of(build(), tmp_path), store_of(build(**other), tmp_path)
    one.add([b"k" * 32], np.ones((1, 2), np.float32))
    assert one.folder != two.folder
    assert two.missing([b"k" * 32]) == [0]


def test_another_head_shares_the_store(tmp_path):
    assert store_of(build(), tmp_path).folder == store_of(build(head="cosine"), tmp_path).folder


def write(cache, first, barrier):
    store = FeatureStore(cache, b"x" * 32)
    barrier.wait(timeout=30)
    for number in range(first, first + 40):
        key = number.to_bytes(4, "big") * 8
        if store.missing([key]):
            store.add([key], np.full((1, 3), number, np.float32))


def test_two_processes_that_write_at_once_leave_whole_files_that_agree(tmp_path):
    forked = multiprocessing.get_context("fork")
    barrier = forked.Barrier(2)
    writers = [
        forked.Process(target=write, args=(tmp_path, first, barrier), daemon=True)
        for first in (0, 20)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
        assert writer.exitcode == 0
    store = FeatureStore(tmp_path, b"x" * 32)
    keys = [number.to_bytes(4, "big") * 8 for number in range(60)]
    assert store.missing(keys) == []
    assert (store.get(keys) == np.arange(60, dtype=np.float32)[:, None]).all()
    assert not list(tmp_path.rglob("*.part"))


@pytest.fixture
def written(tmp_path):
    store = FeatureStore(tmp_path, b"x" * 32)
    store.add([b"k" * 32, b"l" * 32], np.ones((2, 3), np.float32))
    (path,) = store.folder.glob("*.safetensors")
    return path


def assert_refused(path):
    with pytest.raises(DataError, match=path.name) as caught:
        FeatureStore(path.parents[2], b"x" * 32).missing([b"k" * 32])
    assert "Delete that file" in caught.value.remedy


@pytest.mark.parametrize("kept", [0, 7, 30, -1])
def test_a_truncated_file_is_named(written, kept):
    written.write_bytes(written.read_bytes()[:kept])
    assert_refused(written)


def test_one_wrong_byte_is_found(written):
    held = bytearray(written.read_bytes())
    held[-2] ^= 1
    written.write_bytes(bytes(held))
    assert_refused(written)


@pytest.mark.parametrize("lost", ["keys", "features", "sum"])
def test_a_file_of_something_else_is_named(written, lost):
    save_file({k: v for k, v in load_file(written).items() if k != lost}, written)
    assert_refused(written)


def test_a_half_written_file_is_never_read(written):
    (written.parent / "0.part").write_bytes(b"half")
    assert FeatureStore(written.parents[2], b"x" * 32).missing([b"k" * 32]) == []


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    store = FeatureStore(tmp_path, b"x" * 32)

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"cannot keep features.*No space"):
        store.add([b"k" * 32], np.ones((1, 3), np.float32))
    assert list(store.folder.iterdir()) == []


def test_a_full_disk_that_the_library_finds_is_said_in_words(tmp_path):
    store = FeatureStore(tmp_path, b"x" * 32)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(DataError, match="cannot keep features"):
            store.add([b"k" * 32], np.ones((1, 3000), np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(store.folder.iterdir()) == []


def test_features_that_nobody_kept_are_not_made_up(tmp_path):
    with pytest.raises(KeyError):
        FeatureStore(tmp_path, b"x" * 32).get([b"k" * 32])
