"""A lab's certificate authority, one certificate a component, and the kubeconfig files made of them."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = datetime.timedelta(days=365)


class Authority:
    """Signs the certificates of one lab, and keeps everything in one folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        self._key = _new_key(directory / "ca.key")
        self._name = _subject("tidegate-lab", "")
        # Clocks of this machine's users differ from nobody's, but a token made in the same second must be valid.
        self._start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)
        root = self._build(self._name, self._key.public_key(), x509.BasicConstraints(ca=True, path_length=None), [])
        self.ca = directory / "ca.crt"
        self.ca.write_bytes(root.public_bytes(serialization.Encoding.PEM))

    def issue(self, file: str, name: str, groups: str = "", hosts: Sequence[str] = ()) -> tuple[Path, Path]:
        """Make `file`.crt and `file`.key for a client, and for a server under `hosts`. Returns the two paths."""
        key_file, cert_file = self.directory / f"{file}.key", self.directory / f"{file}.crt"
        key = _new_key(key_file)
        cert = self._build(_subject(name, groups), key.public_key(), x509.BasicConstraints(ca=False, path_length=None), hosts)
        cert_file.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        return cert_file, key_file

    def signing_key(self) -> tuple[Path, Path]:
        """Make the key pair that signs service account tokens. Returns public and private file."""
        private, public = self.directory / "sa.key", self.directory / "sa.pub"
        key = _new_key(private)
        public.write_bytes(
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return public, private

    def _build(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, limits: x509.BasicConstraints, hosts: Sequence[str]
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._start)
            .not_valid_after(self._start + _VALID)
            .add_extension(limits, critical=True)
            # Python 3.13 and newer refuse certificates without these (RFC 5280, section 4.2.1).
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if limits.ca:
            builder = builder.add_extension(_SIGNS_CERTIFICATES, critical=True)
        else:
            purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(h) for h in hosts]), critical=False)
        return builder.sign(self._key, hashes.SHA256())


_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def _new_key(file: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    file.touch(mode=0o600)
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    return key


def _subject(name: str, group: str) -> x509.Name:
    organization = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group)] if group else []
    return x509.Name([*organization, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def kubeconfig(server: str, ca: Path, user: dict[str, str]) -> str:
    """Render a kubeconfig (JSON is YAML) for one server and one user."""
    cluster = {"server": server, "certificate-authority-data": _base64(ca)}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": "lab", "user": user}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            "current-context": "lab",
        },
        indent=1,
    )


def certificate_user(certificate: Path, key: Path) -> dict[str, str]:
    """Return the `user` part of a kubeconfig for a client certificate."""
    return {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
