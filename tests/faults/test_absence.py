"""Servers that are away for long, and applications that are restarted meanwhile.

An hour is nothing but more of the same attempts: backoff has reached its ceiling, bundles are asked for again, and
nobody can start. Here the absence lasts until each of these has happened.
"""

import pytest

from tests.faults.flow import QUICK, flow

pytestmark = pytest.mark.slow

MESSAGES = 600


def test_relay_and_registry_disappear_and_come_back(tmp_path):
    with flow(tmp_path, MESSAGES, *QUICK) as run:
        run.more()
        run.made.relay.kill(None)
        run.made.registry.kill(None)
        run.until(lambda: run.alice.says("QueueFull", 2), "the sender's outbox is full")
        run.alice.kill()
        run.bob.kill()
        run.until(lambda: run.alice.says("TransportError", 5) and run.bob.says("TransportError", 5), "nobody can start")
        run.made.registry.start()
        run.until(lambda: run.made.registry.listening, "the registry is back")
        run.until(
            lambda: run.alice.says("no connection to ws:") and run.bob.says("no connection to ws:"), "no relay yet"
        )
        run.made.relay.start()
        run.finish()


def test_a_registry_that_is_away_when_the_first_message_is_sent(tmp_path):
    with flow(tmp_path, MESSAGES, *QUICK) as run:
        run.made.wait(lambda: run.made.relay_metric("agents") == 2, "both are there")
        run.made.registry.kill(None)
        run.made.registry.again_at = 0.0
        run.finish()
