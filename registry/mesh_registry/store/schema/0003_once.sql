-- What has been done and must not be done again.

-- One-time keys that were taken and then left the bundle. None of them is handed out again, under whichever id.
CREATE TABLE spent_prekey (
    id         INTEGER PRIMARY KEY,                     -- the order they came in
    agent      INTEGER NOT NULL,
    public_key BLOB NOT NULL,
    UNIQUE (agent, public_key)
) STRICT;

-- Sessions an agent has reported on; each counts once. The digest is that of the session's id.
CREATE TABLE reported_session (
    reporter    INTEGER NOT NULL,
    digest      BLOB NOT NULL,
    reported_at REAL NOT NULL,
    PRIMARY KEY (reporter, digest)
) STRICT, WITHOUT ROWID;

CREATE INDEX reported_session_by_time ON reported_session (reported_at);
