-- The tasks an agent was given. Columns called "sealed" hold private bytes: as they are, or encrypted if the store has a
-- passphrase. Who gave a task, its id and its times are never encrypted.

PRAGMA application_id = 0x6D657368; -- "mesh"
PRAGMA user_version = 1;

-- One row. "sealing" is what a passphrase is checked and turned into a key with; NULL without a passphrase.
CREATE TABLE journal (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    sealing BLOB
);

-- "position" is the order in which tasks came.
CREATE TABLE job (
    position        INTEGER PRIMARY KEY,
    sender          TEXT NOT NULL,
    request_id      TEXT NOT NULL,
    message         TEXT NOT NULL, -- that brought it
    sender_name     TEXT NOT NULL,
    hops            INTEGER NOT NULL,
    timeout         REAL NOT NULL, -- seconds
    received_at     REAL NOT NULL, -- seconds since the Unix epoch, UTC
    state           TEXT NOT NULL,
    sealed_content  BLOB NOT NULL,
    sealed_response BLOB,
    UNIQUE (sender, request_id)
);
