-- Frames that wait for their recipients. seq is the relay's order of acceptance; rows expire in that order.
CREATE TABLE frames (
    seq         INTEGER PRIMARY KEY,
    recipient   TEXT    NOT NULL,
    sender      TEXT    NOT NULL,
    id          TEXT    NOT NULL,
    control     INTEGER NOT NULL,   -- 1: knock, knock_accept or knock_reject
    accepted_at REAL    NOT NULL,   -- seconds since the Unix epoch
    frame       BLOB    NOT NULL
) STRICT;

-- A message id belongs to its sender and recipient: nobody can claim one in advance for others.
CREATE UNIQUE INDEX frames_by_key ON frames (recipient, sender, id);

-- With the rowid at its end, this index answers "the next frames of a recipient after seq" at any depth.
CREATE INDEX frames_by_recipient ON frames (recipient);

-- What is known of a DID for good: the first key a DID outside did:mesh: proved, and who answers challenges.
CREATE TABLE credentials (
    did        TEXT    PRIMARY KEY,
    key        BLOB,
    challenged INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Bare-timestamp proofs that have been used, for as long as their timestamp would be fresh.
CREATE TABLE proofs (
    did        TEXT NOT NULL,
    timestamp  TEXT NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (did, timestamp)
) STRICT, WITHOUT ROWID;
