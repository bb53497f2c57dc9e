-- When a message was queued, so that how long it has been waiting outlives a restart.

PRAGMA user_version = 2;

ALTER TABLE outbox ADD COLUMN queued REAL; -- seconds since the Unix epoch, UTC; NULL: before this version
