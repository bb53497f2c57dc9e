-- What one identity keeps. Columns called "sealed" hold private bytes: as they are, or encrypted if the store has a
-- passphrase. Names of peers and ids of messages are never encrypted.

PRAGMA application_id = 0x6D657368; -- "mesh"
PRAGMA user_version = 1;

-- One row. "sealing" is what a passphrase is checked and turned into a key with; NULL without a passphrase.
CREATE TABLE identity (
    one            INTEGER PRIMARY KEY CHECK (one = 1),
    sealing        BLOB,
    sealed_key     BLOB,
    next_prekey_id INTEGER NOT NULL DEFAULT 1,
    epoch          INTEGER NOT NULL DEFAULT 0 -- how often a client has opened the store
);

CREATE TABLE signed_prekey (
    key_id    INTEGER PRIMARY KEY,
    place     INTEGER NOT NULL, -- 0 is the current one
    made      REAL NOT NULL,    -- seconds since the Unix epoch, UTC
    signature BLOB NOT NULL,
    sealed    BLOB NOT NULL
);

CREATE TABLE one_time_prekey (
    key_id INTEGER PRIMARY KEY,
    sealed BLOB NOT NULL
);

CREATE TABLE peer (
    did         TEXT PRIMARY KEY,
    entry       TEXT NOT NULL,
    knock_id    TEXT,
    knock_frame BLOB, -- public keys only
    counter     INTEGER NOT NULL,
    verified    INTEGER NOT NULL,
    dialect     TEXT,
    pinned      BLOB
) WITHOUT ROWID;

CREATE TABLE strand (
    peer    TEXT NOT NULL,
    session BLOB NOT NULL,    -- its id
    place   INTEGER NOT NULL, -- 0 is the one to send on
    opened  INTEGER NOT NULL,
    heard   INTEGER NOT NULL,
    rival   BLOB,
    mute    INTEGER NOT NULL, -- the peer cannot read it
    sealed  BLOB NOT NULL,
    PRIMARY KEY (peer, session)
);

CREATE TABLE candidate (
    peer            TEXT NOT NULL,
    place           INTEGER NOT NULL,
    knock_id        TEXT NOT NULL,
    ik              BLOB NOT NULL,
    ek              BLOB NOT NULL,
    one_time_key_id INTEGER,
    opened          INTEGER NOT NULL,
    rival           BLOB,
    PRIMARY KEY (peer, place)
) WITHOUT ROWID;

-- "position" is the order in which messages were queued, arrived or were seen.
CREATE TABLE outbox (
    position       INTEGER PRIMARY KEY,
    id             TEXT NOT NULL UNIQUE,
    peer           TEXT NOT NULL,
    state          TEXT NOT NULL,
    sealed_payload BLOB NOT NULL,
    sealed_frame   BLOB
);

CREATE TABLE inbox (
    position       INTEGER PRIMARY KEY,
    sender         TEXT NOT NULL,
    id             TEXT NOT NULL,
    encrypted      INTEGER NOT NULL,
    handed_over    INTEGER NOT NULL,
    sealed_payload BLOB NOT NULL,
    UNIQUE (sender, id)
);

CREATE TABLE seen (
    position INTEGER PRIMARY KEY,
    sender   TEXT NOT NULL,
    id       TEXT NOT NULL
);

CREATE TABLE spent_ephemeral (
    position INTEGER PRIMARY KEY,
    ek       BLOB NOT NULL
);

-- What became of messages that left the outbox.
CREATE TABLE outcome (
    position INTEGER PRIMARY KEY,
    id       TEXT NOT NULL,
    peer     TEXT NOT NULL,
    state    TEXT NOT NULL
);
