"""Proxies as values: what is read, and what is never shown."""

import pytest

from meshlib.config import ClientConfig
from meshlib.errors import InvalidValue
from meshlib.proxies import Proxy


@pytest.mark.parametrize(
    ("url", "shown", "credentials"),
    [
        ("http://proxy:3128", "http://proxy:3128", None),
        ("proxy:3128", "http://proxy:3128", None),
        ("proxy", "http://proxy:80", None),
        ("https://proxy/", "https://proxy:443", None),
        ("socks5://u:p@proxy", "socks5://proxy:1080", ("u", "p")),
        ("SOCKS5H://u@[::1]:9", "socks5h://[::1]:9", ("u", "")),
        ("http://u%40corp:p%3Aw@proxy:1", "http://proxy:1", ("u@corp", "p:w")),
    ],
)
def test_every_usual_form_is_read(url: str, shown: str, credentials: tuple[str, str] | None) -> None:
    proxy = Proxy.parse(url)
    assert str(proxy) == shown
    assert proxy.credentials == credentials


@pytest.mark.parametrize(
    "url", ["ftp://u:S3CRET@x", "http://u:S3CRET@x:0", "http://u:S3CRET@", "socks4://u:S3CRET@x:1"]
)
@pytest.mark.parametrize("through", [Proxy.parse, lambda url: ClientConfig(proxy=url)])
def test_what_cannot_work_is_said_without_the_password(url: str, through) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidValue) as refused:
        through(url)
    assert "S3CRET" not in str(refused.value)


def test_no_form_of_it_shows_the_password() -> None:
    proxy = Proxy.parse("http://user:S3CRET@proxy:3128")
    assert "S3CRET" not in f"{proxy} {proxy!r}"
