import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from legible import figures_of
from PIL import Image

from fgvc_core.errors import ConfigurationError, DataError
from fieldmark.server.report.page import render

NAMES = [f"Species {k}" for k in range(12)]


def write_run(folder: Path, sites: int = 5, names=NAMES, compare=True, done=True) -> Path:
    """A run's folder as a simulation leaves it, with made-up figures."""
    folder.mkdir()
    (folder / "pictures").mkdir()
    for number in range(3):
        pixels = np.full((16, 16, 3), 60 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    (folder / "recipe.toml").write_text('name = "demo"\nseed = 1\n')
    site_names = [f"site-{n}" for n in range(1, sites + 1)]
    entry = {"bytes_up": 1000, "bytes_down": 2000, "cohort": sites, "accepted": sites}
    history = [
        {**entry, "round": r, "top1": r / 10, "macro_f1": r / 10, "loss": 2 / r, "val_top1": None,
         "val_loss": None, "seconds": 1.5, "refused": 0}
        for r in range(1, 8)
    ]  # fmt: skip
    metrics = {
        "name": "demo", "engine": "inprocess", "seed": 1, "rounds": 7, "best_round": 6,
        "stopped": "rounds", "wall_s": 75.0, "bytes_up": 7000, "bytes_down": 14000,
        "sites": {
            s: {"examples": 111, "top1": 0.5, "macro_f1": 0.4, "rounds": 7, "refused": 0,
                "bytes_up": 1, "bytes_down": 2}
            for s in site_names
        },
        "history": history,
        "model": {"backbone": "b", "parameters": 5000, "travelling_parameters": 4000,
                  "update_bytes": 16000},
        "versions": {"fieldmark": "0.1.0"},
    }  # fmt: skip
    if done:
        metrics |= {
            "top1": 0.877, "macro_f1": 0.864, "macro_precision": 0.87, "macro_recall": 0.86,
            "test_examples": 500, "pixel_baseline": {"top1": 0.1875, "macro_f1": 0.18},
            "classes": [
                {"name": n, "support": 42, "top1": 0.9, "precision": 0.8, "f1": 0.85} for n in names
            ],
        }  # fmt: skip
        pair = {"true": 0, "predicted": 1, "count": 3, "support": 42, "rate": 3 / 42}
        kinds = ("true", "predicted", "mistaken")
        pair |= {f"pictures_{kind}": [f"pictures/{i}.png"] for i, kind in enumerate(kinds)}
        confusion = np.eye(len(names), dtype=int).tolist()
        evaluation = {"class_names": names, "confusion": confusion, "pairs": [pair]}
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        counts = {s: [1] * len(names) for s in site_names}
        partition = {"class_names": names, "sites": counts}
        (folder / "partition.json").write_text(json.dumps(partition))
    else:
        metrics["stopped"] = "interrupted"
    if compare:
        score = {"top1": 0.75, "macro_f1": 0.7}
        comparison = {"federated": score, "pooled": score, "local_mean": score, "passes": 7,
                      "test_examples": 500, "local": dict.fromkeys(site_names, score)}  # fmt: skip
        (folder / "compare.json").write_text(json.dumps(comparison))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    refused = {"event": "reply", "round": 2, "site": "site-1", "accepted": False, "reason": "late"}
    (folder / "events.jsonl").write_text(json.dumps(refused) + "\n")
    return folder


def text_of(page: Path) -> str:
    return unescape(re.sub(r"<[^>]+>", " ", page.read_text())).replace("\N{NO-BREAK SPACE}", " ")


def test_the_page_states_what_the_metrics_say(tmp_path):
    told = text_of(render(write_run(tmp_path / "run")))
    for figure in ("87.7 %", "86.4 %", "18.8 %", "Five sites", "500 pictures", "1 min 15 s"):
        assert figure in told, figure
    assert "site-1 refused: late" in told
    assert "Species 0" in told
    assert "taken for" in told
    assert "no differential privacy" in told


def test_the_page_says_which_code_each_site_runs(tmp_path):
    folder = write_run(tmp_path / "run")
    metrics = json.loads((folder / "metrics.json").read_text())
    for figures in metrics["sites"].values():
        figures.update(version="0.1.0", code="ab" * 32)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert f"Every site says that it runs Fieldmark 0.1.0 with the code {'ab' * 8}" in words(folder)
    metrics["sites"]["site-2"].update(version="<b>9</b>", code="cd" * 32)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    said = words(folder)
    assert "The sites say that they run different code" in said
    assert f"Fieldmark 0.1.0, code {'ab' * 8}: site-1, site-3, site-4, site-5" in said
    assert f"Fieldmark <b>9</b>, code {'cd' * 8}: site-2" in said


def words(folder):
    """The text of a run's page, as a reader sees it."""
    page = re.sub(r"<style.*?</style>", "", render(folder).read_text(), flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", "", page)).split())


def test_the_page_asks_for_nothing_outside_itself(tmp_path):
    page = render(write_run(tmp_path / "run")).read_text()
    addresses = re.findall(r"""(?:src|href|url|action|srcset)\s*[=(]\s*["']?([^"'\s)>]+)""", page)
    assert addresses
    assert all(a.startswith(("data:", "#")) for a in addresses)
    assert "<script" not in page
    assert "@import" not in page


def test_hostile_names_are_text_and_nothing_else(tmp_path):
    names = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', *NAMES[2:]]
    page = render(write_run(tmp_path / "run", names=names)).read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page


def test_a_picture_outside_the_run_is_never_read(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    run = write_run(tmp_path / "run")
    evaluation = json.loads((run / "evaluation.json").read_text())
    before = render(run).read_text().count("<img")
    evaluation["pairs"][0]["pictures_true"] = ["../secret.png"]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    assert render(run).read_text().count("<img") == before - 1


def test_a_stopped_run_has_a_page_that_says_so(tmp_path):
    told = text_of(render(write_run(tmp_path / "run", compare=False, done=False)))
    assert "stopped early" in told
    assert "Not scored" in told
    assert "Not measured in this run" in told


COST = {"epsilon": 3.99712, "how": "PLD of one plan", "epsilon_total": 6.1754,
        "how_total": "Renyi filter over several plans", "delta": 1e-5, "delta_total": 1e-6,
        "unit": "subject", "adjacency": "zero-out, accounted as add-or-remove-one",
        "events": []}  # fmt: skip
CAPPED = "policy.epsilon_cap = 4 at delta 1e-05: 3.997 is spent, and run 'demo' would bring more"


def changed(run, *, recipe="", events=(), **metrics):
    """A run's folder, changed; None takes a metric out."""
    if metrics.get("privacy"):
        sites = dict.fromkeys(metrics["privacy"], "")
        metrics = {"privacy_claim": {"holds": True, "sites": sites}, **metrics}
    known = json.loads((run / "metrics.json").read_text()) | metrics
    known = {name: value for name, value in known.items() if value is not None}
    (run / "metrics.json").write_text(json.dumps(known))
    with (run / "recipe.toml").open("a") as file:
        file.write(recipe)
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return run


def test_each_sites_cost_is_shown_as_the_site_stated_it(tmp_path):
    run = write_run(tmp_path / "run")
    costs = {"site-1": COST, "site-2": {**COST, "epsilon": 1.25, "how": "Renyi filter"}}
    price = {"in_words": "The price of the subject unit at epsilon 4 is known."}
    changed(run, recipe="[privacy]\nepsilon = 4.0\n", privacy=costs, unit_price=price)
    told = re.sub(r"\s+", " ", text_of(render(run)))
    for row in (
        "site-1 subject 3.997 1e-05 PLD of one plan 6.175 1e-06 Renyi filter over several plans",
        "site-2 subject 1.250 1e-05 Renyi filter 6.175 1e-06 Renyi filter over several plans",
        "(zero-out, accounted as add-or-remove-one)",
        "(replace-one), the same releases cost about twice as much",
        "the costs add up",
        "The price of the subject unit",
        "noise and sampling come from each site's operating system and never repeat",
    ):
        assert row in told, row
    for untrue in ("no differential privacy", "Sites also sent their number", "same run on the"):
        assert untrue not in told


def test_a_run_that_is_private_at_one_site_alone_is_not_called_private(tmp_path):
    run = write_run(tmp_path / "run")
    bare = "its replies left without differential privacy"
    claim = {"holds": False, "sites": {"site-1": "", "site-2": bare}}
    changed(run, privacy={"site-1": COST}, privacy_claim=claim)
    told = re.sub(r"\s+", " ", text_of(render(run)))
    assert "not under differential privacy as a whole: it holds for 1 of 2 sites" in told
    assert f"site-2 {bare}" in told
    assert "site-1 subject 3.997" in told
    assert "Sites also sent their number of training pictures" in told


def test_a_run_whose_sites_all_stated_falsely_is_not_called_private(tmp_path):
    run = write_run(tmp_path / "run")
    false = "it states epsilon 0.1, and what it released costs 7.06"
    claim = {"holds": False, "sites": {"site-1": false}}
    changed(run, recipe="[privacy]\nepsilon = 4.0\n", privacy_claim=claim)
    told = re.sub(r"\s+", " ", text_of(render(run)))
    assert "Of no site of this run is it established that differential privacy holds" in told
    assert f"site-1 {false}" in told
    assert "it cost nothing" not in told


def test_the_report_and_its_figures_have_no_element_of_it(tmp_path):
    hostile = "\"'><script>alert(1)</script>[/]\x1b[2J"
    run = write_run(tmp_path / "run", names=[hostile, "b", "c"])
    metrics = json.loads((run / "metrics.json").read_text())
    for figures in metrics["sites"].values():
        figures.update(version=hostile, code=hostile, set_aside=hostile)
    cost = {"epsilon": 1.0, "how": hostile, "epsilon_total": 1.0, "how_total": hostile,
            "delta": 1e-5, "delta_total": 1e-5, "unit": hostile, "adjacency": hostile,
            "events": []}  # fmt: skip
    metrics["privacy"] = {"site-1": cost}
    metrics["privacy_claim"] = {"holds": False, "sites": {"site-1": "", "site-2": hostile}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    event = {"event": "reply", "round": 1, "site": "site-1", "accepted": False, "reason": hostile}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert "<script>alert" not in render(run).read_text()


def test_sums_of_noisy_scores_are_called_so_and_absent_losses_have_no_chart(tmp_path):
    run = write_run(tmp_path / "run")
    history = json.loads((run / "metrics.json").read_text())["history"]
    silent = [{**entry, "loss": None} for entry in history]
    changed(run, privacy={"site-1": COST}, history=silent)
    told = text_of(render(run))
    assert "nats" not in told
    assert "sites' validation" not in told
    changed(run, history=[{**silent[0], "val_top1": 0.4}])
    assert "sites' validation, with noise" in text_of(render(run))


def test_where_no_round_was_better_none_is_said_to_be_marked(tmp_path):
    run = write_run(tmp_path / "run")
    assert "dashed line marks round 6" in text_of(render(run))
    told = text_of(render(changed(run, best_round=0)))
    assert "dashed line" not in told
    assert "No round was better" in told


def test_a_run_that_asks_for_no_round_says_how_its_head_was_found(tmp_path):
    run = changed(write_run(tmp_path / "run"), history=[], rounds=0, best_round=0)
    assert "No round was finished." in text_of(render(run))
    (run / "recipe.toml").write_text("[federation]\nrounds = 0\n[train]\nstart = 'lda'\n")
    told = text_of(render(run))
    assert "follows from sums over the sites' pictures (lda)." in told
    assert "The recipe asks for no round of training." in told
    assert "No round was finished" not in told
    start = {"method": "auto", "chosen": "discriminant, shrinkage 0.1", "messages": 23,
             "tried": [{}, {}]}  # fmt: skip
    recipe = "[federation]\nrounds = 5\n[train]\nstart = 'auto'\nstart_metric = 'top1'\n"
    (run / "recipe.toml").write_text(recipe)
    told = text_of(render(changed(run, start=start)))
    assert "best by top-1 of 2 candidates" in told
    assert "discriminant, shrinkage 0.1 (23 messages after the class statistics)" in told
    assert "No round was finished." in told
    (run / "recipe.toml").write_text("[federation]\nrounds = 0\n[train]\nstart = 'none'\n")
    assert "The head was not learned" in text_of(render(changed(run, start={})))
    assert "No site scored the model" not in text_of(render(run))
    silent = {"site-1": {"examples": 9, "top1": None, "macro_f1": None, "rounds": 0, "refused": 0,
                         "bytes_up": 1, "bytes_down": 2}}  # fmt: skip
    assert "none was kept for validation" in text_of(render(changed(run, sites=silent)))


def test_a_run_without_a_test_split_was_not_stopped_early(tmp_path):
    run = write_run(tmp_path / "run", compare=False, done=False)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "stopped": "rounds"}))
    told = text_of(render(run))
    assert "stopped early" not in told
    assert "Five sites learned together for 7 rounds; the coordinator holds no test split" in told
    assert "Not scored: its coordinator holds no test split." in told
    assert "did not come to its end" not in told


def test_rounds_to_which_one_site_alone_contributed_are_named(tmp_path):
    run = write_run(tmp_path / "run", compare=False)
    history = json.loads((run / "metrics.json").read_text())["history"]
    assert "alone contributed" not in text_of(render(run))
    changed(run, history=[{**entry, "accepted": 1} for entry in history])
    assert "In seven of seven rounds one site alone contributed." in text_of(render(run))


def test_a_run_stopped_at_the_sites_says_which_refused_and_why(tmp_path):
    events = [
        {"event": "roll_call", "site": None, "accepted": False,
         "reason": f"Site 'site-{n}' answered 'refused-policy'. {CAPPED}."} for n in (1, 2)
    ]  # fmt: skip
    run = write_run(tmp_path / "run", compare=False, done=False)
    changed(run, recipe="[privacy]\nepsilon = 4.0\n", events=events, sites={}, history=[],
            rounds=0, stopped=f"refused: 2 sites refuse by their own policy: {CAPPED}")  # fmt: skip
    told = re.sub(r"\s+", " ", text_of(render(run)))
    assert (
        "Two sites refused by their own policy: this run was stopped at the sites, at its start."
        in told
    )
    assert f"site-1 {CAPPED}. site-2 {CAPPED}." in told
    assert "No site took part: 2 refused" in told
    assert "it cost nothing" in told
    assert "no differential privacy" not in told


def test_a_cap_reached_in_a_later_round_keeps_the_costs_of_the_earlier(tmp_path):
    refused = {"event": "reply", "round": 3, "site": "site-1", "accepted": False,
               "reason": f"The site answered 'refused-policy'. {CAPPED}."}  # fmt: skip
    run = write_run(tmp_path / "run", compare=False, done=False)
    changed(run, events=[refused], privacy={"site-1": COST}, stopped=f"refused: {CAPPED}")
    told = re.sub(r"\s+", " ", text_of(render(run)))
    assert (
        "One site refused by its own policy: this run was stopped at the sites, after 7 rounds."
        in told
    )
    assert "site-1 subject 3.997" in told
    assert f"site-1 {CAPPED}." in told


def test_a_thousand_sites_make_a_page_of_bounded_size(tmp_path):
    run = write_run(tmp_path / "run", sites=1000)
    changed(run, privacy={f"site-{n}": COST for n in range(1000)})
    page = render(run)
    assert page.stat().st_size < 3_000_000
    assert text_of(page).count("940 more sites") == 2


def test_a_long_run_of_many_classes_with_photographs_stays_below_three_megabytes(tmp_path):
    names = [f"A species with a rather long name, number {k}" for k in range(200)]
    run = write_run(tmp_path / "run", sites=60, names=names)
    noise = np.random.default_rng(0)
    files = []
    for number in range(72):
        pixels = noise.integers(0, 256, (160, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(run / "pictures" / f"{number}.png")
        files.append(f"pictures/{number}.png")
    pairs = []
    for number in range(6):
        own = files[12 * number : 12 * number + 12]
        pairs.append(
            {"true": number, "predicted": 50 + number, "count": 9, "support": 30,
             "pictures_true": own[:3], "pictures_mistaken": own[3:6],
             "pictures_predicted": own[6:9], "explained": own[9:]}
        )  # fmt: skip
    evaluation = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps({**evaluation, "pairs": pairs}))
    partition = {"class_names": names, "sites": {f"site-{n}": [7] * 200 for n in range(1, 61)}}
    (run / "partition.json").write_text(json.dumps(partition))
    entry = json.loads((run / "metrics.json").read_text())["history"][0]
    history = [{**entry, "round": r, "val_top1": 0.5} for r in range(1, 5001)]
    events = [
        {"event": "reply", "round": r, "site": f"site-{1 + r % 60}", "accepted": bool(r % 3),
         "reason": f"The update's norm is {r}.5 times the others'", "bytes_up": 10, "bytes_down": 9}
        for r in range(1, 5001)
    ]  # fmt: skip
    changed(run, recipe="# long\n" * 20000, history=history, events=events, rounds=5000)
    page = render(run)
    assert page.stat().st_size < 3_000_000
    # Noise does not compress: not all of it fits, and explanations go first.
    told = page.read_text()
    assert told.count("evidence for") == 12
    assert 18 < told.count("<img") < 72
    assert "… and 1,566 more, in events.jsonl" in text_of(page)
    # On the first screen, by reason, and in order of time.
    assert text_of(page).count("The update's norm is 3.5 times") == 3


def test_refusals_are_counted_by_reason_whatever_their_numbers(tmp_path):
    def refused(round_, site, reason):
        return {"event": "reply", "round": round_, "site": site, "accepted": False,
                "reason": reason, "bytes_up": 5, "bytes_down": 5}  # fmt: skip

    run = write_run(tmp_path / "run")
    events = [
        {"event": "roll_call", "site": None, "accepted": False, "reason": "an unknown key"},
        refused(2, "site-1", "A norm of 9.5 times the others'."),
        refused(5, "site-4", "A norm of 12 times the others'."),
        refused(6, "site-4", "No reply within 600 s."),
        {"event": "site_set_aside", "round": 6, "site": "site-4", "reason": "3 in a row"},
    ]
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["sites"]["site-4"]["set_aside"] = 6
    told = re.sub(r"\s+", " ", text_of(render(changed(run, events=events, **metrics))))
    assert "2 2 to 5 site-1, site-4 A norm of 9.5 times the others'." in told
    assert "1 6 site-4 No reply within 600 s." in told
    assert "1 roll call a node an unknown key" in told
    assert (
        "Set aside at the end, for replies that cannot be or were unsound in a row: site-4 ("
        in told
    )
    assert "site-4: site set aside: 3 in a row" in told


def test_who_moved_how_much_in_which_round_is_a_grid_with_refusals_crossed(tmp_path):
    run = write_run(tmp_path / "run", sites=3)
    events = [
        {"event": "reply", "round": r, "site": f"site-{s}", "accepted": (r, s) != (2, 3),
         "reason": "late", "bytes_up": 1_000_000 * s, "bytes_down": 500_000}
        for r in range(1, 8) for s in (1, 2, 3)
    ]  # fmt: skip
    page = render(changed(run, events=events)).read_text()
    assert page.count('<rect class="cell"') == 21
    assert page.count('<path class="cross"') == 1
    assert "site-3, round 2: 3.5 MB" in page
    assert 'fill-opacity="0.90"' in page


def test_levels_of_the_taxonomy_are_told_where_there_are_some(tmp_path):
    run = changed(write_run(tmp_path / "run"), levels={"order": 0.99, "family": 0.955})
    told = re.sub(r"\s+", " ", text_of(render(run)))
    assert "the right order in 99.0 %, the right family in 95.5 %, the right class" in told


def test_pictures_that_may_not_be_shown_are_not_and_the_page_says_so(tmp_path):
    run = write_run(tmp_path / "run")
    evaluation = json.loads((run / "evaluation.json").read_text())
    pair = {**evaluation["pairs"][0], **{f"pictures_{k}": [] for k in
            ("true", "predicted", "mistaken")}}  # fmt: skip
    shown = {**evaluation, "pairs": [pair], "pictures_shown": False}
    (run / "evaluation.json").write_text(json.dumps(shown))
    page = render(run)
    assert "<img" not in page.read_text()
    assert "not known to be public" in text_of(page)


@pytest.mark.parametrize("name", ["metrics.json", "recipe.toml", "evaluation.json"])
def test_a_damaged_or_missing_file_is_named(tmp_path, name):
    run = write_run(tmp_path / "run")
    if name == "recipe.toml":
        (run / name).unlink()
    else:
        (run / name).write_text('{"top1": 0.')
    kind = ConfigurationError if name == "recipe.toml" else DataError
    with pytest.raises(kind) as caught:
        render(run)
    assert name in str(caught.value)
    assert not (run / "report.html").exists()


def test_a_torn_last_event_is_forgiven_and_a_torn_middle_is_not(tmp_path):
    run = write_run(tmp_path / "run")
    events = run / "events.jsonl"
    whole = events.read_text()
    events.write_text(whole + '{"event": "re')
    render(run)
    events.write_text('{"event": "re\n' + whole)
    with pytest.raises(DataError, match="line 1"):
        render(run)


def test_every_label_is_legible_on_a_phone(tmp_path):
    busy, plain = busy_run(tmp_path / "run"), write_run(tmp_path / "plain")
    figures = [f for run in (busy, plain) for f in figures_of(render(run).read_text())]
    titles = {figure.title for figure in figures}
    assert len(titles) == 7
    for figure in figures:
        assert figure.smallest_px >= 11, figure.title
        assert figure.outside == [], figure.title
        assert figure.overlapping == [], figure.title


def test_no_tick_is_odd_and_shares_are_in_percent(tmp_path):
    run = write_run(tmp_path / "run", compare=False)
    history = json.loads((run / "metrics.json").read_text())["history"]
    history = [{**history[0], "round": r, "top1": r / 60, "loss": 2.6 / r, "bytes_up": 650_000}
               for r in range(1, 49)]  # fmt: skip
    page = render(changed(run, history=history, rounds=48)).read_text()
    ticks = {figure.title: figure.ticks for figure in figures_of(page)}
    rounds = ["10", "20", "30", "40"]
    assert ticks["Top-1 over rounds"] == ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %", *rounds]
    assert ticks["Mean training loss over rounds"] == ["0", "1", "2", "3", *rounds]
    assert ticks["Megabytes a round"] == ["0", "0.5", "1", *rounds]


def test_every_cell_of_a_folded_table_names_its_column(tmp_path):
    page = render(busy_run(tmp_path / "run")).read_text()
    cells = re.findall(r"<td[^>]*>", page)
    assert len(cells) > 100
    assert all('data-label="' in cell and 'role="cell"' in cell for cell in cells)
    sites = page[page.index('id="sites"') : page.index('id="classes"')]
    row = sites[sites.index(">site-1<") :]
    assert re.findall(r'data-label="([^"]*)"', row)[:5] == [
        "Training pictures", "Rounds", "Refused", "Top-1", "Macro-F1",
    ]  # fmt: skip
    style = page[: page.index("</style>")]
    assert "content: attr(data-label)" in style
    # The fold is for all tables: none scrolls out of sight on a phone.
    assert ".scroll { overflow: visible; }" in style[style.index("max-width: 640px") :]


def test_recall_bars_share_one_axis_and_show_how_sure_they_are(tmp_path):
    run = write_run(tmp_path / "run")
    few, many = ({"name": f"C{n}", "support": n, "top1": 0.9, "precision": 0.8, "f1": 0.8}
                 for n in (10, 1000))  # fmt: skip
    page = render(changed(run, classes=[few, many])).read_text()
    assert ">0</i><i>50</i><i>100 %</i>" in page
    assert 'data-label="Found (recall)"' in page
    assert page.count('<span class="meter"><b style="width:90.0%"></b>') == 2
    # Wilson (1927): the interval of 9 of 10 is 59.6 to 98.2 %.
    whiskers = re.findall(r'<i style="left:([\d.]+)%;width:([\d.]+)%">', page)
    assert whiskers[0] == ("59.6", "38.6")
    assert float(whiskers[1][1]) < 4


def test_refusals_are_on_the_first_screen(tmp_path):
    page = render(write_run(tmp_path / "run"))
    header = page.read_text().partition("</header>")[0]
    told = " ".join(unescape(re.sub(r"<[^>]+>", " ", header)).split())
    assert "Replies refused 1" in told
    assert "1 reply refused, of site-1, in round 2: late." in told
    sound = render(changed(write_run(tmp_path / "sound"))).read_text().partition("</header>")[0]
    assert "Not every reply counted" not in sound


def test_a_comparison_says_what_differs_with_its_interval(tmp_path):
    run = write_run(tmp_path / "run")
    comparison = json.loads((run / "compare.json").read_text())
    row = {"top1": 0.75, "macro_f1": 0.7, "top1_interval": [0.70, 0.79]}
    less = {"value": -0.004, "low": -0.013, "high": 0.005, "told": "no difference"}
    comparison |= {"federated": row, "pooled": row, "plain": row, "seeds": [7],
                   "differences": {"pooled": {"top1": less}, "plain": {"top1": less}},
                   "notes": ["One seed: read with care."]}  # fmt: skip
    (run / "compare.json").write_text(json.dumps(comparison))
    page = render(run)
    told = re.sub(r"\s+", " ", text_of(page))
    row = "Plain regression, pooled 75.0 % 70.0 % -0.4 points (-1.3 to +0.5): no difference"
    assert row in told
    assert "One seed: read with care." in told
    assert "Top-1 87.7 % 95 %: 70.0 to 79.0 %" in told
    assert page.read_text().count('class="whisker"') == 3 * 3


def _chromium() -> str | None:
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


def busy_run(folder: Path) -> Path:
    """A run with everything on its page: costs, faults, trials, explanations, many rounds."""
    run = write_run(folder, sites=12)
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["pairs"][0]["explained"] = [f"pictures/{i}.png" for i in range(3)]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    long = "A reply whose reason names /a/path/that/has/no/space/in/it/at/all/" + "x" * 120
    events = [
        {"event": "reply", "round": r, "site": f"site-{s}", "accepted": s < 11,
         "reason": None if s < 11 else long, "bytes_up": 10**6 * s, "bytes_down": 10**6}
        for r in range(1, 41) for s in range(1, 13)
    ]  # fmt: skip
    trial = {"attack": "little-is-enough", "strategy": "geometric-median", "top1": 0.5,
             "failed": None, "hostile_refused": 10, "hostile_accepted": 2,
             "honest_refused": 0}  # fmt: skip
    return changed(run, events=events, trials=[trial], privacy={"site-1": COST},
                   levels={"order": 0.9, "family": 0.8})  # fmt: skip


def measured(page: Path, script: str, width: int, tmp_path: Path) -> str:
    """What a script makes of a page in a frame of some width, in headless Chromium."""
    # Headless Chromium will not make a window narrower than 500 px: a frame will.
    framed = page.with_name("framed.html")
    framed.write_text(
        f'<iframe id="f" src="{page.name}" width="{width}" height="900"></iframe><script>'
        "document.getElementById('f').onload = () => { const w ="
        " document.getElementById('f').contentWindow, d = w.document.documentElement;"
        f" document.body.dataset.found = {script}; }}</script>"
    )
    done = subprocess.run(
        [_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=3000", "--dump-dom", framed.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stdout[:500]
    return found[1]


@pytest.mark.browser
@pytest.mark.skipif(_chromium() is None, reason="no Chromium on this machine")
def test_a_folded_table_names_no_column_where_it_has_nothing(tmp_path):
    page = render(write_run(tmp_path / "run"))
    assert re.search(r"<td[^>]*Federated minus it[^>]*></td>", page.read_text())
    shown = "[...d.querySelectorAll('td:empty')].filter(e => e.getClientRects().length).length"
    assert measured(page, shown, 390, tmp_path) == "0"


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.skipif(_chromium() is None, reason="no Chromium on this machine")
def test_a_page_with_everything_on_it_does_not_scroll_sideways_either(tmp_path, width):
    page = render(busy_run(tmp_path / "run"))
    assert int(measured(page, "d.scrollWidth", width, tmp_path)) <= width


@pytest.mark.browser
@pytest.mark.skipif(_chromium() is None, reason="no Chromium on this machine")
def test_on_paper_no_table_is_cut_and_nothing_is_dark(tmp_path):
    page = render(busy_run(tmp_path / "run"))
    # The rules for paper, on a screen as wide as a sheet of A4 between its margins.
    page.write_text(page.read_text().replace("@media print", "@media screen"))
    beyond = (
        "[Math.max(...[...d.querySelectorAll('.scroll, .card, pre')]"
        ".map(e => e.scrollWidth - e.clientWidth)), d.scrollWidth,"
        " w.getComputedStyle(w.document.body).backgroundColor].join(' ')"
    )
    cut, wide, paper = measured(page, beyond, 688, tmp_path).split(" ", 2)
    assert int(cut) <= 0
    assert int(wide) <= 688
    assert paper == "rgb(255, 255, 255)"


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.skipif(_chromium() is None, reason="no Chromium on this machine")
def test_the_page_fits_phone_and_desk_without_sideways_scrolling(tmp_path, width):
    run = write_run(tmp_path / "run")
    page = render(run).read_text()
    # Headless Chromium will not make a window narrower than 500 px: a frame will.
    (run / "framed.html").write_text(
        f'<iframe id="f" src="report.html" width="{width}" height="900"></iframe><script>'
        "document.getElementById('f').onload = () => { const d ="
        " document.getElementById('f').contentDocument.documentElement;"
        " document.body.dataset.width = d.scrollWidth; document.body.dataset.seen ="
        " d.querySelectorAll('svg').length; }</script>"
    )
    done = subprocess.run(
        [_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=3000", "--dump-dom", (run / "framed.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'data-width="(\d+)" data-seen="(\d+)"', done.stdout)
    assert found, done.stdout[:500]
    assert int(found[1]) <= width
    assert int(found[2]) == page.count("<svg")


def test_no_picture_waits_until_somebody_scrolls_to_it(tmp_path):
    """One that does is blank on paper and in a picture of the page."""
    assert 'loading="lazy"' not in render(busy_run(tmp_path / "run")).read_text()


def test_the_page_says_what_was_in_place_against_poisoning(tmp_path):
    page = render(write_run(tmp_path / "run")).read_text()
    assert "Poisoning. In place: screening" in page
    assert "with fedavg one site can teach a backdoor" in page


def contributing(folder, **sites):
    """Set what each site contributed and, for a text, why it did not."""
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["not_contributed"] = {s: why for s, why in sites.items() if isinstance(why, str)}
    metrics["sites"] = {
        f"site-{n}": {**figures, "rounds": count}
        for n, (figures, count) in enumerate(
            zip(metrics["sites"].values(), sites.values(), strict=False), start=1
        )
        if not isinstance(count, str)
    }
    path.write_text(json.dumps(metrics))
    return folder


def test_the_headline_counts_who_contributed_and_names_who_did_not(tmp_path):
    folder = contributing(
        write_run(tmp_path / "run", sites=3), a=7, b=7, oslo="refused at the roll call: <b>no</b>."
    )
    said = words(folder)
    assert "Two of three sites learned 12 classes together:" in said
    assert "not part of this model: oslo (refused at the roll call: <b>no</b>)." in said


def test_one_contributing_site_is_never_called_a_federation(tmp_path):
    folder = contributing(
        write_run(tmp_path / "run", sites=3), a=7, b="away", c="awaiting approval"
    )
    said = words(folder)
    assert "One site of three learned 12 classes on its own, without a federation:" in said
    assert "learned 12 classes together" not in said


def test_waiting_for_sites_and_for_people_is_among_the_events(tmp_path):
    folder = write_run(tmp_path / "run")
    events = [
        {"event": "awaiting_approval", "site": "oslo", "node": 4},
        {"event": "waiting_for_sites", "present": ["site-1"], "needed": 2,
         "waiting_for": {"oslo": "nobody there has approved the run yet"}},
    ]  # fmt: skip
    with (folder / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    said = words(folder)
    assert "oslo: awaiting approval: nobody at the site has approved the run yet" in said
    assert (
        "waiting for sites: 1 of 2 needed sites are present; missing: oslo (nobody there has "
        "approved the run yet)"
    ) in said
