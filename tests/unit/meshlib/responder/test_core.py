"""What a responder decides, with time in the test's hands."""

import json

import pytest

from meshlib.clock import Instant
from meshlib.identity import Did
from meshlib.responder.answers import ANSWER_LIMIT
from meshlib.responder.core import REFUSALS, REPEATS, Draining, ResponderCore
from meshlib.responder.jobs import JobState
from meshlib.responder.policy import AfterCrash, Policy
from meshlib.responder.runtimes.protocol import Done, Failed
from meshlib.wire.envelopes import (
    Ping,
    Pong,
    TaskCancel,
    TaskProgress,
    TaskReceived,
    TaskRequest,
    TaskResponse,
    write_envelope,
)

DEFAULT = Policy()
PARENT, EVE = Did("did:mesh:" + "a" * 32), Did("did:mesh:" + "e" * 32)


def ask(request_id="r1", content="do it", **members):
    return write_envelope(TaskRequest(request_id=request_id, content=content, **members))


class Desk:
    """A core, its journal and its clock."""

    def __init__(self, policy=DEFAULT, givers=(PARENT,), saved=()):
        self.policy, self.givers = policy, givers
        self.now = Instant(1_000.0, 1_767_225_600.0)
        self.journal = {job.key: job for job in saved}
        self.core = ResponderCore("analyst", policy, givers, saved, self.now)
        self.sent, self.started, self.stopped, self.messages = [], [], [], 0
        self.step()

    def step(self):
        while changes := self.core.changes():
            for key, job in changes.jobs.items():
                if job is None:
                    self.journal.pop(key, None)
                else:
                    self.journal[key] = job
            self.collect()
        self.collect()

    def collect(self):
        self.started += self.core.starts()
        self.stopped += self.core.stops()
        for letter in self.core.letters():
            self.sent.append(letter)
            if letter.answers is not None:
                self.core.sent(letter.answers, self.now, accepted=True)

    def take(self, payload, sender=PARENT, message=None):
        self.messages += 1
        assert self.core.claims(sender, payload)
        self.core.take(sender, message or f"m{self.messages}", payload, self.now)
        self.step()

    def finish(self, outcome, request_id="r1", sender=PARENT):
        self.core.finished((sender, request_id), outcome, self.now)
        self.step()

    def wait(self, seconds):
        """Time passes; what is due on the way happens when it is due."""
        end = self.now.monotonic + seconds
        while self.core.next_deadline() <= end:
            self.move(max(0.0, self.core.next_deadline() - self.now.monotonic))
            self.core.tick(self.now)
            self.step()
        self.move(end - self.now.monotonic)

    def move(self, seconds):
        self.now = Instant(self.now.monotonic + seconds, self.now.utc + seconds)

    def crash(self):
        return Desk(self.policy, self.givers, list(self.journal.values()))

    def answers(self, request_id="r1"):
        return [
            letter.envelope
            for letter in self.sent
            if isinstance(letter.envelope, TaskResponse) and letter.envelope.request_id == request_id
        ]

    def words(self, kind):
        return [letter.envelope for letter in self.sent if isinstance(letter.envelope, kind)]


# --- what is a task --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        ask(),
        json.dumps(ask()),
        {"type": "task_request", "request_id": "outer", "content": json.dumps(ask())},
        write_envelope(TaskCancel(request_id="r1")),
        write_envelope(Ping(nonce="n")),
        "please look at this",
    ],
)
def test_tasks_and_words_about_them_are_claimed(payload):
    assert Desk().core.claims(PARENT, payload)


@pytest.mark.parametrize(
    "payload",
    [
        write_envelope(TaskResponse(request_id="r1", content="done")),
        json.dumps(write_envelope(TaskResponse(request_id="r1", content="done"))),
        {"type": "task_request", "content": json.dumps(write_envelope(TaskResponse(request_id="r1", content="x")))},
        write_envelope(TaskProgress(request_id="r1")),
        write_envelope(TaskReceived(request_id="r1")),
        write_envelope(Pong(nonce="n")),
        {"type": "file_transfer"},
        {"a": 1},
        '{"a": 1}',
        "",
        "  ",
        7,
        None,
        b"\xff",
        ["do it"],
    ],
)
def test_answers_and_everything_else_are_for_the_inbox(payload):
    assert not Desk().core.claims(PARENT, payload)


def test_a_strangers_text_is_for_the_inbox_and_its_task_is_refused():
    desk = Desk()
    assert not desk.core.claims(EVE, "please look at this")
    desk.take(ask(), sender=EVE)
    (refusal,) = desk.answers()
    assert (refusal.ok, refusal.error) == (False, "refused")
    assert "takes no tasks from you" in refusal.content
    assert desk.journal == {}


def test_by_default_nobody_may_give_tasks():
    desk = Desk(Policy(), givers=())
    desk.take(ask())
    assert desk.answers()[0].error == "refused"
    assert desk.started == []


def test_everybody_may_where_that_was_chosen():
    desk = Desk(Policy(everyone=True), givers=None)
    desk.take(ask(), sender=EVE)
    assert [job.sender for job in desk.started] == [EVE]


# --- the life of a task ----------------------------------------------------------------------------------------------


def test_a_task_is_received_started_and_answered_once():
    desk = Desk()
    desk.take(ask(from_agent="parent", hops=2, timeout_seconds=60))
    (job,) = desk.started
    assert (job.content, job.sender_name, job.hops, job.timeout) == ("do it", "parent", 2, 60)
    assert [type(letter.envelope) for letter in desk.sent] == [TaskReceived, TaskProgress]
    desk.finish(Done("42"))
    (answer,) = desk.answers()
    assert (answer.ok, answer.content, answer.from_agent) == (True, "42", "analyst")
    assert desk.journal[job.key].state is JobState.SENT
    desk.finish(Done("43"))
    assert len(desk.answers()) == 1


def test_a_text_is_answered_under_its_messages_id():
    desk = Desk()
    desk.take("what is 6 times 7?", message="m77")
    desk.finish(Done("42"), "m77")
    assert [answer.content for answer in desk.answers("m77")] == ["42"]


def test_a_failure_says_so_and_nothing_of_its_detail():
    desk = Desk()
    desk.take(ask())
    desk.finish(Failed("the model does not answer", detail="/home/op/.key: 401", error="failed"))
    (answer,) = desk.answers()
    assert (answer.ok, answer.error, answer.content) == (False, "failed", "the model does not answer")


def test_a_repeated_request_gets_the_stored_answer():
    desk = Desk()
    desk.take(ask())
    desk.take(ask())
    assert len(desk.started) == 1
    assert len(desk.words(TaskReceived)) == 2
    desk.finish(Done("42"))
    desk.take(ask())
    assert [answer.content for answer in desk.answers()] == ["42", "42"]
    first, second = [letter.id for letter in desk.sent if isinstance(letter.envelope, TaskResponse)]
    assert first != second
    assert len(desk.started) == 1


def test_a_message_that_comes_again_has_its_answer_in_the_outbox():
    desk = Desk()
    desk.take(ask(), message="same")
    desk.finish(Done("42"))
    desk.take(ask(), message="same")
    assert len(desk.answers()) == 1


def test_the_same_id_of_another_peer_is_another_task():
    desk = Desk(Policy(everyone=True), givers=None)
    desk.take(ask(content="mine"))
    desk.take(ask(content="hers"), sender=EVE)
    assert [job.content for job in desk.started] == ["mine", "hers"]


def test_progress_is_told_while_it_runs_and_not_after():
    desk = Desk()
    desk.take(ask())
    desk.wait(65)
    assert [(word.stage, word.tick) for word in desk.words(TaskProgress)] == [
        ("started", 0),
        ("executing", 1),
        ("executing", 2),
        ("executing", 3),
    ]
    assert desk.words(TaskProgress)[-1].elapsed_seconds == pytest.approx(60)
    desk.finish(Done("42"))
    desk.wait(100)
    assert len(desk.words(TaskProgress)) == 4


def test_a_task_that_waits_is_heard_of_and_runs_in_its_turn():
    desk = Desk(Policy(concurrency=1))
    desk.take(ask("r1"))
    desk.take(ask("r2"))
    assert [job.request_id for job in desk.started] == ["r1"]
    assert desk.core.waiting == 1
    desk.wait(130)
    assert len([word for word in desk.words(TaskReceived) if word.request_id == "r2"]) == 3
    desk.finish(Done("42"))
    assert [job.request_id for job in desk.started] == ["r1", "r2"]


def test_a_task_whose_time_is_over_before_its_turn_is_not_run():
    desk = Desk(Policy(concurrency=1))
    desk.take(ask("r1"))
    desk.take(ask("r2", timeout_seconds=30))
    desk.wait(31)
    assert [answer.error for answer in desk.answers("r2")] == ["timeout"]
    desk.finish(Done("42"))
    assert [job.request_id for job in desk.started] == ["r1"]


def test_a_requester_cannot_have_more_time_than_there_is():
    desk = Desk(Policy(timeout=100))
    desk.take(ask(timeout_seconds=1e9))
    assert desk.started[0].timeout == 100


def test_an_answer_too_long_for_a_message_is_cut_and_says_so():
    desk = Desk()
    desk.take(ask())
    desk.finish(Done("x" * (ANSWER_LIMIT + 7)))
    assert desk.answers()[0].content.endswith("7 characters are left out]")


def test_repeating_a_task_costs_us_no_more_than_a_bounded_number_of_answers():
    desk = Desk()
    desk.take(ask())
    desk.finish(Done("x" * 100_000))
    for _ in range(500):
        desk.take(ask())
    assert len(desk.answers()) == 1 + REPEATS.burst
    desk.wait(1 / REPEATS.per_second)
    desk.take(ask())
    assert len(desk.answers()) == 2 + REPEATS.burst


def test_repeating_a_task_that_runs_is_answered_a_bounded_number_of_times():
    desk = Desk()
    for _ in range(500):
        desk.take(ask())
    assert len(desk.words(TaskReceived)) == 1 + REPEATS.burst


def test_an_answer_the_client_will_never_take_becomes_a_word_about_it_once():
    desk = Desk()
    desk.take(ask())
    desk.core.finished((PARENT, "r1"), Done("42"), desk.now)
    desk.core.changes()
    (letter,) = desk.core.letters()
    desk.core.unsendable(letter.answers, desk.now)
    desk.core.changes()
    (letter,) = desk.core.letters()
    assert (letter.envelope.ok, letter.envelope.error) == (False, "failed")
    desk.core.unsendable(letter.answers, desk.now)
    assert [job.state for job in desk.core.changes().jobs.values()] == [JobState.SENT]
    assert desk.core.letters() == []


# --- calling off -----------------------------------------------------------------------------------------------------


def cancel(request_id="r1"):
    return write_envelope(TaskCancel(request_id=request_id))


def test_a_running_task_that_is_called_off_is_stopped_and_answered_so():
    desk = Desk(Policy(concurrency=1))
    desk.take(ask("r1"))
    desk.take(ask("r2"))
    desk.take(cancel())
    assert desk.stopped == [(PARENT, "r1")]
    assert [answer.error for answer in desk.answers()] == ["cancelled"]
    assert [job.request_id for job in desk.started] == ["r1"]  # its place is free once it has really ended
    desk.finish(None)
    assert [job.request_id for job in desk.started] == ["r1", "r2"]
    assert len(desk.answers()) == 1


def test_an_outcome_that_crossed_the_cancel_is_dropped():
    desk = Desk()
    desk.take(ask())
    desk.take(cancel())
    desk.finish(Done("42"))
    assert [answer.error for answer in desk.answers()] == ["cancelled"]


def test_a_waiting_task_that_is_called_off_never_runs():
    desk = Desk(Policy(concurrency=1))
    desk.take(ask("r1"))
    desk.take(ask("r2"))
    desk.take(cancel("r2"))
    desk.finish(Done("42"))
    assert [job.request_id for job in desk.started] == ["r1"]
    assert [answer.error for answer in desk.answers("r2")] == ["cancelled"]


def test_only_the_one_who_asked_can_call_it_off():
    desk = Desk(Policy(everyone=True), givers=None)
    desk.take(ask())
    desk.take(cancel(), sender=EVE)
    assert desk.stopped == []
    desk.finish(Done("42"))
    desk.take(cancel())
    assert [answer.ok for answer in desk.answers()] == [True]


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_a_full_queue_is_answered_busy():
    desk = Desk(Policy(concurrency=1, queue=1))
    for number in range(3):
        desk.take(ask(f"r{number}"))
    assert desk.answers("r2")[0].error == "busy"
    assert len(desk.journal) == 2


def test_one_peer_does_not_fill_the_queue_for_all():
    desk = Desk(Policy(everyone=True, per_peer=2), givers=None)
    for number in range(3):
        desk.take(ask(f"r{number}"))
    assert desk.answers("r2")[0].error == "busy"
    desk.take(ask("hers"), sender=EVE)
    assert desk.core.waiting == 1


def test_tasks_have_a_rate_per_peer():
    desk = Desk(Policy(burst=2, every=10))
    for number in range(3):
        desk.take(ask(f"r{number}"))
        desk.finish(Done("42"), f"r{number}")
    assert desk.answers("r2")[0].error == "busy"
    desk.wait(10)
    desk.take(ask("r3"))
    assert len(desk.started) == 3


def test_tasks_have_a_rate_over_all_peers():
    desk = Desk(Policy(everyone=True, burst_in_all=1, every_in_all=10), givers=None)
    desk.take(ask("r1"))
    desk.take(ask("r2"), sender=EVE)
    assert desk.answers("r2")[0].error == "busy"


def test_work_that_was_passed_on_too_often_is_refused():
    desk = Desk(Policy(max_hops=3))
    desk.take(ask("r1", hops=2))
    desk.take(ask("r2", hops=3))
    assert [job.request_id for job in desk.started] == ["r1"]
    assert desk.answers("r2")[0].error == "refused"


def test_work_that_comes_back_does_not_wait_for_itself():
    desk = Desk(Policy(concurrency=1))
    desk.take(ask("r1"))
    desk.take(ask("round", hops=2))
    assert desk.answers("round")[0].error == "busy"
    desk.take(ask("beside"))
    assert desk.core.waiting == 1


def test_work_of_the_same_depth_waits_for_its_turn():
    desk = Desk(Policy(concurrency=1))
    desk.take(ask("r1", hops=1))
    desk.take(ask("r2", hops=1))
    assert desk.core.waiting == 1


def test_an_empty_task_and_one_that_cannot_be_read_are_refused():
    desk = Desk()
    desk.take(ask("r1", content=" \n"))
    desk.take({"type": "task_request", "request_id": "r2"})
    assert [desk.answers(one)[0].error for one in ("r1", "r2")] == ["refused", "refused"]
    desk.take({"type": "task_cancel", "request_id": "x" * 1000})  # names nothing: nothing happens
    assert desk.journal == {}


def test_refusing_has_a_rate():
    desk = Desk(Policy(), givers=())
    for number in range(100):
        desk.take(ask(f"r{number}"), sender=EVE)
    assert len(desk.words(TaskResponse)) == REFUSALS.burst


def test_pings_are_answered_at_a_rate():
    desk = Desk()
    for _ in range(50):
        desk.take(write_envelope(Ping(nonce="n")), sender=EVE)
    assert [pong.nonce for pong in desk.words(Pong)] == ["n"] * 10


def test_answers_are_remembered_within_bounds():
    desk = Desk(Policy(answers_kept=2, burst=100, burst_in_all=100))
    for number in range(5):
        desk.take(ask(f"r{number}"))
        desk.finish(Done("42"), f"r{number}")
    assert [key[1] for key in desk.journal] == ["r3", "r4"]
    desk = Desk(Policy(answers_kept_bytes=100))
    for number in range(3):
        desk.take(ask(f"r{number}"))
        desk.finish(Done("x" * 60), f"r{number}")
    assert [key[1] for key in desk.journal] == ["r2"]
    desk = Desk(Policy(answers_kept_seconds=3600))
    desk.take(ask("old"))
    desk.finish(Done("42"), "old")
    desk.wait(4000)
    desk.take(ask("new"))
    desk.finish(Done("42"), "new")
    assert [key[1] for key in desk.journal] == ["new"]


# --- restarts --------------------------------------------------------------------------------------------------------


def test_a_task_that_waited_runs_after_a_restart():
    desk = Desk(Policy(concurrency=1))
    desk.take(ask("r1"))
    desk.take(ask("r2"))
    desk = desk.crash()
    assert [job.request_id for job in desk.started] == ["r2"]


def test_a_task_that_ran_is_answered_as_lost():
    desk = Desk()
    desk.take(ask())
    desk = desk.crash()
    assert desk.started == []
    assert [answer.error for answer in desk.answers()] == ["lost"]
    desk = desk.crash()
    assert desk.answers() == []


def test_or_it_is_run_again_where_the_operator_wants_that():
    desk = Desk(Policy(after_crash=AfterCrash.RERUN))
    desk.take(ask())
    desk = desk.crash()
    assert [job.request_id for job in desk.started] == ["r1"]
    desk.finish(Done("42"))
    assert [answer.content for answer in desk.answers()] == ["42"]


def test_an_answer_that_did_not_reach_the_outbox_is_sent_after_a_restart_under_the_same_id():
    desk = Desk()
    desk.take(ask())
    desk.core.finished((PARENT, "r1"), Done("42"), desk.now)
    for key, job in desk.core.changes().jobs.items():
        desk.journal[key] = job
    (letter,) = desk.core.letters()  # and there the process dies
    desk = desk.crash()
    assert [answer.content for answer in desk.answers()] == ["42"]
    assert [one.id for one in desk.sent] == [letter.id]


def test_an_answer_the_outbox_has_no_room_for_is_offered_again():
    desk = Desk()
    desk.take(ask())
    desk.core.finished((PARENT, "r1"), Done("42"), desk.now)
    desk.core.changes()
    (letter,) = desk.core.letters()
    desk.core.sent(letter.answers, desk.now, accepted=False)
    desk.wait(25)
    assert [answer.content for answer in desk.answers()] == ["42"]


def test_a_responder_that_is_about_to_end_leaves_new_tasks_in_the_inbox():
    desk = Desk()
    desk.take(ask("r1"))
    desk.core.drain()
    with pytest.raises(Draining):
        desk.take(ask("r2"))
    desk.finish(Done("42"))
    assert [answer.content for answer in desk.answers()] == ["42"]


def test_what_is_stopped_at_the_end_is_lost_or_runs_again():
    desk = Desk()
    desk.take(ask())
    desk.core.drain()
    desk.finish(None)
    assert [answer.error for answer in desk.answers()] == ["lost"]
    desk = Desk(Policy(after_crash=AfterCrash.RERUN))
    desk.take(ask())
    desk.core.drain()
    desk.finish(None)
    assert desk.answers() == []
    assert [job.request_id for job in desk.crash().started] == ["r1"]
