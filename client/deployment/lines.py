"""Lines in the logs of a site's processes by which the supervisor knows what happened.

They are here, apart from what writes them, so that the supervisor imports neither Flower nor
torch.
"""

AWAITS = "waits for a person's approval"
"""Part of the runner's line about a run that a person at the site has to approve."""
REFUSED = "refused a request: "
"""Beginning of the runner's line about an answer that is a refusal; the reason follows."""
UNANSWERED = "no signed answer was given: "
"""Beginning of the runner's line about a message without one; the likely reason follows."""
HALF_HANDED_OVER = "an answer was handed over in part: the node has to restart"
"""Line by which the runner tells its supervisor about an incomplete handover."""
LEFT_BEHIND = "is not in `RUNNING` status. Ignoring message"
"""Text of a SuperNode when a run ends while it fetches one of the run's messages. It keeps the task
that it created for the message."""
TOO_LARGE = "is beyond this site's bound"
"""Part of every error message about the size of what the coordinator's server sends."""
KEY_REFUSED = "the coordinator's server answers 401: it does not know this site's key"
"""Line of the node when its signed request is refused; Flower's own node ends without a word."""
TROUBLE = "trouble.json"
"""File beside the node's note, while the site is not connected: why, as far as its log says it."""
