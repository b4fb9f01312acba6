"""Published numbers of pictures, beside which ``data check`` sets what it finds."""

from collections.abc import Mapping

from fgvc_core.data.table import Split

PUBLISHED: dict[str, dict[Split, int]] = {
    # Wah et al. 2011, CNS-TR-2011-001.
    "cub": {"train": 5994, "test": 5794},
    # Krause et al. 2013, "3D Object Representations for Fine-Grained Categorization".
    "cars": {"train": 8144, "test": 8041},
    # Maji et al. 2013, https://arxiv.org/abs/1306.5151: trainval and test.
    "aircraft": {"train": 6667, "test": 3333},
}
"""Published number of pictures by data set and split; HAM10000 (10,015) has no split."""

HAM10000 = 10_015
"""Tschandl et al. 2018, https://doi.org/10.1038/sdata.2018.161."""


def beside_published(name: str, splits: Mapping[Split, int]) -> str:
    """A sentence that compares a tree with what was published; empty if unknown.

    >>> beside_published("cub", {"train": 5994, "test": 5794, "pool": 0})
    'As published: 5,994 train, 5,794 test.'
    """
    if name == "ham10000":
        total = sum(splits.values())
        published = f"{HAM10000:,} pictures"
        return (
            f"As published: {published}."
            if total == HAM10000
            else f"Published were {published}; listed here are {total:,}."
        )
    if name not in PUBLISHED:
        return ""
    told = ", ".join(f"{count:,} {split}" for split, count in PUBLISHED[name].items())
    if all(splits.get(split) == count for split, count in PUBLISHED[name].items()):
        return f"As published: {told}."
    here = ", ".join(f"{splits.get(split, 0):,} {split}" for split in PUBLISHED[name])
    return f"Published were {told}; listed here are {here}."
