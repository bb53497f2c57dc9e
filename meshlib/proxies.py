"""A proxy as a value: what its URL says, and a form of it that may be shown."""

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from meshlib.errors import InvalidValue

_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


@dataclass(frozen=True)
class Proxy:
    """Opens connections for us: by HTTP ``CONNECT``, itself reached with TLS or without, or by SOCKS 5.

    It resolves the names of servers, with ``socks5`` as with ``socks5h``. ``str()`` leaves the password out.
    """

    scheme: str
    """``http``, ``https``, ``socks5`` or ``socks5h``."""
    host: str
    port: int
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> "Proxy":
        """Read ``scheme://user:password@host:port``; without scheme it is ``http``, and each has its usual port.

        Raises:
            InvalidValue: it cannot work. What stands before an ``@`` is not shown.
        """
        shown = repr(url.rpartition("@")[2])
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            raise InvalidValue(f"the proxy's address {shown} is no URL with a port from 1 to 65535") from None
        if parts.scheme not in _PORTS:
            raise InvalidValue(f"a proxy's address starts with {', '.join(_PORTS)} and ://, which {shown} does not")
        if not parts.hostname or port == 0:
            raise InvalidValue(f"the proxy's address {shown} names no host, or no possible port")
        username, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
        return cls(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], username, password)

    @property
    def credentials(self) -> tuple[str, str] | None:
        """User and password, if it wants any."""
        return None if self.username is None else (self.username, self.password or "")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"
