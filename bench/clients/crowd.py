"""Many peers that knock at one client and say one thing each, without being clients themselves."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable
from uuid import uuid4

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


def visit(did: str, count: int, relay_port: int, registry_port: int) -> None:
    """Have ``count`` new agents knock at ``did``, each with one message, and wait until it has acked them all.

    Raises:
        LoadError: it does not.
    """
    host = parse_did(did)
    bundle = bundle_of(host, registry_port)
    for first in range(0, count, AT_ONCE):
        with Loop(relay_port, answers_connect=True) as loop:
            guests = loop.open([Agent() for _ in range(min(AT_ONCE, count - first))])
            heard = [_knock(guest, host, bundle) for guest in guests]
            if not loop.spin(lambda heard=heard: all(one() for one in heard)):  # type: ignore[misc]
                raise LoadError(f"after {first} guests the client acks no more")


def _knock(guest: Connection, host: Did, bundle: PrekeyBundle) -> Callable[[], bool]:
    """Knock and say something; what comes back tells whether it was delivered."""
    assert guest.agent is not None
    identity, now, message_id = guest.agent.identity, timestamp(time.time()), str(uuid4())
    me = identity.did
    session, opening = Session.initiate(identity, me, host, bundle, Dialect.AGT5, os.urandom)
    _, header, ciphertext = session.encrypt(b'"hello"', os.urandom)
    establishment = frames.Establishment(bytes(opening.ik), bytes(opening.ek), opening.one_time_key_id)
    knock = frames.Knock(me, host, str(uuid4()), now, establishment)
    message = frames.Message(
        me, host, message_id, now, frames.MessageHeader(header.dh, header.pn, header.n), ciphertext
    )
    told = bytearray()
    guest.take = told.extend
    guest.send(client_frame(encode(knock)) + client_frame(encode(message)))
    delivered = f'"{message_id}","state":"delivered"'.encode()
    return lambda: delivered in told
