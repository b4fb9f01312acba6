"""Progress of a run for people: a progress bar on a terminal, plain lines elsewhere.

Everything goes to standard error; standard output is for results.
"""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from fgvc_core.protocol.stages import STAGES
from fgvc_core.recipe import Recipe
from fgvc_core.words import counted, visible


class LiveView:
    """Turns events into a progress bar (terminal) or one line per round (elsewhere)."""

    def __init__(self, recipe: Recipe, console: Console) -> None:
        self._recipe = recipe
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._answered = 0
        self._seconds: list[float] = []
        self._cut: dict[str, str] = {}

    def __enter__(self) -> "LiveView":
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[told]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._progress.add_task(
                "round", total=self._recipe.federation.rounds, told=""
            )
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)

    def _say(self, line: str) -> None:
        (self._progress.console if self._progress else self._console).print(
            visible(line), highlight=False, markup=False, soft_wrap=True
        )

    def _on_run_started(self, event: dict[str, Any]) -> None:
        self._say(
            f"{counted(len(event['sites']), 'site')}, {event['strategy']}, "
            f"at most {counted(event['rounds'], 'round')}, engine {event['engine']}"
        )

    def _on_resumed(self, event: dict[str, Any]) -> None:
        self._say(f"going on after round {event['round']}")

    def _on_roll_call(self, event: dict[str, Any]) -> None:
        if not event["accepted"]:
            named = event.get("proven") or event.get("registered")
            who = f"the node of {named}" if named else "a node"
            self._say(f"{who} was not admitted: {event['reason']}")

    def _on_awaiting_approval(self, event: dict[str, Any]) -> None:
        self._say(f"{event['site']} takes part once a person there approves the run")

    def _on_waiting_for_sites(self, event: dict[str, Any]) -> None:
        missing = [f"{site} ({why})" for site, why in sorted(event["waiting_for"].items())]
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        self._say(
            f"{counted(len(event['present']), 'site is', 'sites are')} present "
            f"and a round needs {event['needed']}: "
            f"waiting for {', '.join(missing[:5])}{more}"
        )

    def _on_pretraining_started(self, event: dict[str, Any]) -> None:
        self._on_round_started(event)

    def _on_pretraining_finished(self, event: dict[str, Any]) -> None:
        rounds, loss = self._recipe.pretrain.rounds, event["loss"]
        self._say(
            f"pre-training {event['round']}/{rounds}  {event['accepted']}/"
            f"{counted(event['cohort'], 'site')}  "
            + ("" if loss is None else f"loss {loss:.3f}  ")
            + f"{event['seconds']:.1f} s"
        )

    def _on_round_started(self, event: dict[str, Any]) -> None:
        self._answered = 0
        self._cohort = len(event["cohort"])

    def _on_reply(self, event: dict[str, Any]) -> None:
        stage = STAGES[event["kind"], event.get("phase", "")]
        # Of a masked sum the parts: whoever sends one was ready before.
        ready = stage.name == "train" and self._recipe.secure is not None
        self._answered += not ready
        if not event["accepted"]:
            self._say(f"round {event['round']}: {event['site']} refused: {event['reason']}")
        counts = stage.carries in ("update", "masked") and not ready
        if self._progress is not None and self._task is not None and counts:
            self._progress.update(
                self._task, told=f"{self._answered}/{counted(self._cohort, 'site')} answered"
            )

    def _on_site_set_aside(self, event: dict[str, Any]) -> None:
        self._say(
            f"round {event['round']}: {event['site']} is set aside after "
            f"{event['refused_in_row']} unsound replies in a row: {event['reason']}"
        )

    def _on_round_spent(self, event: dict[str, Any]) -> None:
        self._say(f"{event['reason']} The round is spent, and the next one begins.")

    def _on_weight_cut(self, event: dict[str, Any]) -> None:
        told = (
            f"{event['site']} claims {event['claimed']:,.0f} examples and weighs "
            f"{event['weight']:,.0f}: no site has more than {event['share']:.0%} of a round"
        )
        # Once, and again when it changes: of two unequal sites one is cut in every round.
        if self._cut.get(event["site"]) != told:
            self._cut[event["site"]] = told
            self._say(f"from round {event['round']} on, {told}")

    def _on_start_left_out(self, event: dict[str, Any]) -> None:
        self._say(f"{event['site']} is left out of the start from here on: no sound reply")

    def _on_started(self, event: dict[str, Any]) -> None:
        if "chosen" in event:
            self._say(
                f"the head before round 1: {event['chosen']} "
                f"(of {counted(event['sites'], 'site')}, "
                f"{event['messages']} messages after the class statistics)"
            )

    def _on_screening_reset(self, event: dict[str, Any]) -> None:
        self._say(
            f"round {event['round']}: most replies were unlike the last; comparison starts over"
        )

    def _on_tracker_failed(self, event: dict[str, Any]) -> None:
        told = f"{event['tracker']} tracks no more ({event['reason']})"
        self._say(f"warning: {told}; the run goes on")

    def _on_round_void(self, event: dict[str, Any]) -> None:
        self._say(
            f"round {event['round']} is void: {event['accepted']} of "
            f"{counted(event['needed'], 'reply', 'replies')}"
        )

    def _on_round_finished(self, event: dict[str, Any]) -> None:
        self._seconds.append(event["seconds"])
        parts = [f"{event['accepted']}/{counted(event['cohort'], 'site')}"]
        if event["loss"] is not None:
            parts.append(f"loss {event['loss']:.3f}")
        if event["top1"] is not None:
            parts.append(f"top-1 {100 * event['top1']:.1f} %")
        parts.append(f"{event['seconds']:.1f} s")
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=event["round"], told="  ".join(parts[:-1]))
            return
        rounds = self._recipe.federation.rounds
        left = (rounds - event["round"]) * sum(self._seconds) / len(self._seconds)
        parts.append(f"about {left:.0f} s left")
        self._say(f"round {event['round']}/{rounds}  " + "  ".join(parts))

    def _on_personalised(self, event: dict[str, Any]) -> None:
        self._say(f"{counted(event['sites'], 'site')} fine-tuned the best model, each for itself")

    def _on_run_finished(self, event: dict[str, Any]) -> None:
        why = "no better model for a while" if event["reason"] == "patience" else "all rounds done"
        self._say(f"finished after {counted(event['rounds'], 'round')}: {why}")
