"""A few requests to the lab's API server without starting kubectl, which costs a third of a second each time."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

POLL = 0.1


class ApiError(Exception):
    """The API server refused; `status` is its HTTP status, 0 when it could not be reached."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """Speaks to one API server as the lab's administrator."""

    def __init__(self, port: int, pki: Path) -> None:
        self._port = port
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")

    def request(self, method: str, path: str, body: object = None, content_type: str = "application/json") -> str:
        """Send one request and return the answer's text."""
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, context=self._tls, timeout=30)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": content_type})
            answer = connection.getresponse()
            text = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(0, f"{method} {path}: {error}") from error
        finally:
            connection.close()
        if answer.status >= 300:
            raise ApiError(answer.status, f"{method} {path}: {answer.status} {text}")
        return text

    def get(self, path: str) -> Any:
        """Read one object or list."""
        return json.loads(self.request("GET", path))

    def items(self, path: str) -> list[Any]:
        """Read a list; a kind that is not served has no items."""
        try:
            found: list[Any] = self.get(path)["items"]
        except ApiError as error:
            if error.status != 404:
                raise
            return []
        return found

    def apply(self, path: str, body: object) -> str:
        """Server-side apply one object; returns what is stored now."""
        query = "?fieldManager=tidegate-lab&force=true"
        return self.request("PATCH", path + query, body, "application/apply-patch+yaml")

    def token(self, namespace: str, account: str) -> str:
        """Mint a token of a service account, good for a day."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86400}}
        return str(json.loads(self.request("POST", path, body))["status"]["token"])


def wait_for(what: str, look: Callable[[], T | None], timeout: float, check: Callable[[], None] = lambda: None) -> T:
    """Look again and again until there is something; the error repeats what the last look said.

    `check` may give up earlier, by raising what is wrong.
    """
    until = time.monotonic() + timeout
    trouble = ""
    while True:
        try:
            found = look()
        except ApiError as error:
            found, trouble = None, f": {error}"
        if found:
            return found
        check()
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not come within {timeout:.0f} s{trouble}")
        time.sleep(POLL)
