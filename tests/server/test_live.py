"""What a person sees while a run goes on, line by line."""

from io import StringIO

from rich.console import Console

from fieldmark.server.live import LiveView


def told(recipe, *events):
    with StringIO() as out:
        live = LiveView(recipe, Console(file=out, width=200))
        for event in events:
            live(event)
        return out.getvalue().splitlines()


def cut(round_number, weight):
    values = {"site": "oslo", "claimed": 54.0, "weight": weight, "share": 0.5}
    return {"event": "weight_cut", "round": round_number, **values}


def test_a_cut_weight_is_told_once_and_again_when_it_changes(tiny):
    lines = told(tiny, *[cut(n, 51.0) for n in range(1, 9)], cut(9, 40.0), cut(10, 51.0))
    assert lines == [
        "from round 1 on, oslo claims 54 examples and weighs 51: "
        "no site has more than 50% of a round",
        "from round 9 on, oslo claims 54 examples and weighs 40: "
        "no site has more than 50% of a round",
        "from round 10 on, oslo claims 54 examples and weighs 51: "
        "no site has more than 50% of a round",
    ]
