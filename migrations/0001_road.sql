-- The whole road: keys, repositories, CLI images, tasks, runs, attempts, events, results, audit.
-- Times are timestamptz. States are text with a CHECK, spelled as in src/domain.

-- One database role for each trust zone. In Compose they are made with passwords before this
-- runs; `kage serve` takes them on with SET ROLE.
DO $$
DECLARE zone text;
BEGIN
    FOREACH zone IN ARRAY ARRAY['kage_api', 'kage_runner'] LOOP
        -- Asked first: who may not create roles is refused before the name is looked at.
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = zone) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', zone);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;
            END;
        END IF;
        IF NOT pg_has_role(current_user, zone, 'MEMBER') THEN
            EXECUTE format('GRANT %I TO %I', zone, current_user);
        END IF;
    END LOOP;
END
$$;

CREATE TABLE api_keys (
    id            text PRIMARY KEY,
    name          text NOT NULL,
    -- SHA-256 of the secret part: it has over 180 bits of entropy, so no slow hash is needed.
    secret_sha256 bytea NOT NULL CHECK (octet_length(secret_sha256) = 32),
    created_at    timestamptz NOT NULL DEFAULT now(),
    last_used_at  timestamptz,
    revoked_at    timestamptz
);

CREATE TABLE repositories (
    -- Becomes part of a path: the runner checks it again.
    name           text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,63}$' AND name !~ '\.\.'),
    source         text NOT NULL,
    state          text NOT NULL DEFAULT 'pending'
                   CHECK (state IN ('pending', 'fetching', 'ready', 'failed', 'removing')),
    error          text,
    default_branch text,
    -- Branch or tag to commit id, as of the last fetch.
    refs           jsonb NOT NULL DEFAULT '{}',
    lease_id       uuid,
    lease_expires_at timestamptz,
    created_at     timestamptz NOT NULL DEFAULT now(),
    fetched_at     timestamptz
);

CREATE TABLE cli_images (
    name          text PRIMARY KEY,
    digest        text NOT NULL CHECK (digest ~ '^sha256:[0-9a-f]{64}$'),
    manifest      jsonb NOT NULL,
    registered_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE tasks (
    id              uuid PRIMARY KEY,
    description     text NOT NULL,
    repository      text NOT NULL,
    base_revision   text,
    assignments     jsonb NOT NULL,
    max_retries     integer NOT NULL CHECK (max_retries BETWEEN 0 AND 5),
    retry_delay     integer NOT NULL CHECK (retry_delay BETWEEN 1 AND 60),
    merge_strategy  text NOT NULL CHECK (merge_strategy IN ('theirs', 'auto', 'manual')),
    created_by      text,
    -- Id of the API key that submitted it.
    submitted_by    text NOT NULL,
    status          text NOT NULL DEFAULT 'pending'
                    CHECK (status IN ('pending', 'running', 'completed', 'failed', 'cancelled')),
    error           text,
    -- Last event of this task. Taken under this row's lock, held until commit, so events
    -- become visible in the order of their numbers.
    event_seq       bigint NOT NULL DEFAULT 0,
    cancel_requested_at timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    completed_at    timestamptz
);
CREATE INDEX tasks_by_age ON tasks (created_at DESC, id);
CREATE INDEX tasks_by_repository ON tasks (repository) WHERE completed_at IS NULL;

CREATE TABLE runs (
    id             uuid PRIMARY KEY,
    task_id        uuid NOT NULL REFERENCES tasks (id),
    -- Name within the task; part of the branch.
    name           text NOT NULL,
    position       integer NOT NULL,
    cli_name       text NOT NULL,
    image_digest   text NOT NULL,
    manifest       jsonb NOT NULL,
    context        jsonb NOT NULL,
    timeout_secs   integer NOT NULL,
    idle_secs      integer,
    allow_no_changes boolean NOT NULL,
    state          text NOT NULL DEFAULT 'queued' CHECK (state IN (
                       'queued', 'preparing', 'running', 'harvesting',
                       'succeeded', 'failed', 'no_changes', 'timed_out', 'idle_timeout', 'out_of_memory',
                       'output_limit', 'cancelled', 'sandbox_error', 'lost')),
    error          text,
    exit_code      integer,
    attempt        integer NOT NULL DEFAULT 0,
    -- Back-off: not to be claimed before.
    not_before     timestamptz NOT NULL DEFAULT now(),
    -- Set by every claim; whoever holds another one may write nothing (the fence).
    lease_id       uuid,
    lease_expires_at timestamptz,
    -- The runner in whose data folder this attempt's files are.
    runner_id      uuid,
    container_id   text,
    base_commit    text,
    -- How the attempt is to end once harvested; set when the CLI has ended.
    verdict        jsonb,
    -- Committed output of this attempt, in bytes.
    stdout_offset  bigint NOT NULL DEFAULT 0,
    stderr_offset  bigint NOT NULL DEFAULT 0,
    -- Committed output of all attempts, in bytes.
    output_bytes   bigint NOT NULL DEFAULT 0,
    cost_usd       double precision NOT NULL DEFAULT 0,
    branch         text,
    commit_hash    text,
    files_changed  integer NOT NULL DEFAULT 0,
    insertions     bigint NOT NULL DEFAULT 0,
    deletions      bigint NOT NULL DEFAULT 0,
    created_at     timestamptz NOT NULL DEFAULT now(),
    -- Of the first attempt.
    started_at     timestamptz,
    -- Of the CLI's process in this attempt: wall-clock limits count from here.
    cli_started_at timestamptz,
    finished_at    timestamptz,
    UNIQUE (task_id, name)
);
CREATE INDEX runs_queue ON runs (not_before, created_at, id) WHERE state = 'queued';
CREATE INDEX runs_leased ON runs (lease_expires_at) WHERE state IN ('preparing', 'running', 'harvesting');

-- What became of each attempt, with the sandbox that it had.
CREATE TABLE attempts (
    run_id      uuid NOT NULL REFERENCES runs (id),
    number      integer NOT NULL,
    runner_id   uuid NOT NULL,
    sandbox     jsonb,
    worktree    text,
    state       text,
    error       text,
    exit_code   integer,
    started_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    PRIMARY KEY (run_id, number)
);

CREATE TABLE events (
    task_id      uuid NOT NULL REFERENCES tasks (id),
    seq          bigint NOT NULL,
    run_id       uuid REFERENCES runs (id),
    kind         text NOT NULL,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- All kinds but log.
    payload      jsonb,
    -- Log blocks: attempt, stream (1 stdout, 2 stderr), offset in the attempt's stream,
    -- position in the run's whole output, bytes.
    attempt      integer,
    stream       smallint,
    log_offset   bigint,
    log_position bigint,
    log          bytea,
    PRIMARY KEY (task_id, seq),
    CHECK ((kind = 'log') = (log IS NOT NULL)),
    CHECK ((kind = 'log') <> (payload IS NOT NULL))
);
-- Blocks are read whole and once or twice: compressing them costs more than it saves.
ALTER TABLE events ALTER COLUMN log SET STORAGE EXTERNAL;
CREATE INDEX events_log ON events (run_id, log_position) WHERE kind = 'log';

CREATE TABLE run_results (
    run_id          uuid PRIMARY KEY REFERENCES runs (id),
    patch           bytea NOT NULL,
    patch_truncated boolean NOT NULL,
    -- Array of wire FileChange.
    files           jsonb NOT NULL,
    -- Array of strings.
    warnings        jsonb NOT NULL
);

CREATE TABLE idempotency_keys (
    key_id         text NOT NULL,
    idempotency_key text NOT NULL,
    request_sha256 bytea NOT NULL,
    task_id        uuid NOT NULL REFERENCES tasks (id),
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (key_id, idempotency_key)
);

CREATE TABLE runners (
    id          uuid PRIMARY KEY,
    instance    text NOT NULL,
    host        text NOT NULL,
    version     text NOT NULL,
    concurrency integer NOT NULL,
    draining    boolean NOT NULL DEFAULT false,
    -- State of the engine as the runner sees it.
    engine      text NOT NULL,
    engine_ok   boolean NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT now(),
    seen_at     timestamptz NOT NULL DEFAULT now()
);

-- Facts, each committed with the act that it records. Random ids, so that writers never
-- wait for one another; a later sequencer gives each its place in a tree of its own table.
CREATE TABLE audit_entries (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor_kind text NOT NULL,
    actor_id   text,
    action     text NOT NULL,
    object     text NOT NULL,
    outcome    text NOT NULL CHECK (outcome IN ('done', 'refused', 'failed')),
    details    jsonb NOT NULL
);
CREATE INDEX audit_entries_by_time ON audit_entries (at);
CREATE INDEX audit_entries_by_object ON audit_entries (object);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit entries are never changed or removed' USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- What each zone may do, and nothing else.
GRANT USAGE ON SCHEMA public TO kage_api, kage_runner;
GRANT SELECT ON _sqlx_migrations TO kage_api, kage_runner;
GRANT INSERT ON audit_entries TO kage_api, kage_runner;

GRANT SELECT, UPDATE (last_used_at) ON api_keys TO kage_api;
GRANT SELECT, INSERT, UPDATE (state, error, source) ON repositories TO kage_api;
GRANT SELECT ON cli_images, runners, attempts, run_results TO kage_api;
GRANT SELECT, INSERT ON tasks, runs, events, idempotency_keys TO kage_api;
GRANT DELETE ON idempotency_keys TO kage_api;
GRANT UPDATE (status, error, event_seq, cancel_requested_at, updated_at, completed_at) ON tasks TO kage_api;
GRANT UPDATE (state, error, finished_at) ON runs TO kage_api;

GRANT SELECT, UPDATE, DELETE ON repositories TO kage_runner;
GRANT SELECT, INSERT, UPDATE, DELETE ON cli_images TO kage_runner;
GRANT SELECT, INSERT, UPDATE ON runners, attempts, run_results TO kage_runner;
GRANT SELECT, INSERT ON events TO kage_runner;
GRANT SELECT ON tasks, runs TO kage_runner;
GRANT UPDATE (status, error, event_seq, updated_at, started_at, completed_at) ON tasks TO kage_runner;
GRANT UPDATE ON runs TO kage_runner;
