"""One suite over every place where a responder remembers its tasks."""

import sqlite3
import stat

import pytest

from meshlib.errors import StoreError
from meshlib.identity import Did
from meshlib.responder.core import JobChanges
from meshlib.responder.jobs import Job, JobState
from meshlib.responder.journal import JOURNAL_FILE, MemoryJournal, SqliteJournal, open_journal
from meshlib.store import open_store
from meshlib.wire.envelopes import Artifact, TaskResponse, Telemetry

PARENT = Did("did:mesh:" + "a" * 32)
RESPONSE = TaskResponse(
    request_id="r1",
    content="42 \U0001f600",
    ok=False,
    error="failed",
    artifacts=(Artifact("a", "b", 3),),
    telemetry=Telemetry(1, 2, 3, 4, 5),
    from_agent="analyst",
    timestamp="now",
)


def job(request_id="r1", **members):
    return Job(PARENT, request_id, "do it", f"m-{request_id}", "parent", 2, 60.0, 1_767_225_600.0, **members)


def changes(*jobs, gone=()):
    return JobChanges({one.key: one for one in jobs} | dict.fromkeys(gone))


class Places:
    """Opens the same journal again and again, as restarts do."""

    def __init__(self, kind, folder):
        self.kind, self.folder, self.memory = kind, folder, MemoryJournal()

    def open(self):
        if self.kind == "memory":
            return self.memory
        return SqliteJournal(self.folder, "a passphrase" if self.kind == "sealed" else None)


@pytest.fixture(params=["memory", "sqlite", "sealed"])
def places(request, tmp_path):
    return Places(request.param, tmp_path)


def test_a_new_journal_is_empty(places):
    journal = places.open()
    assert journal.load() == []
    journal.close()


def test_jobs_come_back_as_they_were_and_in_order(places):
    jobs = [
        job("r2", state=JobState.RUNNING),
        job("r1").answered(RESPONSE),
        Job(PARENT, "\u2028 r3", "text \ud800 \0 \U0001f600", "m3"),
    ]
    journal = places.open()
    journal.save(changes(*jobs[:2]))
    journal.save(changes(jobs[2]))
    journal.close()
    journal = places.open()
    assert journal.load() == jobs
    journal.close()


def test_a_later_state_takes_the_earlier_ones_place(places):
    journal = places.open()
    journal.save(changes(job("r1"), job("r2")))
    journal.save(changes(job("r1").answered(RESPONSE)))
    journal.close()
    journal = places.open()
    assert journal.load() == [job("r1").answered(RESPONSE), job("r2")]
    journal.close()


def test_what_is_forgotten_is_gone(places):
    journal = places.open()
    journal.save(changes(job("r1"), job("r2")))
    journal.save(changes(gone=[job("r1").key, (PARENT, "never there")]))
    journal.close()
    journal = places.open()
    assert journal.load() == [job("r2")]
    journal.close()


def test_closing_twice_is_closing_once(places):
    journal = places.open()
    journal.close()
    journal.close()


# --- on the disk -----------------------------------------------------------------------------------------------------


def test_the_file_is_private_and_lies_beside_the_store(tmp_path):
    folder = tmp_path / "agent"
    store = open_store(folder)
    journal = open_journal(folder)
    journal.save(changes(job()))
    assert stat.S_IMODE((folder / JOURNAL_FILE).stat().st_mode) == 0o600
    journal.close()
    store.close()


def test_a_sealed_journal_shows_neither_question_nor_answer(tmp_path):
    journal = open_journal(tmp_path, "a passphrase")
    journal.save(changes(job(), job("r2").answered(RESPONSE)))
    journal.close()
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"do it" not in raw
    assert b"42" not in raw.replace(b"1.42", b"") or b'"content"' not in raw


@pytest.mark.parametrize(("made", "opened"), [(None, "one"), ("one", None), ("one", "another")])
def test_another_passphrase_opens_nothing(tmp_path, made, opened):
    open_journal(tmp_path, made).close()
    with pytest.raises(StoreError):
        open_journal(tmp_path, opened)


def test_records_cannot_change_places(tmp_path):
    journal = open_journal(tmp_path, "a passphrase")
    journal.save(changes(job("r1"), job("r2")))
    journal.close()
    with sqlite3.connect(tmp_path / JOURNAL_FILE) as connection:
        connection.execute(
            "UPDATE job SET sealed_content = (SELECT sealed_content FROM job WHERE request_id = 'r2')"
            " WHERE request_id = 'r1'"
        )
    connection.close()
    journal = open_journal(tmp_path, "a passphrase")
    with pytest.raises(StoreError):
        journal.load()
    journal.close()


def test_a_record_nobody_wrote_is_told_without_its_content(tmp_path):
    journal = open_journal(tmp_path)
    journal.save(changes(job()))
    journal.close()
    with sqlite3.connect(tmp_path / JOURNAL_FILE) as connection:
        connection.execute("UPDATE job SET state = 'odd'")
    connection.close()
    journal = open_journal(tmp_path)
    with pytest.raises(StoreError, match="restore a copy") as told:
        journal.load()
    assert "do it" not in str(told.value)
    journal.close()
