"""A site's home in mid-life, and the process that serves its page."""

import contextlib
import subprocess
import sys
import time

from fgvc_core.files import read_json
from fieldmark.client.deployment.page_token import PAGE_NOTE


@contextlib.contextmanager
def served_site(home, command=None):
    """The address of a site's page, served by the process that 'site up' starts, or another."""
    note = home / "state" / PAGE_NOTE
    own = (sys.executable, "-P", "-m", "fieldmark.client.deployment.page", str(home), "0")
    process = subprocess.Popen(command or own)
    try:
        deadline = time.monotonic() + 60
        while "pid" not in (found := read_json(note) or {}):
            assert process.poll() is None, "the page did not come up"
            assert time.monotonic() < deadline, "the page did not come up"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{found['port']}/"
    finally:
        process.terminate()
        process.wait(20)
