"""What ends a run that gets nowhere."""

from fgvc_core.errors import RunFailed
from fieldmark.server.run_log.checkpoint import RunState
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.sites.roll_call import refused_by_all

VOID_ROUNDS_ALLOWED = 3


def void_round(
    state: RunState,
    events: EventLog,
    number: int,
    accepted: int,
    needed: int,
    refusals: dict[str, str],
) -> None:
    """A round found too few sound replies: the model stays as it was.

    Args:
        state: Its count of void rounds is raised.
        events: Where it is recorded.
        number: Which round.
        accepted: Sound replies.
        needed: How many make a quorum.
        refusals: Site -> its own policy's reason.

    Raises:
        PolicyRefusal: if all that came were sites' refusals.
        RunFailed: if it is the third in a row.
    """
    state.void_rounds += 1
    events.emit("round_void", round=number, accepted=accepted, needed=needed)
    if not accepted and refusals:
        raise refused_by_all(refusals)
    if state.void_rounds >= VOID_ROUNDS_ALLOWED:
        raise RunFailed(
            f"Round {number} found {accepted} sound replies of {needed} needed, "
            f"{state.void_rounds} times in a row.",
            why="The model was left as it was.",
            remedy="The run's events.jsonl says why replies were refused; "
            "--resume goes on from the last checkpoint.",
        )


def nobody_left(number: int) -> RunFailed:
    """Every site has been set aside."""
    return RunFailed(
        f"Round {number}: every site has been set aside.",
        why="Each sent unsound replies federation.set_aside_after times in a row.",
        remedy="The run's events.jsonl says what was wrong with them; the bounds are in "
        "[federation].",
    )
