"""Certificates as files, for servers and clients that are processes."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


class Authority:
    """A private CA below a folder. Every name is for 127.0.0.1 and localhost."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._ca = trustme.CA()
        self._folder = folder
        self.ca = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(self, name: str, into: Path | None = None) -> list[str]:
        """A certificate and its key: the options a server or a client takes it by, ``--tls-cert``, ``--tls-key``."""
        certificate, key = self.files(name, into)
        return ["--tls-cert", str(certificate), "--tls-key", str(key)]

    def files(self, name: str, into: Path | None = None) -> tuple[Path, Path]:
        """Certificate and key, new ones each time; in place of those that ``into`` holds under that name."""
        folder = into or self._folder
        leaf = self._ca.issue_cert("localhost", "127.0.0.1")
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(key)
        return certificate, key

    def trusting(self, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """A client's context: trusts this authority alone, and shows a certificate if there is one."""
        context = ssl.create_default_context(cafile=self.ca)
        if client is not None:
            context.load_cert_chain(*client)
        return context
