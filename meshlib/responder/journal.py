"""Where a responder remembers its tasks: beside the client's store, or in memory for agents that have none."""

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from meshlib.errors import MeshError, StoreError
from meshlib.identity import Did
from meshlib.responder.core import JobChanges
from meshlib.responder.jobs import Job, JobKey, JobState
from meshlib.store.database import Database, prepare_folder, schemas
from meshlib.store.seal import Seal
from meshlib.wire.encoding import MessageId
from meshlib.wire.envelopes import TaskResponse

JOURNAL_FILE = "tasks.db"

_encode_response = msgspec.json.Encoder().encode
_decode_response = msgspec.json.Decoder(TaskResponse).decode


class Journal(Protocol):
    """Keeps jobs. A save is a whole transaction: all of it is there afterwards, or it raises and nothing is."""

    def load(self) -> list[Job]:
        """Every job, in the order in which they came.

        Raises:
            StoreError: the journal cannot be read.
        """

    def save(self, changes: JobChanges) -> None:
        """Write what changed.

        Raises:
            StoreError: nothing of it was written.
        """

    def close(self) -> None:
        """Let go of the file. May be called twice."""


class MemoryJournal:
    """Jobs that go with the process."""

    def __init__(self) -> None:
        self._jobs: dict[JobKey, Job] = {}

    def load(self) -> list[Job]:
        """Every job, in the order in which they came."""
        return list(self._jobs.values())

    def save(self, changes: JobChanges) -> None:
        """Keep what changed."""
        for key, job in changes.jobs.items():
            if job is None:
                self._jobs.pop(key, None)
            else:
                self._jobs[key] = job

    def close(self) -> None:
        """Nothing to let go of."""


class SqliteJournal:
    """Jobs in a SQLite file of their own in the client's folder, sealed if its store is.

    The folder is the client's: whoever opens the journal holds the client's lock.

    Args:
        folder: the client's store.
        passphrase: the store's, if it has one.
    Raises:
        StoreError: the file cannot be used, or the passphrase is not the one it was made with.
    """

    def __init__(self, folder: Path, passphrase: str | None = None) -> None:
        prepare_folder(folder)
        made: list[Seal] = []

        def fill(connection: sqlite3.Connection) -> None:
            seal = Seal.make(passphrase)
            connection.execute("INSERT INTO journal (one, sealing) VALUES (1, ?)", (seal.header,))
            made.append(seal)

        self._database = Database(folder, fill, schemas("meshlib.responder"), name=JOURNAL_FILE)
        try:
            if made:
                self._seal = made[0]
            else:
                ((header,),) = self._database.rows("SELECT sealing FROM journal")
                self._seal = Seal.find(passphrase, header)
            self._database.upgrade()
        except BaseException:
            self._database.close()
            raise

    def load(self) -> list[Job]:
        """Every job, in the order in which they came.

        Raises:
            StoreError: it cannot be read, or a record is not what was written.
        """
        rows: list[tuple[Any, ...]] = self._database.rows(
            "SELECT sender, request_id, message, sender_name, hops, timeout, received_at, state, sealed_content,"
            " sealed_response FROM job ORDER BY position"
        )
        try:
            return [self._job(*row) for row in rows]
        except StoreError:
            raise
        except (MeshError, ValueError, TypeError) as error:
            raise StoreError(
                f"{self._database.path} holds a record that cannot be read ({type(error).__name__}): restore a copy, "
                "or move the file away and lose the tasks in it"
            ) from None

    def _job(
        self,
        sender: str,
        request_id: str,
        message: str,
        sender_name: str,
        hops: int,
        timeout: float,
        received_at: float,
        state: str,
        content: bytes,
        response: bytes | None,
    ) -> Job:
        return Job(
            Did(sender),
            request_id,
            self._seal.unlock(content, "task", sender, request_id).decode("utf-8", "surrogatepass"),
            MessageId(message),
            sender_name,
            hops,
            timeout,
            received_at,
            JobState(state),
            None if response is None else _decode_response(self._seal.unlock(response, "answer", sender, request_id)),
        )

    def save(self, changes: JobChanges) -> None:
        """Write what changed, in one transaction.

        Raises:
            StoreError: nothing of it was written.
        """
        with self._database.transaction() as connection:
            for (sender, request_id), job in changes.jobs.items():
                if job is None:
                    connection.execute("DELETE FROM job WHERE sender = ? AND request_id = ?", (sender, request_id))
                else:
                    connection.execute(_PUT, self._row(job))

    def _row(self, job: Job) -> Mapping[str, object]:
        content = job.content.encode("utf-8", "surrogatepass")
        response = None if job.response is None else _encode_response(job.response)
        return {
            "sender": job.sender,
            "request_id": job.request_id,
            "message": job.message,
            "sender_name": job.sender_name,
            "hops": job.hops,
            "timeout": job.timeout,
            "received_at": job.received_at,
            "state": job.state.value,
            "content": self._seal.lock(content, "task", job.sender, job.request_id),
            "response": None if response is None else self._seal.lock(response, "answer", job.sender, job.request_id),
        }

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        self._database.close()


_PUT = """
INSERT INTO job (sender, request_id, message, sender_name, hops, timeout, received_at, state, sealed_content,
                 sealed_response)
VALUES (:sender, :request_id, :message, :sender_name, :hops, :timeout, :received_at, :state, :content, :response)
ON CONFLICT (sender, request_id) DO UPDATE SET message = excluded.message, state = excluded.state,
    sealed_content = excluded.sealed_content, sealed_response = excluded.sealed_response
"""


def open_journal(folder: Path | str | None, passphrase: str | None = None) -> Journal:
    """The journal of the client whose store is ``folder``, or one in memory for ``None``."""
    return MemoryJournal() if folder is None else SqliteJournal(Path(folder).expanduser(), passphrase)
