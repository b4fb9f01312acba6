import pytest
from inline_executor import Here

from fgvc_core.errors import ConfigurationError
from fieldmark.simulations.bench import NAMES, heads, run_benches

SMALL = (
    *("model.attention=none", "data.image_size=32", "data.fieldmarks_train=96"),
    *("data.fieldmarks_test=24", "partition.sites=2", "data.val_fraction=0.1"),
)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(heads, "SETS", {"drawn": heads.Set("learner.toml", SMALL)})
    monkeypatch.setattr(heads, "SEEDS", (1, 2))
    monkeypatch.setattr(heads, "hired", lambda count: _Pool())


class _Pool(Here):
    def __exit__(self, *error):
        return None


def test_every_head_is_scored_by_the_metric_that_it_was_chosen_by(small, tmp_path):
    assert "heads" in NAMES
    said = []
    figures = heads.bench_heads((), tmp_path, said.append)
    for metric in ("top1", "macro_f1"):
        means = {head: figures[f"drawn/{head}/{metric}"]["value"] for head in heads.HEADS}
        assert all(0 <= value <= 1 for value in means.values())
        reference = max(means["regression"], means["closed-form"])
        assert figures[f"drawn/auto/{metric}"]["reference"] == reference
        assert "C = " in figures[f"drawn/regression/{metric}"]["how"]
        assert "cosine, shrinkage" in figures[f"drawn/cosine/{metric}"]["how"]
    assert figures["drawn/auto/messages"]["value"] > 10
    assert figures["drawn/auto/mb_up"]["value"] > 0
    assert len(said) == 2
    # What was run is not run again.
    assert heads.bench_heads((), tmp_path, said.append) == figures
    assert len(said) == 2


def test_a_set_without_its_photographs_is_said_to_be_skipped(small, monkeypatch, tmp_path):
    missing = heads.Set("cub50.toml", folder="cub50")
    monkeypatch.setattr(heads, "SETS", {"cub50": missing})
    monkeypatch.setenv("FIELDMARK_DATA", str(tmp_path))
    figures = heads.bench_heads((), tmp_path)
    assert "FIELDMARK_DATA" in figures["cub50/skipped"]["how"]


def test_an_unknown_set_is_refused_with_the_nearest():
    with pytest.raises(ConfigurationError, match="no set of pictures") as caught:
        run_benches("heads", ["cub5"])
    assert "cub50" in caught.value.remedy
