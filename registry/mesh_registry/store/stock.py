"""Taking stock: how many one-time keys there were when the store was opened, counted beside its work.

A large registry holds millions of them, and counting takes seconds; so it happens in a thread of its own, on a snapshot
of the moment before the first change. What changes from then on the writer adds and subtracts.
"""

import sqlite3
import threading

from mesh_registry.store.vitals import Supply

_LEFT = """
    SELECT (SELECT count(*) FROM one_time_prekey)
        - (SELECT count(*) FROM taken_prekey AS t WHERE EXISTS (
            SELECT 1 FROM one_time_prekey AS k WHERE k.agent = t.agent AND k.key_id = t.key_id))
    """

_WITHOUT = """
    SELECT count(*) FROM agent AS a WHERE signed_prekey IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM one_time_prekey AS k WHERE k.agent = a.id AND NOT EXISTS (
            SELECT 1 FROM taken_prekey AS t WHERE t.agent = k.agent AND t.key_id = k.key_id))
    """


class Stock:
    """Counts once, from its creation on; ``found`` is None until it is done. Owns the connection it is given."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.found: Supply | None = None
        self._db = db
        self._stopping = False
        db.set_progress_handler(lambda: self._stopping, 100_000)  # steps: some milliseconds
        db.execute("BEGIN")
        db.execute("SELECT 1 FROM agent LIMIT 1").fetchone()  # the snapshot begins with the first read
        self._thread = threading.Thread(target=self._count, name="registry-stock")
        self._thread.start()

    def close(self) -> None:
        """Stop counting and let go of the snapshot."""
        self._stopping = True
        self._thread.join()
        self._db.close()

    def _count(self) -> None:
        try:
            (left,) = self._db.execute(_LEFT).fetchone()
            (without,) = self._db.execute(_WITHOUT).fetchone()
            self._db.execute("COMMIT")
        except sqlite3.Error:
            return  # stopped, or the disk does not read: the number stays unknown
        self.found = Supply(left, without)
