"""Where the API server is and how we prove who we are, read from a kubeconfig or from a pod's service account.

Deliberately small: certificates, tokens and token files. Login helpers (`exec`, OIDC, clouds) are refused.
kubernetes-asyncio knows them all, but importing it costs 38 MB, which an agent on every node should not pay.
"""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class CredentialsError(Exception):
    """Credentials that are missing or of a kind that we do not read; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A server's URL, the TLS context for it (None for plain http), and a token or the file that holds it."""

    server: str
    tls: ssl.SSLContext | None = None
    token: str = ""
    token_file: Path | None = None

    def headers(self) -> dict[str, str]:
        """Return the Authorization header; a token file is read each time, because the kubelet rotates it."""
        token = self.token_file.read_text().strip() if self.token_file else self.token
        return {"Authorization": f"Bearer {token}"} if token else {}


def load(kubeconfig: str | None) -> Credentials:
    """Read `kubeconfig`, or the service account of the pod we run in when it is None. Raises CredentialsError."""
    try:
        return from_kubeconfig(Path(kubeconfig)) if kubeconfig else in_cluster()
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        where = kubeconfig or "the pod's service account"
        raise CredentialsError(f"{where}: cannot be read: {type(error).__name__}: {error}") from error


def in_cluster() -> Credentials:
    """Read the service account that Kubernetes mounts into every pod."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    if not host:
        raise CredentialsError("not in a pod: name a kubeconfig with --kubeconfig or $KUBECONFIG")
    host = f"[{host}]" if ":" in host else host
    return Credentials(
        server=f"https://{host}:{os.environ.get('KUBERNETES_SERVICE_PORT', '443')}",
        tls=ssl.create_default_context(cafile=str(SERVICE_ACCOUNT / "ca.crt")),
        token_file=SERVICE_ACCOUNT / "token",
    )


def from_kubeconfig(path: Path) -> Credentials:
    """Read the current context of a kubeconfig."""
    config = yaml.safe_load(path.read_text())
    context = _named(config, "contexts", "context", config["current-context"])
    cluster = _named(config, "clusters", "cluster", context["cluster"])
    user = _named(config, "users", "user", context["user"]) if context.get("user") else {}
    if foreign := {"exec", "auth-provider", "username"} & user.keys():
        raise CredentialsError(f"{path}: login by {min(foreign)} is not supported: use a certificate or a token")
    token_file = user.get("tokenFile")
    return Credentials(
        server=cluster["server"].rstrip("/"),
        tls=_tls(cluster, user, path.parent) if cluster["server"].startswith("https") else None,
        token=user.get("token", ""),
        token_file=path.parent / token_file if token_file else None,
    )


def _named(config: Any, plural: str, singular: str, name: str) -> Any:
    for entry in config.get(plural) or ():
        if entry["name"] == name:
            return entry[singular]
    raise KeyError(f"no {singular} named {name!r}")


def _tls(cluster: Any, user: Any, folder: Path) -> ssl.SSLContext:
    authority = _content(cluster, "certificate-authority", folder)
    tls = ssl.create_default_context(cadata=authority.decode() if authority else None)
    if cluster.get("insecure-skip-tls-verify"):
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    certificate, key = _content(user, "client-certificate", folder), _content(user, "client-key", folder)
    if certificate and key:
        # Python's ssl loads a client certificate from files only; they are gone again at once.
        with tempfile.NamedTemporaryFile() as chain:
            chain.write(certificate + b"\n" + key)
            chain.flush()
            tls.load_cert_chain(chain.name)
    return tls


def _content(entry: Any, field: str, folder: Path) -> bytes:
    if f"{field}-data" in entry:
        return base64.b64decode(entry[f"{field}-data"])
    return (folder / entry[field]).read_bytes() if entry.get(field) else b""
