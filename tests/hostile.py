"""Replies that no honest site sends, drawn by Hypothesis.

Each begins as a sound reply of a registered site and is then spoilt in a few places: its
tensors' dtypes, shapes, headers, lengths and values, the body's fields or text, the envelope
around it. The signature is made last, over what is there: a registered site may be hostile.
"""

import gzip
import io
import json
import pickle
import zlib
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import strategies as st

from fgvc_core.protocol.keys import sign
from fgvc_core.protocol.messages import Reply
from fgvc_core.wire.arrays import PackedTensor, pack

DTYPES = ("float32", "float16", "int8", "uint16", "uint32", "float64", "object", "|O", "<f4",
          "V1000000000", "U99999999", "bool", "complex128", "", "\u2603", "\ud800")  # fmt: skip

HUGE = (0, 1, 2, -1, 7, 2**16, 2**31, 2**32, 2**63, 10**9, 10**30)


def _bombs():
    zeros = bytes(20_000_000)
    archive = io.BytesIO()
    np.savez_compressed(archive, w=np.zeros(5_000_000, np.float32))
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': "
    return (
        archive.getvalue(),
        gzip.compress(zeros),
        zlib.compress(zeros, 9),
        pickle.dumps(np.zeros(3), protocol=2),
        b"cos\nsystem\n(S'exit 1'\ntR.",
        header + b"(99999999999,), }".ljust(128 - len(header) - 1) + b"\n",
        b"\x93NUMPY\x03\x00" + b"\xff\xff\xff\xff" + b"{'descr': '|O'}",
        (2**62).to_bytes(8, "little") + b'{"w":{"dtype":"F32","shape":[1]}}',
        b"",
        b"\0" * 4096,
    )


BOMBS = _bombs()

BODIES = (
    "", "{}", "[]", "null", "0", '"', "[" * 100_000, '{"a":' * 50_000, "\ud800", "{" + " " * 10_000,
    "1" * 100_000, '{"kind":"train","kind":"score"}', "NaN", "\0", '{"kind":' + "9" * 5000 + "}",
)  # fmt: skip

VALUES = (
    "null", "-1", "0", "1", "1e999", "-1e999", "NaN", "Infinity", "true", '"x"', "[]", "{}", "1.5",
    "9" * 400, "10000000000", '"' + "x" * 5000 + '"', '"\\ud800"', "[" * 500 + "]" * 500,
    '{"examples":1,"correct":2,"loss_sum":0.0,"macro_f1":0.5}',
    '{"examples":-1,"correct":0,"loss_sum":0.0,"macro_f1":0.5}',
    '{"examples":1e300,"correct":1e300}',
)  # fmt: skip


@dataclass
class Spoilt:
    """A reply on its way to being hostile."""

    parts: dict[str, PackedTensor]
    fields: dict[str, object]
    texts: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    sealed: bool = True
    digests: bool = True
    envelope: str = ""


def _part(draw, spoilt):
    name = draw(st.sampled_from(sorted(spoilt.parts)))
    part = spoilt.parts[name]
    match draw(st.integers(0, 11)):
        case 0:
            part = PackedTensor(draw(st.sampled_from(DTYPES)), part.shape, part.data)
        case 1:
            shape = tuple(draw(st.lists(st.sampled_from(HUGE), max_size=4)))
            part = PackedTensor(part.dtype, shape, part.data)
        case 2:
            part = PackedTensor(part.dtype, part.shape, draw(st.sampled_from(BOMBS)))
        case 3:
            cut = draw(st.integers(0, len(part.data)))
            part = PackedTensor(part.dtype, part.shape, part.data[:cut])
        case 4:
            more = draw(st.binary(min_size=1, max_size=40))
            part = PackedTensor(part.dtype, part.shape, part.data + more)
        case 5:
            at = draw(st.integers(0, min(127, len(part.data) - 1))) if part.data else 0
            data = part.data[:at] + draw(st.binary(max_size=3)) + part.data[at + 1 :]
            part = PackedTensor(part.dtype, part.shape, data)
        case 6 | 7 | 8 | 9:
            # Right in form, and any bits at all as values: NaN, infinities, places, scales.
            fill = draw(st.binary(min_size=4, max_size=8))
            values = part.data[128:]
            at = draw(st.integers(0, len(values)))
            values = (values[:at] + fill + values[at + len(fill) :])[: len(values)]
            part = PackedTensor(part.dtype, part.shape, part.data[:128] + values)
        case 10:
            draw_from = np.random.default_rng(draw(st.integers(0, 999)))
            dtype = draw(st.sampled_from(("float32", "float16", "int8", "uint16", "uint32")))
            shape = draw(st.sampled_from([(5, 80), (40,), (5,), (9,), (3,), (), (2, 2, 2)]))
            raw = draw_from.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
            part = pack(np.frombuffer(raw, dtype).reshape(shape))
        case _:
            part = PackedTensor(part.dtype, (1,) * draw(st.integers(30, 3000)), part.data)
    spoilt.parts[name] = part


def _names(draw, spoilt):
    names = sorted(spoilt.parts)
    name = draw(st.sampled_from(names))
    match draw(st.integers(0, 2)):
        case 0:
            del spoilt.parts[name]
        case 1:
            new = draw(st.sampled_from(["w#at", "w#scale", "", "x" * 3000, "../w", "w\0", "w#"]))
            spoilt.parts[new] = spoilt.parts.pop(name)
        case _:
            for number in range(draw(st.integers(1, 200))):
                spoilt.parts[f"extra{number}"] = PackedTensor("float32", (10**9,), b"")


def _text(draw, spoilt):
    name = draw(st.sampled_from(sorted(Reply.model_fields)))
    spoilt.texts[name] = draw(st.sampled_from(VALUES))


def _body(draw, spoilt):
    spoilt.body = draw(st.one_of(st.sampled_from(BODIES), st.text(max_size=30)))


def _seal(draw, spoilt):
    spoilt.sealed = False


def _digests(draw, spoilt):
    spoilt.digests = False


def _envelope(draw, spoilt):
    spoilt.envelope = draw(
        st.sampled_from(["none", "metric", "list", "int", "more", "tensors as config", "no body"])
    )


STEPS = (_part, _part, _part, _part, _names, _text, _text, _body, _seal, _digests, _envelope)


@st.composite
def hostile(draw, parts, fields):
    """A sound reply's parts and fields, spoilt one to three times."""
    spoilt = Spoilt(dict(parts), dict(fields))
    for _ in range(draw(st.integers(1, 3))):
        step = draw(st.sampled_from(STEPS))
        if spoilt.parts or (step is not _part and step is not _names):
            step(draw, spoilt)
    return spoilt


def as_message(spoilt, key, question):
    """The Flower message that carries a spoilt reply."""
    fields = dict(spoilt.fields)
    if spoilt.digests:
        fields["tensors"] = {n: _digest(p) for n, p in spoilt.parts.items()}
    if _encodable(fields):
        # Names of tensors that no sound reply could have.
        tensors = fields.pop("tensors", {})
        text = Reply(**fields).model_copy(update={"tensors": tensors}).model_dump_json()
    else:
        text = json.dumps(fields)
    if spoilt.texts:
        values = {name: json.dumps(value) for name, value in json.loads(text).items()}
        values |= spoilt.texts
        text = "{" + ",".join(f'"{name}":{value}' for name, value in values.items()) + "}"
    text = spoilt.body if spoilt.body is not None else text
    signed = text.encode("utf-8", "surrogatepass")
    signature = sign(key, b"fieldmark reply v1\n" + signed) if spoilt.sealed else b"\0" * 64
    content = RecordDict()
    if spoilt.envelope != "none":
        content["envelope"] = _envelope_record(spoilt.envelope, text, signature)
    if spoilt.envelope == "more":
        content["more"] = ConfigRecord({"x": 1})
    if spoilt.envelope == "tensors as config":
        content["tensors"] = ConfigRecord({"w": 1})
    else:
        content["tensors"] = ArrayRecord(
            {n: Array(p.dtype, p.shape, "numpy.ndarray", p.data) for n, p in spoilt.parts.items()}
        )
    return Message(content, reply_to=question)


def _envelope_record(kind, text, signature):
    if kind == "metric":
        return MetricRecord({"body": 1.0})
    if kind == "list":
        return ConfigRecord({"body": [text], "signature": [signature]})
    if kind == "int":
        return ConfigRecord({"body": 1, "signature": 2})
    if kind == "no body":
        return ConfigRecord({"signature": signature})
    return ConfigRecord({"body": text, "signature": signature})


def _digest(part):
    try:
        return part.digest()
    except UnicodeEncodeError:
        return "0" * 64


def _encodable(fields):
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
