-- What a key may do: scopes, limits, quotas, an end; a second secret while it is being rotated.

ALTER TABLE api_keys
    -- Spelled as in src/domain/access.rs. Keys that were there could do everything.
    ADD COLUMN scopes          text[] NOT NULL DEFAULT '{admin}'
        CHECK (scopes <@ ARRAY['tasks:read', 'tasks:write', 'results:merge', 'repos:write', 'audit:read',
                               'keys:admin', 'admin']),
    -- NULL: all of them.
    ADD COLUMN repositories    text[],
    ADD COLUMN clis            text[],
    ADD COLUMN expires_at      timestamptz,
    -- NULL: no limit. Days are of UTC; money is whole micro-USD.
    ADD COLUMN runs_at_once    integer CHECK (runs_at_once >= 0),
    ADD COLUMN runs_a_day      integer CHECK (runs_a_day >= 0),
    ADD COLUMN micros_a_day    bigint CHECK (micros_a_day >= 0),
    -- Keys with quotas against which its runs count: itself, and those of the keys that made it. So a key
    -- cannot make itself more of what it may use.
    ADD COLUMN charged         text[] NOT NULL DEFAULT '{}',
    -- A key's id, or who else made it.
    ADD COLUMN made_by         text,
    ADD COLUMN previous_sha256 bytea CHECK (octet_length(previous_sha256) = 32),
    -- Until then the secret before the last rotation is taken too.
    ADD COLUMN previous_until  timestamptz,
    ADD COLUMN rotated_at      timestamptz;
-- A key that does not say what it may do may do nothing.
ALTER TABLE api_keys ALTER COLUMN scopes SET DEFAULT '{}';

-- What was used of a key's quotas, day by day (UTC). Locked after the budgets of task and run.
CREATE TABLE key_days (
    key_id          text NOT NULL REFERENCES api_keys (id),
    day             date NOT NULL,
    runs            bigint NOT NULL DEFAULT 0 CHECK (runs >= 0),
    reserved_micros bigint NOT NULL DEFAULT 0 CHECK (reserved_micros >= 0),
    spent_micros    bigint NOT NULL DEFAULT 0 CHECK (spent_micros >= 0),
    PRIMARY KEY (key_id, day)
);

-- The CLIs of its runs. Empty (written by the release before): out of sight for a key that is limited to CLIs.
ALTER TABLE tasks ADD COLUMN clis text[] NOT NULL DEFAULT '{}';
UPDATE tasks SET clis = ARRAY(SELECT DISTINCT cli_name FROM runs WHERE task_id = tasks.id);

-- As api_keys.charged, when it was submitted.
ALTER TABLE runs ADD COLUMN charged text[] NOT NULL DEFAULT '{}';
CREATE INDEX runs_queue_charged ON runs (not_before, created_at, position)
    WHERE state = 'queued' AND charged <> '{}';
CREATE INDEX runs_charged ON runs USING gin (charged) WHERE finished_at IS NULL AND charged <> '{}';

-- The day whose quota a call counts against: that on which it began.
ALTER TABLE model_calls ADD COLUMN charged_day date NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')::date;

-- What a caller sees. The one place that says so; every statement of the API asks here.
CREATE FUNCTION sees_repository(repository text, repositories text[]) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT repositories IS NULL OR repository = ANY (repositories) $$;
CREATE FUNCTION sees_task(repository text, task_clis text[], repositories text[], clis text[]) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT (repositories IS NULL OR repository = ANY (repositories))
             AND (clis IS NULL OR (task_clis <> '{}' AND task_clis <@ clis)) $$;

-- Whether a secret of a key is taken now. Asked in the very statement that reads what a stream shows.
CREATE FUNCTION bearer_is_taken(bearer text, sha256 bytea) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM api_keys
                   WHERE id = bearer AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
                     AND (secret_sha256 = sha256 OR (previous_sha256 = sha256 AND previous_until > now())))
$$;

-- A revoked key stays revoked, whoever asks but the owner.
CREATE FUNCTION api_keys_stay_revoked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.revoked_at IS NULL OR OLD.revoked_at IS NOT NULL)
        AND NOT pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
        RAISE EXCEPTION 'a revocation is never taken back' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER api_keys_stay_revoked BEFORE UPDATE OF revoked_at ON api_keys
    FOR EACH ROW EXECUTE FUNCTION api_keys_stay_revoked();

-- The API makes, rotates and revokes keys; what a key may do is written once, and no key is deleted.
GRANT INSERT, UPDATE (revoked_at, secret_sha256, previous_sha256, previous_until, rotated_at) ON api_keys TO kage_api;
GRANT SELECT, INSERT, UPDATE (runs) ON key_days TO kage_api;
-- A run waits while its keys have enough at work.
GRANT SELECT (id, runs_at_once) ON api_keys TO kage_runner;
GRANT SELECT (id, micros_a_day) ON api_keys TO kage_gateway;
GRANT SELECT (charged) ON runs TO kage_gateway;
GRANT SELECT, INSERT, UPDATE (reserved_micros, spent_micros) ON key_days TO kage_gateway;
