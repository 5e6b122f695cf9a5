-- People who sign in through an OpenID provider, and their sessions.

-- A person has a row among the keys, so that what it submits and uses is booked as a key's is. Nobody can show it: its
-- id is no key's, and no secret has its hash.
ALTER TABLE api_keys ADD COLUMN kind text NOT NULL DEFAULT 'key' CHECK (kind IN ('key', 'person'));

CREATE TABLE people (
    key_id     text PRIMARY KEY REFERENCES api_keys (id) CHECK (key_id ~ '^p_[0-9A-Za-z]{10}$'),
    -- Who it is, for ever: the provider and its word for the person.
    issuer     text NOT NULL,
    subject    text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (issuer, subject)
);

CREATE TABLE sessions (
    id            text PRIMARY KEY CHECK (id ~ '^s_[0-9A-Za-z]{10}$'),
    -- SHA-256 of the cookie's 256 random bits.
    secret_sha256 bytea NOT NULL UNIQUE CHECK (octet_length(secret_sha256) = 32),
    person_id     text NOT NULL REFERENCES people (key_id),
    -- As the provider calls the person; for reading alone.
    name          text NOT NULL,
    -- What the person might do when it signed in, as of a key. Its quotas are in its row among the keys.
    scopes        text[] NOT NULL
        CHECK (scopes <@ ARRAY['tasks:read', 'tasks:write', 'results:merge', 'repos:write', 'audit:read',
                               'keys:admin', 'admin']),
    repositories  text[],
    clis          text[],
    runs_at_once  integer CHECK (runs_at_once >= 0),
    runs_a_day    integer CHECK (runs_a_day >= 0),
    micros_a_day  bigint CHECK (micros_a_day >= 0),
    created_at    timestamptz NOT NULL DEFAULT now(),
    last_used_at  timestamptz NOT NULL DEFAULT now(),
    idle_secs     integer NOT NULL CHECK (idle_secs > 0),
    expires_at    timestamptz NOT NULL,
    ended_at      timestamptz,
    ended_how     text CHECK (ended_how IN ('signed_out', 'revoked', 'replaced')),
    CHECK ((ended_at IS NULL) = (ended_how IS NULL))
);
CREATE INDEX sessions_by_person ON sessions (person_id);
CREATE INDEX sessions_by_end ON sessions (expires_at);

-- Sign-ins that have begun. What ties them to a browser is hashed; the row goes when it is used.
CREATE TABLE sign_ins (
    cookie_sha256 bytea PRIMARY KEY CHECK (octet_length(cookie_sha256) = 32),
    return_to     text NOT NULL,
    network       text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sign_ins_by_network ON sign_ins (network, created_at);
CREATE INDEX sign_ins_by_age ON sign_ins (created_at);

-- Whether a session is taken now.
CREATE FUNCTION session_is_taken(s sessions) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT s.ended_at IS NULL AND s.expires_at > now()
       AND s.last_used_at + make_interval(secs => s.idle_secs) > now()
$$;

-- Of keys as it was; of sessions the same.
CREATE OR REPLACE FUNCTION bearer_is_taken(bearer text, sha256 bytea) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM api_keys
                   WHERE id = bearer AND kind = 'key' AND revoked_at IS NULL
                     AND (expires_at IS NULL OR expires_at > now())
                     AND (secret_sha256 = sha256 OR (previous_sha256 = sha256 AND previous_until > now())))
        OR EXISTS (SELECT FROM sessions s WHERE id = bearer AND secret_sha256 = sha256 AND session_is_taken(s))
$$;

-- A session that has ended stays so, whoever asks but the owner.
CREATE FUNCTION sessions_stay_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.ended_at IS NOT NULL
        AND NOT pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
        RAISE EXCEPTION 'a session that has ended stays so' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER sessions_stay_ended BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION sessions_stay_ended();

-- A person's quotas follow what its last sign-in says; a key's are written once.
CREATE FUNCTION api_keys_quotas_stay() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
        RAISE EXCEPTION 'the quotas of a key are written once' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER api_keys_quotas_stay BEFORE UPDATE OF runs_at_once, runs_a_day, micros_a_day ON api_keys
    FOR EACH ROW WHEN (OLD.kind <> 'person') EXECUTE FUNCTION api_keys_quotas_stay();

-- The API speaks for people as for keys. The function is changed where it stands: nothing else of it shall be lost.
DO $$
DECLARE
    before text := pg_get_functiondef('audit_own_name'::regproc);
    after  text := replace(before, 'WHEN ''key'' THEN ''kage_api''',
                           'WHEN ''key'' THEN ''kage_api'' WHEN ''person'' THEN ''kage_api''');
BEGIN
    IF after = before THEN
        RAISE EXCEPTION 'audit_own_name is not as it was known';
    END IF;
    EXECUTE after;
END
$$;

GRANT SELECT, INSERT ON people TO kage_api;
GRANT SELECT, INSERT, DELETE, UPDATE (last_used_at, ended_at, ended_how) ON sessions TO kage_api;
GRANT SELECT, INSERT, DELETE ON sign_ins TO kage_api;
GRANT UPDATE (runs_at_once, runs_a_day, micros_a_day) ON api_keys TO kage_api;
