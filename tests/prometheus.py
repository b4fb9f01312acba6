"""Reads Prometheus' text format as it is documented, strictly.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format: lines end in a
line feed, the last one too; HELP and TYPE come once and before a metric's samples, which stand
together; each sample is there once; label values escape backslash, quote and line feed.
"""

import re
from dataclasses import dataclass, field

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:\\[\\"n]|[^\\"\n])*)"'
SAMPLE = re.compile(rf"({NAME})(?:\{{((?:{LABEL},?)*)\}})?[ \t]+(\S+)(?:[ \t]+(-?\d+))?")
ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


@dataclass
class Metric:
    """One metric: its kind, its help, and (labels, as sorted pairs) -> value."""

    kind: str = "untyped"
    text: str = ""
    samples: dict[tuple[tuple[str, str], ...], float] = field(default_factory=dict)


def parse(text):
    """Name -> metric.

    Raises:
        ValueError: if it is not in the format.
    """
    if not text.endswith("\n"):
        raise ValueError("the last line has no end")
    found, current = {}, ""
    for line in text[:-1].split("\n"):
        if line.startswith("#"):
            _, word, name, *rest = line.split(" ", 3)
            metric = found.setdefault(name, Metric())
            if metric.samples or (word == "TYPE" and metric.kind != "untyped"):
                raise ValueError(f"{word} of {name} comes late or twice")
            current = name
            if word == "TYPE":
                if rest[0] not in ("counter", "gauge", "histogram", "summary", "untyped"):
                    raise ValueError(f"no kind of metric: {line}")
                metric.kind = rest[0]
            elif word == "HELP":
                metric.text = rest[0]
            continue
        matched = SAMPLE.fullmatch(line)
        if matched is None:
            raise ValueError(f"no sample: {line}")
        name, labels, value = matched[1], matched[2] or "", matched[5]
        if name != current:
            raise ValueError(f"{name} stands apart from its other lines")
        pairs = re.findall(LABEL, labels)
        key = tuple(sorted((n, re.sub(r"\\.", lambda m: ESCAPES[m[0]], v)) for n, v in pairs))
        if len({n for n, _ in key}) != len(key) or key in found[name].samples:
            raise ValueError(f"twice: {line}")
        found[name].samples[key] = float(value)
    return found
