"""Many peers that knock at one client and say one thing each, without being clients themselves."""

from __future__ import annotations

import http.client
import json
import os
import time
from uuid import uuid4

from bench import servers
from bench.load.loop import Connection, LoadError, Loop
from bench.load.wire import Agent, client_frame
from meshlib.crypto.prekeys import PrekeyBundle
from meshlib.crypto.x3dh import Dialect
from meshlib.identity import Did, parse_did
from meshlib.session import Session
from meshlib.wire import frames
from meshlib.wire import registry as wire
from meshlib.wire.codec import encode
from meshlib.wire.encoding import timestamp

AT_ONCE = 100


def bundle_of(did: Did, registry_port: int) -> PrekeyBundle:
    """An agent's bundle without a one-time key, so that it serves everybody."""
    connection = http.client.HTTPConnection("127.0.0.1", registry_port, timeout=10)
    connection.request("GET", wire.fetch_prekeys(did).target)
    response = connection.getresponse()
    bundle = wire.read_bundle(wire.Answer(response.status, response.read()), did).checked(did)
    connection.close()
    return bundle._replace(one_time_prekey=None, one_time_prekey_id=None)


def visit(did: str, count: int, relay: servers.Server, registry: servers.Server) -> None:
    """Have ``count`` new agents knock at ``did``, each with one message, and wait until it has acked them all.

    Raises:
        LoadError: it does not.
    """
    host = parse_did(did)
    bundle = bundle_of(host, registry.port)
    before, visited = _delivered(relay), 0
    while visited < count:
        with Loop(relay.port, answers_connect=True) as loop:
            guests = loop.open([Agent() for _ in range(min(AT_ONCE, count - visited))])
            for guest in guests:
                _knock(guest, host, bundle)
            visited += len(guests)
            patience = time.monotonic() + 60
            while _delivered(relay) - before < visited:
                until = time.monotonic() + 0.02
                while time.monotonic() < until:
                    loop.step(0.01)
                if time.monotonic() > patience:
                    raise LoadError(f"the client acked {_delivered(relay) - before} of {visited} messages")


def _knock(guest: Connection, host: Did, bundle: PrekeyBundle) -> None:
    assert guest.agent is not None
    identity, now = guest.agent.identity, timestamp(time.time())
    me = identity.did
    session, opening = Session.initiate(identity, me, host, bundle, Dialect.AGT5, os.urandom)
    _, header, ciphertext = session.encrypt(b'"hello"', os.urandom)
    establishment = frames.Establishment(bytes(opening.ik), bytes(opening.ek), opening.one_time_key_id)
    knock = frames.Knock(me, host, str(uuid4()), now, establishment)
    message = frames.Message(me, host, str(uuid4()), now, frames.MessageHeader(*header), ciphertext)
    guest.send(client_frame(encode(knock)) + client_frame(encode(message)))


def _delivered(relay: servers.Server) -> int:
    return int(json.loads(servers.health(relay.port))["stats"]["messages_delivered"])
