"""A network that is cut between applications and the relay, in every way a cable and a router know."""

import random
import time
from contextlib import ExitStack, contextmanager

import pytest

from tests.faults.flow import QUICK, QUICK_RELAY, flow
from tests.faults.proxy import DOWN, UP, proxy_to

pytestmark = pytest.mark.slow

MESSAGES = 600
NOTICED = "Disconnected"


@contextmanager
def flow_over_a_proxy(folder, messages=MESSAGES):
    proxies = []
    with ExitStack() as stack:

        def between(made):
            proxies.append(stack.enter_context(proxy_to(int(made.relay_url.rsplit(":", 1)[1]))))
            return f"ws://127.0.0.1:{proxies[0].port}"

        with flow(folder, messages, *QUICK, relay_env=QUICK_RELAY, between=between) as run:
            yield run, proxies[0]


def test_a_half_open_connection_is_noticed_and_left(tmp_path):
    """Nothing comes through and nobody closes anything: what only a sign of life that stays out can tell."""
    with flow_over_a_proxy(tmp_path) as (run, network):
        run.more()
        network.freeze(UP, DOWN)
        run.until(lambda: run.alice.says(NOTICED) and run.bob.says(NOTICED), "both notice")
        network.thaw()
        run.finish()


def test_a_connection_that_carries_only_towards_the_relay_is_left(tmp_path):
    with flow_over_a_proxy(tmp_path) as (run, network):
        run.more()
        network.freeze(DOWN)
        run.until(lambda: run.alice.says(NOTICED) and run.bob.says(NOTICED), "both notice")
        network.thaw()
        run.finish()


def test_a_connection_that_carries_only_from_the_relay_is_ended(tmp_path):
    """By the relay, which hears nothing, or by the application, whose pings it does not answer: whoever is first."""
    with flow_over_a_proxy(tmp_path) as (run, network):
        run.more()
        network.freeze(UP)
        run.until(lambda: run.alice.says(NOTICED) and run.bob.says(NOTICED), "both notice")
        network.thaw()
        run.finish()


def test_connections_reset_again_and_again_lose_nothing(tmp_path):
    seed = random.SystemRandom().randrange(1_000_000)
    chosen = random.Random(seed)
    with flow_over_a_proxy(tmp_path, 6 * MESSAGES) as (run, network):
        run.more()
        for _ in range(30):
            at = run.taken + chosen.randrange(1, 60)
            moment = time.monotonic() + chosen.uniform(0, 0.2)
            run.until(lambda at=at, moment=moment: run.taken >= at or time.monotonic() >= moment, "the next cut")
            network.cut()
        assert run.taken < run.messages, f"the stream was over too soon (seed {seed})"
        run.finish()
    assert network.tunnels > 10


def test_a_network_that_is_away_comes_back(tmp_path):
    with flow_over_a_proxy(tmp_path) as (run, network):
        run.more()
        network.refuse(True)
        network.cut()
        run.until(lambda: run.alice.says("QueueFull"), "the sender's outbox fills")
        network.refuse(False)
        run.finish()
