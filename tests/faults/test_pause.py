"""Processes that stand still for longer than their peers' patience (SIGSTOP), and go on as if nothing had been.

Two minutes of real time are 120 s against the relay's 90 s for a silent application, and against the 45 s an
application gives a silent relay. Here the patience is shortened instead, and a pause lasts until the other side has
noticed.
"""

import signal
import time

import pytest

from tests.faults.flow import QUICK, QUICK_RELAY, flow

pytestmark = pytest.mark.slow

MESSAGES = 600
NOTICED = "Disconnected"


def given_up_by(run):
    """Who stands still between two connections has none to be given up: long enough is enough then."""
    enough = time.monotonic() + 10
    return lambda: run.made.relay_metric("idle_total") >= 1 or time.monotonic() > enough


def test_a_paused_recipient_gets_everything_afterwards(tmp_path):
    with flow(tmp_path, MESSAGES, *QUICK, relay_env=QUICK_RELAY) as run:
        run.more()
        run.bob.signal(signal.SIGSTOP)
        run.until(given_up_by(run), "the relay gives the recipient up")
        run.bob.signal(signal.SIGCONT)
        run.finish()


def test_a_paused_sender_goes_on(tmp_path):
    with flow(tmp_path, MESSAGES, *QUICK, relay_env=QUICK_RELAY) as run:
        run.more()
        run.alice.signal(signal.SIGSTOP)
        run.until(given_up_by(run), "the relay gives the sender up")
        run.alice.signal(signal.SIGCONT)
        run.finish()


def test_a_paused_relay_is_noticed_and_loses_nothing(tmp_path):
    with flow(tmp_path, MESSAGES, *QUICK, relay_env=QUICK_RELAY) as run:
        run.more()
        run.made.relay.signal(signal.SIGSTOP)
        run.until(lambda: run.alice.says(NOTICED) and run.bob.says(NOTICED), "both notice")
        run.made.relay.signal(signal.SIGCONT)
        run.finish()


def test_a_paused_registry_holds_up_nobody_who_is_talking(tmp_path):
    with flow(tmp_path, MESSAGES, *QUICK) as run:
        run.more()
        run.made.registry.signal(signal.SIGSTOP)
        run.more(MESSAGES // 2)
        run.made.registry.signal(signal.SIGCONT)
        run.finish()
