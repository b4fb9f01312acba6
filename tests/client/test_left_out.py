"""What was left out of the data is kept for the site's own people."""

import os

from fgvc_core.data.labels import LeftOut
from fgvc_core.data.unused import Unused
from fieldmark.client.left_out import NAMES_KEPT, keep_left_out, read_left_out

from .protected_sites import make_site


def test_reasons_numbers_and_the_first_names_are_kept_in_a_private_file(tmp_path):
    site, left_out = make_site(tmp_path), LeftOut()
    assert read_left_out(site.home) is None
    for number in range(30):
        left_out.add("that cannot be read", os.fsdecode(b"\xff%d.png" % number))
    keep_left_out(site, "birds", left_out, Unused())
    found = read_left_out(site.home)
    (row,) = found["left_out"]
    assert (row["reason"], row["count"]) == ("that cannot be read", 30)
    assert (len(row["names"]), row["names"][0]) == (NAMES_KEPT, "\\udcff0.png")
    assert (found["unused"], found["recipe"]) == ([], "birds")
    assert (site.home / "state" / "left-out.json").stat().st_mode & 0o777 == 0o600


def test_what_a_site_answers_does_not_depend_on_it(tmp_path):
    site = make_site(tmp_path)
    (site.home / "state").write_text("no folder")
    keep_left_out(site, "birds", LeftOut(), Unused())
    assert read_left_out(site.home) is None
