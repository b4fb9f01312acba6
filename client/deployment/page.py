"""The site's own page on loopback: what ``site status`` says, and a person's yes or no to a run.

Everybody on this machine can read it. So it shows what the coordinator or a reader of the privacy
report knows, too: numbers and names of pictures that were left out, and decisions, need the home's
token, which only the home's account can read. The token is sent in the body of a form and never
kept in a browser: cookies of 127.0.0.1 are sent to every port of it, whoever listens there.

The process stays small. It imports what it needs of a site when somebody first opens the page;
recipes are read, and decisions recorded, by short-lived child processes, because reading a recipe
imports torch.

Run as a process: ``python -m fieldmark.client.deployment.page HOME PORT``.
"""

import functools
import hmac
import os
import re
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from fgvc_core.errors import ConfigurationError, FieldmarkError
from fgvc_core.files import private_folder, read_json, replace_private_json
from fgvc_core.local_pages import PLAIN, LocalPage, only_this_machine
from fgvc_core.quiet_server import be_quiet
from fgvc_core.sockets import LOOPBACK
from fgvc_core.words import visible
from fieldmark.client.deployment.page_token import FILE, PAGE_NOTE, read_token

if TYPE_CHECKING:
    from fieldmark.client.deployment.page_view import PageView

MOST_BYTES = 4096
"""Longest body of a form."""
AGAIN_S = 10
"""Interval at which the page looks again by itself, in seconds."""
DECISIONS = ("approve", "decline")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REPORTS = {"/report": ".html", "/report.json": ".json"}
_STILL = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
"""Policy of the privacy report: a page without scripts."""


class Refused(FieldmarkError):
    """A form that is not accepted.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


def make_app(home: Path) -> Starlette:
    """The web application of a site's home."""
    page = LocalPage("fieldmark.client.deployment", "page.html.j2")

    @functools.cache
    def view() -> "PageView":
        # Not at the top: a page that nobody has opened takes a third of the memory.
        from fieldmark.client.deployment.page_view import PageView

        return PageView(home)

    def shown(status_code: int = 200, alert: str = "", *, private: bool = False) -> Response:
        try:
            values = view().read()
        except FieldmarkError as error:
            return PlainTextResponse(visible(str(error)), 500, headers=PLAIN)
        return page.answer(status_code, **values, alert=alert, private=private, again_s=AGAIN_S)

    def look(request: Request) -> Response:
        return shown()

    def report(request: Request) -> Response:
        ending = _REPORTS[request.url.path]
        try:
            data = (home / "privacy-report.html").with_suffix(ending).read_bytes()
        except OSError:
            return PlainTextResponse("No report was made yet.", 404, headers=PLAIN)
        kind = "text/html" if ending == ".html" else "application/json"
        headers = {**PLAIN, "content-security-policy": _STILL}
        return Response(data, media_type=f"{kind}; charset=utf-8", headers=headers)

    async def left_out(request: Request) -> Response:
        await _form(request, home)
        return await run_in_threadpool(shown, private=True)

    async def decided(request: Request) -> Response:
        form = await _form(request, home)
        run, digest, what = (form.get(name, "") for name in ("run", "digest", "decision"))
        if what not in DECISIONS or not _DIGEST.fullmatch(digest):
            raise Refused(400, "The form is not one of this page.")
        await run_in_threadpool(lambda: view().decide(what, run, digest))
        return RedirectResponse("/", 303, headers=PLAIN)

    def guarded(
        answer: Callable[[Request], Awaitable[Response]],
    ) -> Callable[[Request], Awaitable[Response]]:
        @functools.wraps(answer)
        async def handle(request: Request) -> Response:
            try:
                return await answer(request)
            except FieldmarkError as error:
                status = getattr(error, "status", 409)
                return await run_in_threadpool(shown, status, str(error))

        return handle

    return Starlette(
        routes=[
            Route("/", look),
            *(Route(path, report) for path in _REPORTS),
            Route("/left-out", guarded(left_out), methods=["POST"]),
            Route("/decide", guarded(decided), methods=["POST"]),
        ],
        middleware=[only_this_machine()],
    )


async def _form(request: Request, home: Path) -> dict[str, str]:
    """Fields of a form that this page has sent, with the home's token.

    Raises:
        Refused: if it comes from elsewhere, is too long, or has no valid token.
    """
    # The Host was checked. A browser names the origin of every form, and no page can change that.
    if request.headers.get("origin") != f"http://{request.headers['host']}":
        raise Refused(403, "The form does not come from this page; open the page and try again.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise Refused(413, "The form is too long.")
    fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=8)
    form = {name: values[0] for name, values in fields.items()}
    given = form.pop("token", "").strip().encode()
    if not hmac.compare_digest(given, read_token(home).encode()):
        print("a form with a wrong token was refused", flush=True)
        raise Refused(403, f"The token is not this home's. It is in the file {home / FILE}.")
    return form


def serve(home: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve the page until the process is told to end.

    Args:
        home: Home of the site.
        port: The port; 0: the one of last time if it is free, else any.
        say: Called with the page's address.

    Raises:
        ConfigurationError: if the port is taken.
    """
    home = home.resolve()
    read_token(home)
    note = private_folder(home / "state") / PAGE_NOTE
    listener = _listener(port, int((read_json(note) or {}).get("port", 0)))
    bound = listener.getsockname()[1]
    replace_private_json(note, {"port": bound, "pid": os.getpid()})
    say(f"the page of this site: http://{LOOPBACK}:{bound}/")
    config = uvicorn.Config(
        make_app(home), access_log=False, log_level="warning", limit_concurrency=32
    )
    be_quiet()
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        # The port stays, for the next time.
        replace_private_json(note, {"port": bound})


def _listener(port: int, before: int) -> socket.socket:
    for wanted in (port,) if port else (before, 0):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, wanted))
            # From here on a browser waits where it would be refused.
            listener.listen()
        except OSError:
            listener.close()
            continue
        return listener
    raise ConfigurationError(
        f"Port {port} of {LOOPBACK} is taken: there is no page of this site.",
        why="Whoever listens there is somebody else, and would be given this home's token.",
        remedy="End what uses it, or set another page.port in site.toml (0: any free one).",
    )


def main() -> None:
    """Entry point of the process."""
    home, port = Path(sys.argv[1]), int(sys.argv[2])
    try:
        serve(home, port, lambda text: print(text, flush=True))
    except FieldmarkError as error:
        raise SystemExit(visible(str(error))) from None


if __name__ == "__main__":
    main()
