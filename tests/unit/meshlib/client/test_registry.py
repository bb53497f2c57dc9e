"""RegistryClient on asyncio and on trio, against a scripted registry. Nothing here waits."""

import json
import ssl
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import anyio
import httpx
import pytest

from meshlib.client.registry import RegistryClient, RegistryOptions
from meshlib.errors import AgentNotFound, InvalidValue, RegistryRefused, TransportError
from meshlib.identity import Identity, registration_statement, verify_proof
from meshlib.wire import registry as wire
from meshlib.wire.encoding import parse_timestamp, unb64url

pytestmark = pytest.mark.anyio
NOON = 1_790_000_000.0
ALICE = Identity.generate(lambda size: b"a" * size)
Reply = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


class Script:
    """Answers in order, and remembers what was asked and how long the client paused."""

    def __init__(self, *replies: Reply) -> None:
        self._replies: Iterator[Reply] = iter(replies)
        self.asked: list[httpx.Request] = []
        self.pauses: list[float] = []

    async def answer(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.asked.append(request)
        reply = next(self._replies)
        if isinstance(reply, Exception):
            raise reply
        return reply(request) if callable(reply) else reply

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def client(self, **options: Any) -> RegistryClient:
        return RegistryClient(
            "https://registry.test/",
            signer=wire.Signer.of(ALICE),
            options=RegistryOptions(**options),
            http=httpx.AsyncClient(transport=httpx.MockTransport(self.answer)),
            utc=lambda: NOON,
            sleep=self.sleep,
        )


def ok(members: object = None, status: int = 200, date: float | None = None) -> httpx.Response:
    headers = {} if date is None else {"date": formatdate(date, usegmt=True)}
    return httpx.Response(status, json=members if members is not None else {}, headers=headers)


def moment_of(request: httpx.Request) -> float:
    return parse_timestamp(request.headers["authorization"].split(" ")[2])


async def test_a_repetition_sends_the_very_same_bytes() -> None:
    script = Script(httpx.ConnectError("down"), ok({}, 503), ok({"reputation_score": 0.5}))
    assert await script.client().rate("did:mesh:bob", 1.0) == 0.5
    first, second, third = script.asked
    for request in (second, third):
        assert (request.headers, request.content) == (first.headers, first.content)
    assert "mesh-request-signature" in first.headers
    assert script.pauses == [0.25, 0.5]


async def test_refusals_are_not_repeated() -> None:
    for status in (400, 401, 403, 409, 422, 429):
        script = Script(ok({"detail": "no"}, status))
        with pytest.raises(RegistryRefused, match="no") as caught:
            await script.client().heartbeat(ALICE.did)
        assert caught.value.status == status
        assert script.pauses == []


async def test_no_answer_at_all_is_a_transport_error() -> None:
    failure = httpx.ConnectError("no route")
    script = Script(failure, failure, failure)
    with pytest.raises(TransportError, match=r"registry at https://registry\.test cannot be reached: no route"):
        await script.client().get_agent("did:mesh:x")
    assert len(script.asked) == 3
    with pytest.raises(TransportError):
        await RegistryClient("not a url").get_agent("did:mesh:x")


async def test_a_silent_registry_is_given_up() -> None:
    async def silence(request: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    client = RegistryClient(
        "https://registry.test",
        options=RegistryOptions(timeout=0.01, max_retries=0),
        http=httpx.AsyncClient(transport=httpx.MockTransport(silence)),
    )
    with pytest.raises(TransportError, match=r"within 0\.01 s"):
        await client.discover("x")


async def test_an_endless_answer_is_cut_off() -> None:
    script = Script(httpx.Response(200, content=b"[" * (wire.MAX_ANSWER + 1)))
    with pytest.raises(RegistryRefused, match="too long"):
        await script.client().discover("x")


async def test_redirects_are_not_followed() -> None:
    script = Script(httpx.Response(307, headers={"location": "https://evil.test/"}))
    with pytest.raises(RegistryRefused, match="307"):
        await script.client().heartbeat(ALICE.did)
    assert len(script.asked) == 1


async def test_the_registrys_clock_is_measured() -> None:
    script = Script(
        ok({"results": []}, date=NOON + 100),
        ok({"results": []}),
        httpx.Response(200, headers={"date": "?"}, json={"results": []}),
    )
    client = script.client()
    assert client.clock_skew is None
    for _ in range(3):
        await client.discover("x")
        assert client.clock_skew == pytest.approx(100.5)


async def test_a_wrong_clock_is_corrected_once_and_stays_corrected() -> None:
    ahead = NOON + 900
    script = Script(ok({"detail": "stale"}, 401, ahead), ok({}, 200, ahead), ok({}, 200, ahead))
    client = script.client()
    await client.heartbeat(ALICE.did)
    await client.heartbeat(ALICE.did)
    assert [moment_of(request) - NOON for request in script.asked] == [0.0, 900.5, 900.5]
    assert script.pauses == []


async def test_a_registration_is_proven_anew_with_the_corrected_clock() -> None:
    script = Script(ok({"detail": "stale"}, 401, NOON - 700), ok({"did": ALICE.did}, 201, NOON - 700))
    client = script.client()
    client.signer = None
    assert await client.register(ALICE) == wire.Registration(ALICE.did, created=True)
    body = json.loads(script.asked[1].content)
    assert parse_timestamp(body["proof_timestamp"]) == pytest.approx(NOON - 699.5)
    statement = registration_statement(body["public_key"], body["proof_timestamp"])
    verify_proof(ALICE.public_key, statement, unb64url(body["proof"]))


async def test_a_401_with_a_wrong_clock_says_so() -> None:
    script = Script(ok({"detail": "bad"}, 401, NOON + 900), ok({"detail": "bad"}, 401, NOON + 900))
    with pytest.raises(
        RegistryRefused, match=r"bad; this computer's clock is 90[01] s behind the registry's"
    ) as caught:
        await script.client().heartbeat(ALICE.did)
    assert caught.value.status == 401
    assert len(script.asked) == 2


async def test_a_401_with_a_right_clock_is_final() -> None:
    script = Script(ok({"detail": "bad"}, 401, NOON + 5))
    with pytest.raises(RegistryRefused, match=r"bad$"):
        await script.client().heartbeat(ALICE.did)


async def test_a_registry_that_lies_about_the_time_gets_no_signature_over_it() -> None:
    script = Script(ok({"detail": "stale"}, 401, NOON + 30 * 86_400))
    with pytest.raises(RegistryRefused, match="clock"):
        await script.client().heartbeat(ALICE.did)
    assert len(script.asked) == 1


async def test_an_anonymous_401_is_not_about_our_clock() -> None:
    script = Script(ok({"detail": "login"}, 401, NOON + 900))
    client = script.client()
    client.signer = None
    with pytest.raises(RegistryRefused):
        await client.discover("x")
    assert len(script.asked) == 1


async def test_a_registry_that_demands_the_did_gets_it() -> None:
    missing = {"detail": [{"type": "missing", "loc": ["body", "did"], "msg": "Field required"}]}
    script = Script(ok(missing, 422), ok({"did": ALICE.did, "status": "registered"}, 201))
    assert (await script.client().register(ALICE, ["a"])).created
    first, second = (json.loads(request.content) for request in script.asked)
    assert "did" not in first
    assert second == {"did": ALICE.did} | first


async def test_unknown_agents_are_not_found() -> None:
    script = Script(*(ok({"detail": "x"}, 404) for _ in range(6)))
    client = script.client()
    for call in (client.get_agent, client.fetch_prekeys, client.presence, client.heartbeat):
        with pytest.raises(AgentNotFound):
            await call("did:mesh:x")
    await client.delete_agent("did:mesh:x")
    with pytest.raises(AgentNotFound):
        await client.rate("did:mesh:x", 0.5)


async def test_bound_signatures_can_be_left_out() -> None:
    script = Script(ok())
    await script.client(bound_requests=False).heartbeat(ALICE.did)
    assert "mesh-request-signature" not in script.asked[0].headers
    assert "authorization" in script.asked[0].headers


async def test_a_foreign_http_client_is_left_open() -> None:
    http = httpx.AsyncClient(transport=httpx.MockTransport(Script(ok({"results": []})).answer))
    async with RegistryClient("http://registry.test", http=http) as client:
        await client.discover("x")
    assert not http.is_closed
    await http.aclose()


async def test_tls_and_proxy_settings_reach_the_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://from-the-environment.test:3128")
    seen: list[dict[str, Any]] = []
    original = httpx.AsyncClient

    def spy(**settings: Any) -> httpx.AsyncClient:
        seen.append(settings)
        return original(**settings)

    monkeypatch.setattr(httpx, "AsyncClient", spy)
    context = ssl.create_default_context()
    for options in (
        RegistryOptions(tls=context, proxy="http://proxy.test:3128"),
        RegistryOptions(proxy=""),
        RegistryOptions(),
    ):
        await RegistryClient("https://registry.test", options=options).aclose()
    assert seen[0]["verify"] is context
    assert all(isinstance(settings["verify"], ssl.SSLContext) for settings in seen)
    proxies = [settings["proxy"] and str(settings["proxy"].url) for settings in seen]
    assert proxies == ["http://proxy.test:3128", None, "http://from-the-environment.test:3128"]
    assert not any(settings["trust_env"] for settings in seen)


def test_an_impossible_proxy_is_said_at_once() -> None:
    with pytest.raises(InvalidValue):
        RegistryClient("https://registry.test", options=RegistryOptions(proxy="gopher://x"))


async def test_a_password_in_the_address_stays_out_of_messages() -> None:
    script = Script(httpx.ConnectError("down"))
    http = httpx.AsyncClient(transport=httpx.MockTransport(script.answer))
    options = RegistryOptions(max_retries=0)
    client = RegistryClient("https://user:secret@registry.test/prefix", http=http, options=options)
    with pytest.raises(TransportError) as caught:
        await client.discover("x")
    assert "registry.test/prefix" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "date",
    [
        "Mon, 01 Jan 99999999999 00:00:00 GMT",
        "Mon, 01 Jan 0001 00:00:00 +2300",
        "Mon, 01 Jan 9999 23:59:59 -2300",
        "Mon, 01 Jan 2026 00:00:00 +9999",
        "Mon, 01 Jan 2026 00:00:00 +999999999999999",
        "Mon, 99 Jan 2026 99:99:99 GMT",
        "\x00",
        "yesterday",
        "",
    ],
)
async def test_a_date_that_is_none_is_passed_over(date: str) -> None:
    script = Script(httpx.Response(200, json={"reputation_score": 0.5}, headers=[(b"date", date.encode())]))
    client = script.client()
    assert await client.rate("did:mesh:bob", 1.0) == 0.5
