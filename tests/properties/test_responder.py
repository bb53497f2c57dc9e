"""Whatever is asked, repeated, called off, killed and finished, in whatever order: a task has one answer in the end."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.responder.jobs import JobState
from meshlib.responder.policy import AfterCrash, Policy
from meshlib.responder.runtimes.protocol import Done, Failed
from meshlib.wire.envelopes import TaskCancel, TaskResponse, write_envelope
from tests.unit.meshlib.responder.test_core import PARENT, Desk, ask

tasks = st.integers(0, 4).map("r{}".format)
steps = st.one_of(
    st.tuples(st.just("ask"), tasks),
    st.tuples(st.just("same message"), tasks),
    st.tuples(st.just("cancel"), tasks),
    st.tuples(st.just("done"), tasks),
    st.tuples(st.just("failed"), tasks),
    st.tuples(st.just("wait"), st.integers(1, 300)),
    st.tuples(st.just("crash"), st.none()),
)


@settings(max_examples=300)
@given(st.lists(steps, max_size=25), st.sampled_from(AfterCrash), st.integers(1, 3))
def test_a_task_has_one_answer_in_the_end(happenings, after_crash, concurrency):
    policy = Policy(
        after_crash=after_crash, concurrency=concurrency, timeout=400, burst=1000, burst_in_all=1000, queue=10
    )
    desk = Desk(policy)
    asked = Counter()
    answers = {}
    running = set()

    def look():
        for letter in desk.sent:
            if isinstance(letter.envelope, TaskResponse):
                answers.setdefault(letter.envelope.request_id, []).append((letter.id, letter.envelope))
        desk.sent.clear()
        running.update(job.request_id for job in desk.started)
        desk.started.clear()
        assert len(running) <= concurrency

    def finish(request_id, outcome):
        running.discard(request_id)
        desk.finish(outcome, request_id)

    for what, which in happenings:
        match what:
            case "ask":
                asked[which] += 1
                desk.take(ask(which), message=f"{which}-{asked[which]}")
            case "same message" if asked[which]:
                desk.take(ask(which), message=f"{which}-{asked[which]}")
            case "cancel":
                desk.take(write_envelope(TaskCancel(request_id=which)))
            case "done" if which in running:
                finish(which, Done(f"answer to {which}"))
            case "failed" if which in running:
                finish(which, Failed("no"))
            case "wait":
                desk.wait(which)
            case "crash":
                desk = desk.crash()
                running.clear()
        look()
    for _ in range(20):
        for request_id in sorted(running):
            finish(request_id, Done(f"answer to {request_id}"))
            look()
        desk.wait(400)
        look()
    for request_id in asked:
        said = answers[request_id]
        assert len({(one.ok, one.content, one.error) for _, one in said}) == 1, "two different answers"
        assert len(said) == len({message for message, _ in said}), "one answer twice to the same message"
        assert desk.journal[PARENT, request_id].state is JobState.SENT
    assert set(answers) == set(asked)
