"""Proxies from the environment: traffic within this machine goes through none.

httpx and gRPC read ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` as curl does, in capitals and
small letters. Without loopback in ``NO_PROXY`` they would ask a proxy for this machine's own
services and wait for it; and httpx fails at once on a SOCKS proxy, even for addresses that it
reaches without.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY")


def without_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to set so that this machine's own services are reached directly.

    ``NO_PROXY`` gains loopback; a variable that names a SOCKS proxy is emptied.
    """
    listed = ",".join(environment.get(name, "") for name in ("NO_PROXY", "no_proxy")).split(",")
    listed = [part.strip() for part in listed if part.strip()]
    kept = ",".join(dict.fromkeys([*listed, *_LOOPBACK]))
    changed = {"NO_PROXY": kept, "no_proxy": kept}
    for name in socks(environment):
        changed[name] = ""
    return changed


def socks(environment: Mapping[str, str]) -> list[str]:
    """Names of the variables that name a SOCKS proxy, which is not supported."""
    return [
        name
        for each in _NAMES
        for name in (each, each.lower())
        if environment.get(name, "").strip().lower().startswith("socks")
    ]


@contextmanager
def loopback_direct() -> Iterator[None]:
    """Apply :func:`without_loopback` to this process and the children that it starts."""
    with environment(without_loopback(os.environ)):
        yield


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while, for this process and the children that it starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
