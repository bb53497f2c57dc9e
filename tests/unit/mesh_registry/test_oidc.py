"""Tokens of an identity provider that exists only in this process."""

import json
import time
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from mesh_registry.core import Policy
from mesh_registry.oidc import KEYS_REST, Claims, Issuer, TokenChecker
from mesh_registry.refusal import Refusal

from meshlib.wire import registry as wire
from tests.unit.mesh_registry.helpers import Actor, Site

pytestmark = pytest.mark.anyio
ISSUER = Issuer("https://issuer.test/v2.0", "mesh")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Provider:
    """Publishes keys and signs tokens with them."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.published = [self.jwk("one", self.private)]
        self.asked: list[str] = []
        self.fails = False
        self.issuer = ISSUER.url

    @staticmethod
    def jwk(key_id: str, private: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
        key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private.public_key()))
        return {**key, "kid": key_id, "use": "sig", "alg": "ES256"}

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        if self.fails:
            raise httpx.ConnectError("down", request=request)
        if request.url.path.endswith("/.well-known/openid-configuration"):
            return httpx.Response(200, json={"issuer": self.issuer, "jwks_uri": "https://issuer.test/keys"})
        return httpx.Response(200, json={"keys": self.published})

    def token(self, key_id: str = "one", private: Any = None, **claims: Any) -> str:
        stated = {"iss": ISSUER.url, "aud": "mesh", "exp": time.time() + 600, "appid": "app", "tid": "tenant"} | claims
        stated = {name: value for name, value in stated.items() if value is not None}
        return jwt.encode(stated, private or self.private, algorithm="ES256", headers={"kid": key_id})

    def checker(self, monotonic: Any = time.monotonic) -> TokenChecker:
        return TokenChecker(ISSUER, httpx.AsyncClient(transport=httpx.MockTransport(self.answer)), monotonic)


async def refused(checker: TokenChecker, token: str) -> int:
    with pytest.raises(Refusal) as caught:
        await checker.check(token)
    assert token not in caught.value.detail
    return caught.value.status


async def test_a_genuine_token_says_who_vouches() -> None:
    provider = Provider()
    checker = provider.checker()
    assert await checker.check(provider.token()) == Claims("app", "tenant")
    assert await checker.check(provider.token(appid=None, azp="azp", tid=None)) == Claims("azp", None)
    assert len(provider.asked) == 2, "the keys are fetched once"


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "other"},
        {"aud": None},
        {"iss": "https://evil.test"},
        {"iss": None},
        {"exp": 1000},
        {"exp": None},
        {"nbf": time.time() + 6000},
    ],
)
async def test_tokens_for_others_or_other_times_are_refused(claims: dict[str, Any]) -> None:
    provider = Provider()
    assert await refused(provider.checker(), provider.token(**claims)) == 401


async def test_forged_tokens_are_refused() -> None:
    provider = Provider()
    checker = provider.checker()
    other = ec.generate_private_key(ec.SECP256R1())
    assert await refused(checker, provider.token(private=other)) == 401
    assert await refused(checker, provider.token("unknown")) == 401
    assert await refused(checker, "x") == 401
    assert (
        await refused(checker, jwt.encode({"iss": ISSUER.url, "aud": "mesh", "exp": 9e9}, None, algorithm="none"))
        == 401
    )
    shared = jwt.encode({"iss": ISSUER.url, "aud": "mesh", "exp": 9e9}, "s" * 32, "HS256", headers={"kid": "one"})
    assert await refused(checker, shared) == 401
    private = rsa.generate_private_key(65537, 2048)
    mixed = jwt.encode({"iss": ISSUER.url, "aud": "mesh", "exp": 9e9}, private, "RS256", headers={"kid": "one"})
    assert await refused(checker, mixed) == 401


async def test_new_keys_are_looked_for_but_not_at_every_token() -> None:
    provider = Provider()
    now = 0.0
    checker = provider.checker(lambda: now)
    await checker.check(provider.token())
    rolled = ec.generate_private_key(ec.SECP256R1())
    provider.published.append(provider.jwk("two", rolled))
    assert await refused(checker, provider.token("two", rolled)) == 401
    assert len(provider.asked) == 2
    now = KEYS_REST + 1
    assert await checker.check(provider.token("two", rolled)) == Claims("app", "tenant")


async def test_a_provider_that_cannot_be_asked_is_503() -> None:
    provider = Provider()
    provider.fails = True
    assert await refused(provider.checker(), provider.token()) == 503
    provider.fails = False
    provider.issuer = "https://evil.test"
    assert await refused(provider.checker(), provider.token()) == 503


async def test_a_token_verifies_only_the_agent_that_signs_the_request() -> None:
    provider = Provider()
    site = Site(Policy(verify_tokens=True), tokens=provider.checker())
    alice, mallory = Actor("alice"), Actor("mallory")
    await site.join(alice)
    await site.join(mallory)
    token = provider.token()
    assert (await site.send(wire.verify_agent(alice.did, token))).status_code == 401
    assert (await site.send(wire.verify_agent(alice.did, token), mallory)).status_code == 403
    assert (await site.send(wire.verify_agent(alice.did, "x"), alice)).status_code == 401
    site.clock.advance(1)
    answer = await site.send(wire.verify_agent(alice.did, token), alice)
    assert answer.status_code == 200
    assert (answer.json()["tier"], answer.json()["verified_app_id"]) == ("verified", "app")
    record = (await site.send(wire.get_agent(alice.did))).json()
    assert (record["tier"], record["verified_tenant_id"]) == ("verified", "tenant")
    assert (await site.send(wire.get_agent(mallory.did))).json()["tier"] == "anonymous"
