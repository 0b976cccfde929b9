"""An S3 server on loopback, of which chosen requests fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from upath import UPath
from werkzeug.serving import make_server
from werkzeug.test import run_wsgi_app

from daskmeans.vectors.files import open_path

SECRET = "wJalrXUtnFEMI-K7MDENG-hush"
# Seconds after which an impatient client gives up on an answer, and after which the server gives one that is late.
PATIENCE, LATE = 2, 2.5
ERROR = "<Error><Code>{}</Code><Message>{}</Message></Error>"
REFUSALS = {
    "unavailable": ("503 Slow Down", ERROR.format("SlowDown", "Please reduce your request rate.")),
    "refused": ("403 Forbidden", ERROR.format("AccessDenied", "Access Denied")),
}


class Request(NamedTuple):
    """What was asked of the server; equal for those that ask the same."""

    method: str
    path: str
    query: str
    range: str

    @property
    def writes(self) -> bool:
        """Whether it changes what the store holds."""
        return self.method in ("PUT", "POST", "DELETE")


class ObjectStore:
    """The server, with a bucket called ``bucket``.

    Attributes
    ----------
    fault : callable
        Says of a request how it fails: "unavailable" or "refused" at once, "late", "cut" (half of the answer comes),
        "lost" (it is done, but the answer is an error); None if it does not.
    requests : list of Request
        All that have come.
    options, impatient : dict
        Storage options of a client, and of one that gives up on answers that are late.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self.fault: Callable[[Request], str | None] = no_fault
        self.requests: list[Request] = []
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.options = {
            "endpoint_url": f"http://127.0.0.1:{self._server.port}",
            "key": "testing",
            "secret": SECRET,
            "config_kwargs": {"retries": {"max_attempts": 2}},
        }
        self.impatient = self.options | {"config_kwargs": {"read_timeout": PATIENCE, "retries": {"max_attempts": 2}}}
        self.at("").fs.makedirs("bucket", exist_ok=True)  # what moto holds belongs to the process, not to a server
        self.clear()

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def clear(self) -> None:
        """Empty the bucket, and forget what was asked."""
        root = self.at("").fs
        if keys := root.find("bucket"):
            root.rm(keys)
        self.requests.clear()

    def at(self, key: str, options: dict[str, Any] | None = None) -> UPath:
        """The place `key` in the bucket, by `options` or those of the store."""
        return open_path(f"s3://bucket/{key}", options or self.options)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        names = ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "HTTP_RANGE")
        request = Request(*(environ.get(name, "") for name in names))
        self.requests.append(request)
        how = self.fault(request)
        if how is None:
            return self._app(environ, start_response)
        if how == "late":
            time.sleep(LATE)
        if how in REFUSALS:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return _refuse(how, request.method, start_response)
        answer, status, headers = run_wsgi_app(self._app, environ, buffered=True)
        if how == "lost":
            return _refuse("unavailable", request.method, start_response)
        body = b"".join(answer)
        start_response(status, headers.to_wsgi_list())
        return [body[: len(body) // 2] if how == "cut" else body]


class _Quiet(MotoRequestHandler):
    def log(self, *_: Any) -> None:
        """Nothing: a client that has given up is no news here."""


def no_fault(request: Request) -> None:
    """All requests pass."""


def _refuse(how: str, method: str, start_response: Any) -> list[bytes]:
    status, text = REFUSALS[how]
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
    return [b"" if method == "HEAD" else text.encode()]
