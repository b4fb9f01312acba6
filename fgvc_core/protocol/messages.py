"""Signed bodies of requests, replies and validation kits.

A body is one strict JSON text. It names the run, the round and a nonce, contains all numbers of the
message, and lists the BLAKE3 digest of every tensor sent with it, so its signature covers
everything.

A validation kit contains a model and a question, never code. The reply to it contains only figures,
signed by the site; under differential privacy, two noisy counts that are charged to the site's
ledger.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticSerializationError

from fgvc_core.configuration import MAX_CHARACTERS
from fgvc_core.errors import PeerError
from fgvc_core.protocol.causes import Cause
from fgvc_core.protocol.keys import PrivateKey, PublicKey, sign, verify
from fgvc_core.protocol.ranges import (
    MOST_CLASSES,
    MOST_NOISY,
    ClassNames,
    Cost,
    Count,
    Event,
    Loss,
    LossSum,
    Probability,
    RoundNumber,
    Share,
    Tensors,
)

Kind = Literal["roll_call", "train", "score", "release", "send"]

Phase = Literal[
    "",
    "centre",
    "class-sums",
    "statistics",
    "gradients",
    "fold-counts",
    "pretrain",
    "personal",
    "own-sums",
    "train",
    "score",
]
"""``train`` and ``score`` are of requests to send alone: what they are about has no phase."""

Code = Literal["ok", "awaiting-approval", "refused-policy", "refused-request", "unavailable"]
"""``awaiting-approval`` answers a roll call only: a person at the site has not decided yet."""

_FIXED = re.compile(r"[+-]\d\.\d{15}e[+-]\d{2}")

MAX_BODY_BYTES = 4_000_000
"""Longest body that is parsed, in bytes."""


class Body(BaseModel):
    """Base of all bodies: frozen, strict, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def parse(cls, text: str) -> "Body":
        """Read an untrusted body.

        Raises:
            PeerError: if it is too long, not JSON, or has a wrong or unknown field.
        """
        if len(text) > MAX_BODY_BYTES:
            raise PeerError(f"A body of {len(text)} bytes is longer than {MAX_BODY_BYTES}.")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])[:200]
            raise PeerError(f"A body is malformed at '{where}': {first['msg']}.") from None


class CohortMember(BaseModel):
    """A site that a masked sum may be over."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of its registered key.")


class SignedText(BaseModel):
    """A text that a site has signed, forwarded as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    text: str = Field(min_length=1, max_length=4000)
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


MOST_MEMBERS = 1000
"""Longest list of sites that is read; a masked sum is over far fewer."""


class _WithoutEmpty(Body):
    """Body whose newer fields are left out of its text while they are empty.

    Installations that do not know them, and stored digests, are then not affected.
    """

    @model_serializer(mode="wrap")
    def _lean(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        for name in ("cause", "class_shares", "cohort", "ready"):
            if not values.get(name):
                values.pop(name, None)
        return values


class Request(_WithoutEmpty):
    """A request of the coordinator to one site."""

    kind: Kind
    run: str = Field(max_length=64)
    round: RoundNumber
    site: str = Field(max_length=128, description="Empty in a roll call: not yet known.")
    nonce: str = Field(min_length=32, max_length=64)
    recipe_digest: str = Field(min_length=64, max_length=64)
    recipe: str = Field(
        "",
        max_length=MAX_CHARACTERS,
        description="The resolved recipe (TOML), in a roll call only.",
    )
    class_names: ClassNames = Field((), description="In a roll call only.")
    proximal_mu: float = Field(0.0, ge=0.0, le=1e9, allow_inf_nan=False)
    phase: Phase = Field(
        "",
        description="What a release is of; else which part of a run it is, if not its rounds.",
    )
    known_head: str = Field(
        "", max_length=64, description="The last head of the site's ledger that we have seen."
    )
    base_round: RoundNumber = Field(
        0,
        description="The last round whose reply from this site counted: what the site keeps "
        "(variates, local tensors) starts from the version of that round; 0: from nothing.",
    )
    notice: str = Field(
        "", max_length=500, description="Why this site's last reply was refused, if it was."
    )
    tensors: Tensors = Field(default_factory=dict)
    class_shares: tuple[Share, ...] = Field(
        (),
        max_length=MOST_CLASSES,
        strict=False,
        description="Of a round of training with loss.balance_prior or balance_shares: shares of "
        "the classes over all sites, of the counts that they have sent.",
    )
    cohort: tuple[CohortMember, ...] = Field(
        (),
        max_length=MOST_MEMBERS,
        strict=False,
        description="Who may be in the masked sum that is asked for; sorted by name.",
    )
    ready: tuple[SignedText, ...] = Field(
        (),
        max_length=MOST_MEMBERS,
        strict=False,
        description="Of a request to send: who is in the sum, in their own signed words.",
    )


class Scores(BaseModel):
    """Scores of a model on a site's validation split, as stated by the site."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    examples: Count
    correct: Count
    loss_sum: LossSum
    macro_f1: Share


class PrivacyStatement(BaseModel):
    """What a run costs at a site once it has released anything, as stated by the site.

    ``epsilon`` is the cost of ``events``, everything that was announced, by PLD. ``epsilon_total``
    is that of the ledger, by the method fixed before its first release. After a single run it is
    often slightly above ``epsilon``, because it holds at any time at which the runs end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    epsilon: Cost
    how: str = Field(max_length=100)
    epsilon_total: Cost
    how_total: str = Field(max_length=100)
    delta: Probability
    delta_total: Probability
    unit: Literal["image", "subject"]
    adjacency: str = Field(max_length=100)
    events: list[Event] = Field(max_length=1000)
    charged: list[Event] = Field(
        default_factory=list,
        max_length=1000,
        description="What of the run was charged so far: at most the events, and what crashes or "
        "a recovery have added. A lost ledger is recovered from it.",
    )
    epsilon_alone: Cost | None = Field(
        None,
        description="Of noise that is shared: what the run costs if all other sites work with the "
        "coordinator. Absent if it is not shared, or if nothing is promised then.",
    )
    epsilon_total_alone: Cost | None = Field(None, description="The same of the whole ledger.")

    @model_serializer(mode="wrap")
    def _lean(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        for name in ("epsilon_alone", "epsilon_total_alone"):
            if values.get(name) is None:
                values.pop(name, None)
        return values


def fixed_number(value: float) -> str:
    """A noisy score as text of fixed width: 22 characters for any value.

    >>> fixed_number(-3.5)
    '-3.500000000000000e+00'
    """
    text = f"{value:+.15e}"
    if not _FIXED.fullmatch(text):
        raise ValueError(f"{value} is no number of less than 100 digits")
    return text


def _from_fixed(value: object) -> object:
    return float(value) if isinstance(value, str) and _FIXED.fullmatch(value) else value


FixedNumber = Annotated[
    float, BeforeValidator(_from_fixed), PlainSerializer(fixed_number, when_used="json")
]
"""A float of fixed width in JSON, so that a body's size does not depend on its value."""


class NoisyScores(BaseModel):
    """Noisy validation scores: they may be negative, and ``correct`` may exceed ``examples``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    examples: FixedNumber = Field(ge=-MOST_NOISY, le=MOST_NOISY, allow_inf_nan=False)
    correct: FixedNumber = Field(ge=-MOST_NOISY, le=MOST_NOISY, allow_inf_nan=False)


class Reply(_WithoutEmpty):
    """The reply of one site."""

    kind: Kind
    run: str = Field(max_length=64)
    round: RoundNumber
    site: str = Field(max_length=128)
    nonce: str = Field(min_length=32, max_length=64)
    recipe_digest: str = Field(min_length=64, max_length=64)
    code: Code
    cause: Cause = Field("", description="Of an 'unavailable' without differential privacy.")
    reason: str = Field("", max_length=500)
    public_key: str = Field("", max_length=1000, description="In a roll call only.")
    version: str = Field("", max_length=64)
    code_digest: str = Field("", max_length=64, description="Of the code installed at the site.")
    examples: Count = Field(0, description="Training examples: the update's weight.")
    loss: Loss | None = Field(None, description="Mean training loss of this round.")
    scores: Scores | None = None
    personal: Scores | None = Field(
        None, description="Of the site's own model, fine-tuned there, on the same pictures."
    )
    seconds: str = Field(
        "0000000.0000",
        pattern=r"^\d{7}\.\d{4}$",
        description="Of work; fixed width, so that a reply's size does not depend on it.",
    )
    noisy_scores: NoisyScores | None = Field(None, description="In place of scores, charged.")
    privacy: PrivacyStatement | None = Field(
        None, description="What the run has cost here; absent without differential privacy."
    )
    ledger_length: Count = Field(0, description="Entries in the site's ledger.")
    ledger_head: str = Field("", max_length=64, description="Hash of the last of them.")
    tensors: Tensors = Field(default_factory=dict)
    ready: SignedText | None = Field(
        None, description="That the site has worked and can send its part of a masked sum."
    )

    @model_validator(mode="after")
    def _cause_of_a_failure(self) -> Self:
        if self.cause and self.code != "unavailable":
            raise ValueError("only 'unavailable' has a cause")
        return self


def fixed_seconds(seconds: float) -> str:
    """A duration as text of fixed width.

    >>> fixed_seconds(1.5)
    '0000001.5000'
    """
    return f"{min(max(seconds, 0.0), 9_999_999.0):012.4f}"


def new_nonce() -> str:
    """32 hexadecimal characters from the operating system's generator."""
    return secrets.token_hex(16)


KIT_NAME = r"^kit-[0-9a-f]{16}$"


class KitPrivacy(BaseModel):
    """Differential privacy that a kit offers to sites whose policy requires it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    epsilon: float = Field(gt=0.0, le=100.0, allow_inf_nan=False)
    delta: float = Field(gt=0.0, le=1e-2, allow_inf_nan=False)
    unit: Literal["image", "subject"]


class KitBody(Body):
    """The body of a validation kit; its signature covers every tensor too."""

    format: int = Field(1, ge=1, le=1)
    kit: str = Field(pattern=KIT_NAME, description="Its name, drawn when it was made.")
    made: str = Field(max_length=40, description="When, UTC.")
    version: str = Field(max_length=64, description="Fieldmark's where it was made.")
    name: str = Field(max_length=200, description="The recipe's name.")
    recipe: str = Field(max_length=MAX_CHARACTERS, description="The resolved recipe (TOML).")
    class_names: ClassNames = Field(min_length=1)
    temperature: float | None = Field(
        None, gt=0.0, le=1e6, allow_inf_nan=False, description="Of the calibration, if any."
    )
    score: Literal["probability", "logit", "energy"] = Field(
        "probability", description="The calibration's score for 'none of these'."
    )
    threshold: float | None = Field(
        None,
        ge=-1e9,
        le=1e9,
        allow_inf_nan=False,
        description="A picture with a lower score is of none of the classes; None: none is.",
    )
    frozen: str = Field(
        "", max_length=64, description="SHA-256 of the frozen part, which does not go along."
    )
    privacy: KitPrivacy
    issuer: str = Field(max_length=1000, description="Public key of who made the kit.")
    tensors: Tensors = Field(default_factory=dict)


class Interval(BaseModel):
    """A metric between 0 and 1 with its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    value: Share
    low: Share
    high: Share


class ClassFigures(BaseModel):
    """Metrics of one class, if the site's policy permits their release."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    examples: Count
    precision: Share
    recall: Share
    f1: Share


class Figures(BaseModel):
    """Metrics of the model on the outside site's pictures, as stated by the site."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    examples: Count
    subjects: Count
    top1: Interval
    top5: Share
    macro_precision: Share
    macro_recall: Share
    macro_f1: Interval
    ece: Share
    loss: Loss
    classes: dict[Annotated[str, Field(max_length=500)], ClassFigures] | None = Field(
        None, max_length=100_000
    )


class ValidationReply(Reply):
    """An outside site's reply to a kit; its run is the kit's name."""

    kit_digest: str = Field(
        min_length=64, max_length=64, description="SHA-256 of the kit's signed body."
    )
    figures: Figures | None = Field(None, description="Where no privacy is asked for.")

    @property
    def extent(self) -> str:
        """Level of detail: per-class, overall, noisy-counts or nothing."""
        if self.figures is not None:
            return "overall" if self.figures.classes is None else "per-class"
        return "nothing" if self.noisy_scores is None else "noisy-counts"


# Separate domains: a signature of a request is never valid for a reply.
_DOMAINS: dict[type, bytes] = {
    Request: b"fieldmark request v1\n",
    Reply: b"fieldmark reply v1\n",
    KitBody: b"fieldmark validation kit v1\n",
    ValidationReply: b"fieldmark validation reply v1\n",
}

SealedBody = TypeVar("SealedBody", Request, Reply, KitBody, ValidationReply)


@dataclass(frozen=True)
class Sealed:
    """A body's text and its signature, as sent."""

    text: str
    signature: bytes

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the text, without the signature."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def seal(key: PrivateKey, body: Request | Reply | KitBody) -> Sealed:
    """Sign a body."""
    try:
        text = body.model_dump_json()
    except PydanticSerializationError as error:
        # A person's Ctrl-C in our serializer comes out as this, with its name in the text.
        if KeyboardInterrupt.__name__ in str(error):
            raise KeyboardInterrupt from None
        raise
    return Sealed(text, sign(key, _DOMAINS[type(body)] + text.encode()))


def unseal(
    kind: type[SealedBody], sealed: Sealed, key: PublicKey, tensor_digests: Mapping[str, str]
) -> SealedBody:
    """Verify the signature, then read the body, then check the tensors sent with it.

    Args:
        kind: Class of the body.
        sealed: The text and signature received.
        key: The key that must have signed it, from our own register.
        tensor_digests: Name -> BLAKE3 digest (hex), computed here from the tensors received.

    Raises:
        PeerError: if the signature is not the key's, the body is malformed, or the tensors are not
            the ones that were signed.
    """
    check_signature(kind, sealed, key)
    body = kind.parse(sealed.text)
    if not isinstance(body, kind):
        raise PeerError("A body is of the wrong kind.")
    if dict(tensor_digests) != body.tensors:
        raise PeerError("The tensors are not the ones that were signed.")
    return body


def check_signature(kind: type[SealedBody], sealed: Sealed, key: PublicKey) -> None:
    """Raise PeerError unless the key has signed this text as this kind of body."""
    if not verify(key, _DOMAINS[kind] + sealed.text.encode(), sealed.signature):
        raise PeerError("The signature does not match the registered key.")
