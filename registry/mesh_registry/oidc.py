"""Tokens of an identity provider (OpenID Connect), for the tier ``verified``.

The provider's keys are fetched from its discovery document and kept for an hour. Which agent a token vouches for is
not in it: the agent authenticates its request itself, so that a token seen elsewhere verifies nobody else.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from mesh_registry.refusal import Refusal, unavailable

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
"""Signatures by asymmetric keys only: with a symmetric one the published key would be the secret."""

KEYS_LIVE = 3600.0
KEYS_REST = 60.0
"""Seconds before unknown key ids may make us ask the provider again."""

LEEWAY = 60.0
MAX_DOCUMENT = 256 * 1024
MAX_CLAIM = 256


@dataclass(frozen=True)
class Issuer:
    """Whose tokens count, and for whom they must have been issued."""

    url: str
    audience: str


@dataclass(frozen=True)
class Claims:
    """What a token says about its bearer: application and tenant, as far as it names them."""

    app_id: str | None
    tenant_id: str | None


class TokenChecker:
    """Checks tokens of one issuer. Owned by one event loop."""

    def __init__(
        self, issuer: Issuer, http: httpx.AsyncClient, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepare a checker; nothing is fetched before the first token.

        Raises:
            ImportError: PyJWT is not installed.
        """
        import jwt  # an optional dependency: registries without an identity provider do without

        self._jwt = jwt
        self._issuer = issuer
        self._http = http
        self._monotonic = monotonic
        self._keys: dict[str, Any] = {}
        self._fetched_at: float | None = None
        self._fetching = asyncio.Lock()

    async def check(self, token: str) -> Claims:
        """The claims of a genuine token.

        Raises:
            Refusal: 401, it is not one of this issuer for this audience and time; 503, the issuer cannot be asked.
        """
        jwt = self._jwt
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            key = await self._key(key_id if isinstance(key_id, str) else "")
            claims = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                audience=self._issuer.audience,
                issuer=self._issuer.url,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            raise Refusal(401, f"the verification token is not accepted: {type(error).__name__}") from error
        return Claims(_claim(claims, "appid", "azp"), _claim(claims, "tid"))

    async def close(self) -> None:
        """Close connections to the issuer."""
        await self._http.aclose()

    async def _key(self, key_id: str) -> Any:
        async with self._fetching:
            age = None if self._fetched_at is None else self._monotonic() - self._fetched_at
            if age is None or age > KEYS_LIVE or (key_id not in self._keys and age > KEYS_REST):
                self._keys = await self._fetch()
                self._fetched_at = self._monotonic()
        key = self._keys.get(key_id)
        if key is None:
            raise Refusal(401, "the verification token is signed by a key its issuer does not publish")
        return key

    async def _fetch(self) -> dict[str, Any]:
        configuration = await self._get(self._issuer.url.rstrip("/") + "/.well-known/openid-configuration")
        if configuration.get("issuer") != self._issuer.url or not isinstance(configuration.get("jwks_uri"), str):
            raise unavailable("the identity provider's configuration does not name this issuer and its keys", 60)
        document = await self._get(configuration["jwks_uri"])
        try:
            keys = self._jwt.PyJWKSet.from_dict(document)
        except self._jwt.PyJWTError as error:
            raise unavailable("the identity provider publishes no usable keys", 60) from error
        return {key.key_id or "": key for key in keys.keys}

    async def _get(self, url: str) -> dict[str, Any]:
        try:
            answer = await self._http.get(url)
            answer.raise_for_status()
            value = answer.json() if len(answer.content) <= MAX_DOCUMENT else None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise unavailable("the identity provider cannot be asked at the moment", 30) from error
        if not isinstance(value, dict):
            raise unavailable("the identity provider's answer is no document", 60)
        return value


def _claim(claims: dict[str, Any], *names: str) -> str | None:
    for name in names:
        value = claims.get(name)
        if isinstance(value, str) and value:
            return value[:MAX_CLAIM]
    return None
