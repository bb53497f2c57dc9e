-- Agents are forgotten that never published prekeys, or have been silent for long; both are found by when they were
-- last seen.

CREATE INDEX agent_by_last_seen ON agent (last_seen);
CREATE INDEX agent_unpublished ON agent (last_seen) WHERE signed_prekey IS NULL;
