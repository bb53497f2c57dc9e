-- Agents, their prekeys, and the proofs they have used. Times are UTC seconds, keys raw bytes, lists JSON text.

CREATE TABLE agent (
    id                      INTEGER PRIMARY KEY,
    did                     TEXT NOT NULL UNIQUE,
    signing_key             BLOB,                       -- Ed25519; unknown until a legacy agent publishes prekeys
    agreement_key           BLOB,                       -- X25519; unknown until any other agent publishes prekeys
    legacy                  INTEGER NOT NULL,
    bound                   INTEGER NOT NULL,           -- has signed a whole request: must always
    signs                   INTEGER NOT NULL DEFAULT 0, -- has signed a request: must always
    capabilities            TEXT NOT NULL,
    metadata                TEXT NOT NULL,
    registered_at           REAL NOT NULL,
    last_seen               REAL NOT NULL,
    heartbeat_at            REAL,
    reputation              REAL NOT NULL,
    successful_sessions     INTEGER NOT NULL DEFAULT 0,
    failed_sessions         INTEGER NOT NULL DEFAULT 0,
    timeout_sessions        INTEGER NOT NULL DEFAULT 0,
    last_session_at         REAL,
    verified_app_id         TEXT,
    verified_tenant_id      TEXT,
    verified_at             REAL,
    signed_prekey_id        INTEGER,
    signed_prekey           BLOB,
    signed_prekey_signature BLOB,
    one_time_peak           INTEGER NOT NULL DEFAULT 0  -- one-time keys there were after the last upload
) STRICT;

-- Discovery reads this one backwards and stops after the limit; it holds last_seen so that it need not sort.
CREATE TABLE capability (
    name      TEXT NOT NULL,
    last_seen REAL NOT NULL,
    agent     INTEGER NOT NULL,
    PRIMARY KEY (name, last_seen, agent)
) STRICT, WITHOUT ROWID;

CREATE TABLE one_time_prekey (
    agent      INTEGER NOT NULL,
    key_id     INTEGER NOT NULL,
    public_key BLOB NOT NULL,
    PRIMARY KEY (agent, key_id)
) STRICT, WITHOUT ROWID;

-- Taking a key only appends here, many at a time. A key listed here is never handed out again.
CREATE TABLE taken_prekey (
    agent  INTEGER NOT NULL,
    key_id INTEGER NOT NULL,
    PRIMARY KEY (agent, key_id)
) STRICT, WITHOUT ROWID;

-- Signatures of signed prekeys that legacy agents have published: unsigned requests may not bring one twice.
CREATE TABLE published_prekey (
    agent     INTEGER NOT NULL,
    signature BLOB NOT NULL,
    PRIMARY KEY (agent, signature)
) STRICT, WITHOUT ROWID;

CREATE TABLE used_proof (
    digest      BLOB PRIMARY KEY,
    fingerprint BLOB NOT NULL,
    expires     REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX used_proof_by_expiry ON used_proof (expires);
