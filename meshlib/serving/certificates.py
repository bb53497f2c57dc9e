"""A server's TLS context, whose certificate changes while it serves. Knows files and OpenSSL, no sockets."""

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from cryptography import x509

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2; those of 1.3 are fixed. Without finite-field Diffie-Hellman, which costs a server far more than whoever
asks for it, and without CBC."""

_LARGEST_FILE = 1024 * 1024
"""Bytes of a certificate file that are looked at for the end of its validity. Chains have some KiB."""


class CertificateUnusable(OSError):
    """Certificate, key or client CA cannot be used; the text names the file and what to do."""


@dataclass(frozen=True)
class TlsFiles:
    """Where a server finds what it shows. All PEM."""

    certificate: Path
    """Its own certificate first, then those between it and the root."""
    key: Path
    """Without a passphrase: nobody is there to type it."""
    client_ca: Path | None = None
    """Whoever connects needs a certificate signed by one of these. None: nobody does."""

    def __str__(self) -> str:
        return f"{self.certificate} with the key {self.key}"


class ServerTls(ssl.SSLContext):
    """A context for servers: a handshake takes what :meth:`reload` read last, a connection keeps what it began with.

    It makes connections in memory only (:meth:`wrap_bio`), which is how asyncio, uvloop and our relay use a context.
    """

    _files: TlsFiles
    _current: ssl.SSLContext
    expires: datetime
    """When the certificate stops being valid."""

    def __new__(cls, files: TlsFiles) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, files: TlsFiles) -> None:
        """Read the files.

        Raises:
            CertificateUnusable: one of them cannot be used.
        """
        self._files = files
        self.reload()

    def reload(self) -> None:
        """Read the files again.

        A context of its own for each reading: in one that is loaded anew, a key that does not fit would leave the new
        certificate beside the old key.

        Raises:
            CertificateUnusable: one of them cannot be used; everything stays as it was.
        """
        context, expires = _load(self._files), _expiry(self._files.certificate)
        self._current, self.expires = context, expires

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """As :meth:`ssl.SSLContext.wrap_bio`, with the certificate of now."""
        return self._current.wrap_bio(*args, **options)


def _load(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    # Connections live for hours: resuming one would save nothing, and tickets would outlive a client's certificate.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    try:
        context.load_cert_chain(files.certificate, files.key, password=_nobody_to_ask)
    except (OSError, ValueError) as error:
        raise CertificateUnusable(f"{files} cannot be used: {_reason(error)}") from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (OSError, ValueError) as error:
            raise CertificateUnusable(f"the client CA {files.client_ca} cannot be used: {_reason(error)}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _expiry(certificate: Path) -> datetime:
    try:
        with certificate.open("rb") as opened:
            return x509.load_pem_x509_certificate(opened.read(_LARGEST_FILE)).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise CertificateUnusable(f"{certificate} cannot be used: {_reason(error)}") from error


def _nobody_to_ask() -> str:
    raise ValueError("the key has a passphrase: take it off, and let nobody but the server read the file")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return _WORDS.get(
            error.reason or "", error.reason or "it is no PEM, or holds something else than its name says"
        )
    return getattr(error, "strerror", None) or str(error)


_WORDS = {
    "KEY_VALUES_MISMATCH": "the key belongs to another certificate",
    "NO_CERTIFICATE_OR_CRL_FOUND": "no certificate is in it",
}
"""What OpenSSL means."""
