"""A server's context: which certificate a handshake gets, and what is refused without harm."""

import ssl
from pathlib import Path

import pytest

from meshlib.serving.certificates import CertificateUnusable, ServerTls, TlsFiles
from tests.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def shown(server: ServerTls, client: ssl.SSLContext) -> bytes:
    """The certificate of a handshake."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours, theirs = (
        server.wrap_bio(there, back, server_side=True),
        client.wrap_bio(back, there, server_hostname="localhost"),
    )
    for _ in range(2):
        for side in (theirs, ours):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return theirs.getpeercert(binary_form=True) or b""


def test_a_handshake_gets_what_was_read_last(authority: Authority) -> None:
    server, client = ServerTls(TlsFiles(*authority.files("a"))), authority.trusting()
    first = shown(server, client)
    authority.files("a")
    assert shown(server, client) == first
    server.reload()
    assert shown(server, client) != first
    assert server.expires.year > 2030


@pytest.mark.parametrize("broken", ["certificate", "key", "client_ca"])
def test_what_cannot_be_read_is_named_and_changes_nothing(authority: Authority, broken: str) -> None:
    files = TlsFiles(*authority.files("a"), authority.ca)
    server, client = ServerTls(files), authority.trusting(authority.files("member"))
    before = shown(server, client)
    path: Path = getattr(files, broken)
    good = path.read_bytes()
    for bad in (b"", b"junk", authority.files("other")[1].read_bytes()):
        path.write_bytes(bad)
        with pytest.raises(CertificateUnusable, match=str(path)):
            server.reload()
        assert shown(server, client) == before
    path.write_bytes(good)
    server.reload()


def test_a_client_that_speaks_1_1_at_most_is_refused(authority: Authority) -> None:
    server, client = ServerTls(TlsFiles(*authority.files("a"))), authority.trusting()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        client.maximum_version = client.minimum_version = ssl.TLSVersion.TLSv1_1
    client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match=r"(?i)unsupported.protocol"):
        shown(server, client)
