"""Digest of the installed code, which every reply states."""

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("fieldmark.client", "fgvc_core")
"""Packages that run at a site."""


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 (hex) over the names and contents of the installed modules that run at a site.

    Two installations with equal digests run the same Fieldmark. The digest does not cover the
    libraries beneath, and a site that lies about its code can also lie about its digest.
    """
    digest = hashlib.sha256()
    for package in PACKAGES:
        spec = find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            root = Path(location)
            for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
                name = f"{package}/{path.relative_to(root).as_posix()}"
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()
