"""Registry requests: production's RegistryClient against a recorded registry, and what connecting does there.

The recorded answers are played back over ``httpx.MockTransport``; each request must come in the recorded order with
the recorded method, URL, headers and body, and every recorded answer must have been asked for.
"""

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpx

from meshlib.client.registry import RegistryClient, RegistryOptions
from meshlib.crypto.keys import Ed25519Private, X25519Public
from meshlib.crypto.prekeys import make_one_time_prekeys, make_signed_prekey
from meshlib.crypto.x3dh import Dialect
from meshlib.errors import AgentNotFound, InvalidValue, MeshError, RegistryRefused, TransportError
from meshlib.identity import Did, Identity, did_of, verify_proof
from meshlib.session import Session
from meshlib.wire import registry as wire
from meshlib.wire.codec import encode
from meshlib.wire.encoding import message_id, parse_json, parse_timestamp, timestamp
from meshlib.wire.frames import Connect, Establishment, FetchPending, Heartbeat, Knock, Message, MessageHeader
from vectors.checkers import Checker, CheckFailed, Group, Test, expect_equal

DEFAULT_BASE_URL = "http://registry.test:8082"
DEFAULT_ONE_TIME_KEYS = 20
SIGNED_HEADERS = ("content-type", "authorization", wire.BOUND_HEADER)
Exchange = dict[str, Any]


class RecordedRegistry:
    """Plays recorded answers, in order, to exactly the recorded requests."""

    def __init__(self, exchanges: list[Exchange]) -> None:
        self._exchanges = exchanges
        self._asked = 0
        self.pauses = 0

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if self._asked == len(self._exchanges):
            raise CheckFailed(f"a request more than recorded: {request.method} {request.url}")
        exchange = self._exchanges[self._asked]
        self._asked += 1
        recorded = exchange["request"]
        body = await request.aread()
        expect_equal("method", request.method, recorded["method"])
        expect_equal("url", str(request.url), recorded["url"])
        ours = [[name, value] for name, value in request.headers.items() if name in SIGNED_HEADERS]
        expect_equal("headers", ours, recorded["headers"])
        expect_equal("body", body, b"" if recorded["body"] is None else recorded["body"].encode())
        response = exchange["response"]
        if "networkError" in response:
            if "status" in response:
                raise CheckFailed("an answer and a network error are recorded for one request")
            raise httpx.ConnectError(response["networkError"], request=request)
        return httpx.Response(response["status"], content=response["body"].encode())

    async def pause(self, _: float) -> None:
        self.pauses += 1

    def client(self, base_url: str, now: str, signer: wire.Signer | None, options: RegistryOptions) -> RegistryClient:
        return RegistryClient(
            base_url,
            signer=signer,
            options=options,
            http=httpx.AsyncClient(transport=httpx.MockTransport(self.answer)),
            utc=lambda: _utc(now),
            sleep=self.pause,
        )

    def expect_finished(self) -> None:
        expect_equal("requests made", self._asked, len(self._exchanges))


class RecordedEntropy:
    """Recorded random values and ids in their order; asking for another kind or size fails, and so does a rest."""

    def __init__(self, step: Test) -> None:
        self._values = [bytes.fromhex(item["value"]) for item in step.get("random", [])]
        self._purposes = [item["purpose"] for item in step.get("random", [])]
        self._uuids = [bytes.fromhex(text.replace("-", "")) for text in step.get("uuids", [])]

    def drawing(self, *purposes: str) -> Callable[[int], bytes]:
        """Entropy for production code that must draw exactly these purposes."""
        wanted = list(purposes)

        def draw(size: int) -> bytes:
            if not wanted or not self._purposes or wanted.pop(0) != self._purposes.pop(0):
                raise CheckFailed("randomness is drawn in another order than recorded")
            value = self._values.pop(0)
            expect_equal("bytes of randomness", size, len(value))
            return value

        return draw

    def uuid(self, size: int) -> bytes:
        if size != 16 or not self._uuids:
            raise CheckFailed("an id is drawn that is not recorded")
        return self._uuids.pop(0)

    def expect_finished(self) -> None:
        if self._values or self._uuids:
            raise CheckFailed(f"{len(self._values)} random values and {len(self._uuids)} ids stay unused")


def _utc(now: str) -> float:
    utc = parse_timestamp(now)
    expect_equal("now", timestamp(utc), now)
    return utc


def _identity(private: str, public: str) -> Identity:
    identity = Identity(Ed25519Private(bytes.fromhex(private)))
    expect_equal("public key", bytes(identity.public_key).hex(), public)
    return identity


@contextmanager
def _judged(test: Test, last_answer: Exchange | None) -> Iterator[None]:
    """Run production code; whether and how it fails must be what is recorded."""
    error = test.get("error")
    expect_equal("result", "valid" if error is None else "invalid", test["result"])
    try:
        yield
    except MeshError as raised:
        if error is None:
            raise CheckFailed(f"ours refuses what is recorded as valid: {raised}") from raised
        _expect_same_error(raised, error, last_answer)
    else:
        if error is not None:
            raise CheckFailed(f"ours accepts what upstream refuses with {error['message']!r}")


def _expect_same_error(raised: MeshError, error: dict[str, Any], last_answer: Exchange | None) -> None:
    """Ours names another class and other words; upstream's say which of them it must be."""
    message: str = error["message"]
    if last_answer is None:
        expect_equal("error", type(raised), InvalidValue)
        expect_equal(
            "message", message.rpartition(" ")[0], "RegistryClient.register: identityKey must be 32 bytes, got"
        )
        return
    answer = last_answer["response"]
    if "networkError" in answer:
        expect_equal("error", type(raised), TransportError)
        expect_equal("error message", message, answer["networkError"])
    elif message.startswith("MeshClient.establishSessionWithPeer: no prekey bundle"):
        expect_equal("error", type(raised), AgentNotFound)
    elif not isinstance(raised, RegistryRefused):
        raise CheckFailed(f"ours fails with {raised!r}, upstream with {message!r}")
    else:
        expect_equal("status", raised.status, answer["status"])
        if error["name"] == "RegistryError":
            _expect_registry_error(raised, error, last_answer)
        elif error["name"] not in ("SyntaxError", "TypeError"):
            raise CheckFailed(f"an error of an unknown kind is recorded: {error['name']}")


_NAMES = {"POST": "register", "PUT": "uploadPrekeys", "DELETE": "deleteAgent"}


def _expect_registry_error(raised: RegistryRefused, error: dict[str, Any], exchange: Exchange) -> None:
    request, answer = exchange["request"], exchange["response"]
    if "status" in error:
        expect_equal("recorded status", error["status"], answer["status"])
        expect_equal("recorded body", error["body"], answer["body"])
    if answer["status"] == 200:
        expect_equal("reason", "identity_key_ed" in raised.detail, "identity_key_ed" in error["message"])
        return
    reading = "discover" if "/v1/discover" in request["url"] else "getAgent"
    reading = "fetchPrekeys" if request["url"].endswith("/prekeys") else reading
    name = _NAMES.get(request["method"], reading)
    expect_equal("message", error["message"], f"{name} failed: {raised.status}")
    expect_equal("explanation", raised.detail, wire.detail(wire.Answer(answer["status"], answer["body"].encode())))


# --- one call of the registry client --------------------------------------------------------------------------------

Call = Callable[[RegistryClient, Test, str], Awaitable[object]]


def _check_call(group: Group, test: Test, profile: str) -> None:
    call = _CALLS.get((group["type"], test["input"]["call"]))
    if call is None:
        raise CheckFailed(f"{test['input']['call']} is no call of {group['type']}")
    unknown = set(test.get("clientOptions", {})) - {"maxRetries"}
    if unknown:
        raise CheckFailed(f"unknown client options: {sorted(unknown)}")
    options = RegistryOptions(
        bound_requests=False, max_retries=test.get("clientOptions", {}).get("maxRetries", RegistryOptions.max_retries)
    )
    signer = None
    if "auth" in test:
        auth = test["auth"]
        signer = wire.Signer.of(_identity(auth["ed25519Private"], auth["ed25519Public"]), auth["did"])
    exchanges = test["exchanges"]
    registry = RecordedRegistry(exchanges)
    _utc(test["now"])
    last = exchanges[-1] if exchanges else None
    with _judged(test, last):
        returned = anyio.run(call, registry.client(test["baseUrl"], test["now"], signer, options), test, profile)
        expect_equal("returns", returned, test["returns"])
    registry.expect_finished()
    if not exchanges and "error" in test:
        length = test["error"]["message"].rpartition(" ")[2]
        expect_equal("length in the message", f"{len(bytes.fromhex(test['input']['publicKey']))}", length)
    expect_equal("pauses between attempts", registry.pauses, max(0, len(exchanges) - 1))


async def _register(client: RegistryClient, test: Test, profile: str) -> object:
    given = test["input"]
    capabilities, metadata = given["capabilities"], given["metadata"]
    if given.get("pop"):
        identity = _identity(given["ed25519Private"], given["publicKey"])
        registration = await client.register(identity, capabilities, metadata, did=given["did"])
    else:
        key = X25519Public(bytes.fromhex(given["publicKey"]))
        registration = await client.register_legacy(given["did"], key, capabilities, metadata)
    if registration.created == (test["exchanges"][-1]["response"]["status"] == 409):
        raise CheckFailed("created is claimed for a registration that existed, or the reverse")
    return {"did": registration.did} if profile == "agt-5" else None  # npm 4.0.0 returns nothing


async def _upload_prekeys(client: RegistryClient, test: Test, _: str) -> object:
    given = test["input"]
    identity = _identity(given["ed25519Private"], given["ed25519Public"])
    expect_equal("identityKey", bytes(identity.agreement_key.public).hex(), given["identityKey"])
    signed = given["signedPreKey"]
    upload = wire.PrekeyUpload(
        identity.agreement_key.public,
        identity.public_key,
        signed["keyId"],
        X25519Public(bytes.fromhex(signed["publicKey"])),
        bytes.fromhex(signed["signature"]),
        tuple((key["keyId"], X25519Public(bytes.fromhex(key["publicKey"]))) for key in given["oneTimePreKeys"]),
    )
    verify_proof(identity.public_key, bytes(upload.signed_prekey), upload.signed_prekey_signature)
    if "random" in given:
        expect_equal("prekeys from the recorded randomness", _generated(identity, given), upload)
    await client.upload_prekeys(given["did"], upload)
    return None


def _generated(identity: Identity, given: dict[str, Any]) -> wire.PrekeyUpload:
    entropy = RecordedEntropy(given)
    signed = make_signed_prekey(identity, given["signedPreKey"]["keyId"], entropy.drawing("signedPreKeyPrivate"))
    count = len(given["oneTimePreKeys"])
    one_time = make_one_time_prekeys(0, count, entropy.drawing(*["oneTimePreKeyPrivate"] * count))
    entropy.expect_finished()
    return wire.PrekeyUpload.of(identity, signed, one_time)


async def _fetch_prekeys(client: RegistryClient, test: Test, _: str) -> object:
    return await _fetched(client, test["input"]["did"], test.get("returns"))


async def _fetched(client: RegistryClient, did: str, recorded: dict[str, Any] | None) -> object:
    try:
        bundle = await client.fetch_prekeys(did)
    except AgentNotFound:
        return None
    members: dict[str, object] = {
        "identityKey": bundle.identity_key.hex(),
        "identityKeyEd": bundle.identity_key_ed.hex(),
        "signedPreKey": bundle.signed_prekey.hex(),
        "signedPreKeySignature": bundle.signed_prekey_signature.hex(),
        "signedPreKeyId": bundle.signed_prekey_id,
    }
    if bundle.one_time_prekey is not None:
        members |= {"oneTimePreKey": bundle.one_time_prekey.hex(), "oneTimePreKeyId": bundle.one_time_prekey_id}
    # JavaScript hands ids through as they came; ours reads digits as the number they are.
    for name in ("signedPreKeyId", "oneTimePreKeyId"):
        if recorded and isinstance(recorded.get(name), str) and name in members:
            members[name] = str(members[name])
    return members


def _last_body(test: Test) -> str:
    body: str = test["exchanges"][-1]["response"]["body"]
    return body


async def _discover(client: RegistryClient, test: Test, _: str) -> object:
    given = test["input"]
    return await _discovered(client, given["capability"], given["limit"], _last_body(test))


async def _discovered(client: RegistryClient, capability: str, limit: int | None, answer: str) -> object:
    found = await (client.discover(capability) if limit is None else client.discover(capability, limit))
    said = parse_json(answer)["results"]
    return [
        {
            "did": agent.did,
            "capabilities": _passed_through(list(agent.capabilities), item.get("capabilities"), []),
            "reputationScore": _passed_through(agent.reputation_score, item.get("reputation_score"), None),
            "lastSeen": _date(agent.last_seen),
        }
        for agent, item in zip(found, said, strict=True)
    ]


async def _get_agent(client: RegistryClient, test: Test, _: str) -> object:
    return await _agent(client, test["input"]["did"], _last_body(test))


async def _agent(client: RegistryClient, did: str, answer: str) -> object:
    try:
        agent = await client.get_agent(did)
    except AgentNotFound:
        return None
    said = parse_json(answer)
    return {
        "did": agent.did,
        "capabilities": _passed_through(list(agent.capabilities), said.get("capabilities"), []),
        "metadata": _passed_through(dict(agent.metadata), said.get("metadata"), {}),
        "registeredAt": _date(agent.registered_at),
        "lastSeen": _date(agent.last_seen),
        "reputationScore": _passed_through(agent.reputation_score, said.get("reputation_score"), None),
    }


def _passed_through(ours: object, said: object, absent: object) -> object:
    """What JavaScript, which passes any value through, makes of ours, which has types.

    A value of the right type must be the same in both; what has another type must read as absent in ours.
    """
    fits = type(said) in (int, float) if absent is None else type(said) is type(absent)
    expect_equal("value as said or absent", ours, (float(said) if absent is None else said) if fits else absent)  # type: ignore[arg-type]
    return said


def _date(utc: float | None) -> str:
    # JavaScript keeps whole milliseconds and drops the rest.
    return "Invalid Date" if utc is None else timestamp(math.floor(round(utc * 1e6) / 1e3) / 1e3)


async def _delete_agent(client: RegistryClient, test: Test, _: str) -> object:
    await client.delete_agent(test["input"]["did"])
    return None


_CALLS: dict[tuple[str, str], Call] = {
    ("Register", "register"): _register,
    ("UploadPrekeys", "uploadPrekeys"): _upload_prekeys,
    ("FetchPrekeys", "fetchPrekeys"): _fetch_prekeys,
    ("Discover", "discover"): _discover,
    ("GetAgent", "getAgent"): _get_agent,
    ("DeleteAgent", "deleteAgent"): _delete_agent,
}


# --- what a mesh client does at the registry ------------------------------------------------------------------------


class Agent:
    """A mesh client of one profile, as far as registry and first frames go, on production's values and client."""

    def __init__(self, client: dict[str, Any], profile: str) -> None:
        self.identity = _identity(client["ed25519Private"], client["ed25519Public"])
        expect_equal("identityPublic", bytes(self.identity.agreement_key.public).hex(), client["identityPublic"])
        chosen = client["agentDidOption"]
        self.legacy = profile == "agt-4"
        self.did: str = chosen if self.legacy or chosen.startswith("did:mesh:") else did_of(self.identity.public_key)
        self.options = client["options"]
        known = {"displayName", "capabilities", "registrationMetadata", "oneTimePrekeyCount", "autoRegister"}
        if set(self.options) - known:
            raise CheckFailed(f"unknown options: {sorted(set(self.options) - known)}")
        self.next_signed = 0
        self.next_one_time = 0
        self.sessions: dict[str, Session] = {}

    def run(self, step: Test) -> None:
        act = _STEPS.get(step["op"])
        if act is None:
            raise CheckFailed(f"unknown step {step['op']}")
        registry = RecordedRegistry(step["exchanges"])
        signer = None if self.legacy else wire.Signer.of(self.identity, self.did)
        client = registry.client(DEFAULT_BASE_URL, step["now"], signer, RegistryOptions(bound_requests=False))
        entropy = RecordedEntropy(step)
        frames: list[dict[str, str]] = []
        with _judged(step, step["exchanges"][-1] if step["exchanges"] else None):
            returned = anyio.run(act, self, step, client, entropy, frames)
            expect_equal("returns", returned, step.get("returns"))
        registry.expect_finished()
        entropy.expect_finished()
        expect_equal("writes", frames, step["writes"])
        expect_equal("didAfter", self.did, step["didAfter"])

    async def connect(self, step: Test, client: RegistryClient, entropy: RecordedEntropy, frames: list[Any]) -> None:
        proof: dict[str, Any] = {}
        if not self.legacy:
            signature = self.identity.sign(step["now"].encode())
            proof = {"public_key": bytes(self.identity.public_key), "timestamp": step["now"], "signature": signature}
        frames.append({"type": "connect", "frame": encode(Connect(self.did, **proof)).decode()})
        frames.append({"type": "fetch_pending", "frame": encode(FetchPending(self.did)).decode()})
        if self.options.get("autoRegister", True):
            await self.register(step, client, entropy, frames)

    async def register(self, step: Test, client: RegistryClient, entropy: RecordedEntropy, frames: list[Any]) -> None:
        count = self.options.get("oneTimePrekeyCount", DEFAULT_ONE_TIME_KEYS)
        signed = make_signed_prekey(self.identity, self.next_signed, entropy.drawing("signedPreKeyPrivate"))
        draw = entropy.drawing(*["oneTimePreKeyPrivate"] * count)
        one_time = make_one_time_prekeys(self.next_one_time, count, draw)
        self.next_signed += 1
        self.next_one_time += count
        capabilities, metadata = wire.profile(
            self.options.get("displayName"),
            self.options.get("capabilities", []),
            self.options.get("registrationMetadata", {}),
        )
        if self.legacy:
            await client.register_legacy(self.did, self.identity.agreement_key.public, capabilities, metadata)
        else:
            registration = await client.register(self.identity, capabilities, metadata, did=self.did)
            self.did = registration.did
            client.signer = wire.Signer.of(self.identity, self.did)
        await client.upload_prekeys(self.did, wire.PrekeyUpload.of(self.identity, signed, one_time))

    async def establish(self, step: Test, client: RegistryClient, entropy: RecordedEntropy, frames: list[Any]) -> None:
        peer = Did(step["peer"])
        bundle = (await client.fetch_prekeys(peer)).checked(peer)
        knock_id = message_id(entropy.uuid)
        dialect = Dialect.AGT4 if self.legacy else Dialect.AGT5
        draw = entropy.drawing("x3dhEphemeralPrivate", "ratchetPrivate")
        session, opening = Session.initiate(self.identity, Did(self.did), peer, bundle, dialect, draw)
        self.sessions[peer] = session
        establishment = Establishment(bytes(opening.ik), bytes(opening.ek), opening.one_time_key_id)
        knock = Knock(self.did, peer, knock_id, step["now"], establishment)
        frames.append({"type": "knock", "frame": encode(knock).decode()})

    async def send(self, step: Test, client: RegistryClient, entropy: RecordedEntropy, frames: list[Any]) -> None:
        peer = step["peer"]
        if peer not in self.sessions:
            raise CheckFailed(f"no session with {peer} has been established")
        parse_json(step["payloadJson"])
        frame_id = message_id(entropy.uuid)
        session, header, ciphertext = self.sessions[peer].encrypt(
            step["payloadJson"].encode(), entropy.drawing("nonce")
        )
        self.sessions[peer] = session
        written = MessageHeader(bytes(header.dh), header.pn, header.n)
        message = Message(self.did, peer, frame_id, step["now"], written, ciphertext)
        frames.append({"type": "message", "frame": encode(message).decode()})

    async def heartbeat(self, step: Test, client: RegistryClient, entropy: RecordedEntropy, frames: list[Any]) -> None:
        frames.append({"type": "heartbeat", "frame": encode(Heartbeat(self.did, step["now"])).decode()})

    async def discover(self, step: Test, client: RegistryClient, entropy: RecordedEntropy, frames: list[Any]) -> object:
        return await _discovered(client, step["capability"], step["limit"], _last_body(step))

    async def look_up(self, step: Test, client: RegistryClient, entropy: RecordedEntropy, frames: list[Any]) -> object:
        return await _agent(client, self.did, _last_body(step))

    async def fetch(self, step: Test, client: RegistryClient, entropy: RecordedEntropy, frames: list[Any]) -> object:
        returned = await _fetched(client, self.did, step.get("returns"))
        if isinstance(returned, dict):
            expect_equal("identity key", returned["identityKeyEd"], bytes(self.identity.public_key).hex())
        return returned

    async def delete(self, step: Test, client: RegistryClient, entropy: RecordedEntropy, frames: list[Any]) -> None:
        await client.delete_agent(self.did)


Step = Callable[[Agent, Test, RegistryClient, RecordedEntropy, list[Any]], Awaitable[object]]

_STEPS: dict[str, Step] = {
    "connect": Agent.connect,
    "registerSelf": Agent.register,
    "establishSessionWithPeer": Agent.establish,
    "send": Agent.send,
    "heartbeat": Agent.heartbeat,
    "discover": Agent.discover,
    "getAgent": Agent.look_up,
    "fetchPrekeys": Agent.fetch,
    "deleteAgent": Agent.delete,
}


def _check_agent(group: Group, test: Test, profile: str) -> None:
    if profile not in ("agt-4", "agt-5"):
        raise CheckFailed(f"unknown profile {profile}")
    agent = Agent(test["client"], profile)
    if not test["steps"]:
        raise CheckFailed("no steps")
    for step in test["steps"]:
        agent.run(step)
    refused = any(step["result"] == "invalid" for step in test["steps"])
    expect_equal("result", "invalid" if refused else "valid", test["result"])


CHECKERS: dict[str, Checker] = {
    **{kind: _check_call for kind, _ in _CALLS},
    "MeshClientRegistration": _check_agent,
    "MeshClientWithRealRegistry": _check_agent,
}
