-- The model gateway: grants, calls, budgets. Money is whole micro-USD.

DO $$
BEGIN
    -- Asked first: who may not create roles is refused before the name is looked at.
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'kage_gateway') THEN
        BEGIN
            CREATE ROLE kage_gateway NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END IF;
    IF NOT pg_has_role(current_user, 'kage_gateway', 'MEMBER') THEN
        EXECUTE format('GRANT kage_gateway TO %I', current_user);
    END IF;
END
$$;

-- One more end: its budget was spent, or the gateway would serve it no longer.
ALTER TABLE runs DROP CONSTRAINT runs_state_check;
ALTER TABLE runs ADD CONSTRAINT runs_state_check CHECK (state IN (
    'queued', 'preparing', 'running', 'harvesting',
    'succeeded', 'failed', 'no_changes', 'timed_out', 'idle_timeout', 'out_of_memory',
    'output_limit', 'budget_exhausted', 'cancelled', 'sandbox_error', 'lost'));

-- What one run's socket is to serve. The runner asks (wanted), the gateway that has the run's folder
-- answers (open, or closed with an error), the runner ends it (closing), the gateway has ended it (closed).
CREATE TABLE model_grants (
    run_id        uuid PRIMARY KEY REFERENCES runs (id),
    task_id       uuid NOT NULL REFERENCES tasks (id),
    -- The run's attempt that this is for.
    attempt       integer NOT NULL,
    state         text NOT NULL CHECK (state IN ('wanted', 'open', 'closing', 'closed')),
    cli_name      text NOT NULL,
    -- As the CLI's manifest says.
    dialect       text NOT NULL,
    -- The task's wish, and what the manifest names where nobody has one.
    model_asked   text,
    model_default text NOT NULL,
    -- Decided by the gateway: who serves it, and the name that the CLI is to use.
    provider      text,
    model         text,
    policy        jsonb,
    -- Why it was not opened.
    error         text,
    -- Why the gateway ends this run: 'budget_exhausted'.
    stop_reason   text,
    requested_at  timestamptz NOT NULL DEFAULT now(),
    opened_at     timestamptz,
    closed_at     timestamptz
);
CREATE INDEX model_grants_active ON model_grants (requested_at) WHERE state <> 'closed';

-- Reserved is what calls under way can cost at most; spent is what ended calls did cost.
CREATE TABLE model_budgets (
    task_id         uuid NOT NULL REFERENCES tasks (id),
    -- NULL: of the whole task, shared by its runs.
    run_id          uuid REFERENCES runs (id),
    -- NULL: no limit.
    limit_micros    bigint CHECK (limit_micros >= 0),
    limit_tokens    bigint CHECK (limit_tokens >= 0),
    reserved_micros bigint NOT NULL DEFAULT 0 CHECK (reserved_micros >= 0),
    spent_micros    bigint NOT NULL DEFAULT 0 CHECK (spent_micros >= 0),
    reserved_tokens bigint NOT NULL DEFAULT 0 CHECK (reserved_tokens >= 0),
    spent_tokens    bigint NOT NULL DEFAULT 0 CHECK (spent_tokens >= 0),
    -- Highest percentage of the limit that was told: 0, 80 or 95.
    warned          smallint NOT NULL DEFAULT 0,
    UNIQUE NULLS NOT DISTINCT (task_id, run_id)
);

CREATE TABLE model_calls (
    id                  uuid PRIMARY KEY,
    run_id              uuid NOT NULL REFERENCES runs (id),
    task_id             uuid NOT NULL REFERENCES tasks (id),
    attempt             integer NOT NULL,
    provider            text NOT NULL,
    dialect             text NOT NULL,
    -- As the CLI spelled it, and as it was sent on.
    model_asked         text NOT NULL,
    model               text NOT NULL,
    -- HTTP status that the CLI got; NULL while the call is open.
    status              integer,
    -- open, ok, or what ended it: see src/db/model_calls.rs.
    outcome             text NOT NULL DEFAULT 'open',
    -- Held in the budgets while it is open.
    reserved_micros     bigint NOT NULL,
    reserved_tokens     bigint NOT NULL,
    input_tokens        bigint NOT NULL DEFAULT 0,
    output_tokens       bigint NOT NULL DEFAULT 0,
    cached_input_tokens bigint NOT NULL DEFAULT 0,
    cache_write_tokens  bigint NOT NULL DEFAULT 0,
    cost_micros         bigint NOT NULL DEFAULT 0,
    -- The provider did not say what was used: charged as reserved.
    estimated           boolean NOT NULL DEFAULT false,
    streamed            boolean NOT NULL,
    -- Where the price is not the model's own.
    price_note          text,
    error               text,
    started_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    first_byte_ms       integer,
    duration_ms         integer
);
CREATE INDEX model_calls_by_run ON model_calls (run_id, started_at);
CREATE INDEX model_calls_open ON model_calls (run_id) WHERE outcome = 'open';

GRANT USAGE ON SCHEMA public TO kage_gateway;
GRANT SELECT ON _sqlx_migrations TO kage_gateway;
GRANT INSERT ON audit_entries TO kage_gateway;
-- Neither prompts nor results: identifiers, states and the place for events.
GRANT SELECT (id, event_seq), UPDATE (event_seq, updated_at) ON tasks TO kage_gateway;
GRANT SELECT (id, task_id, name, state, attempt, lease_expires_at, finished_at, cost_usd), UPDATE (cost_usd)
    ON runs TO kage_gateway;
GRANT INSERT ON events TO kage_gateway;
GRANT SELECT, UPDATE ON model_grants TO kage_gateway;
GRANT SELECT, INSERT, UPDATE ON model_budgets, model_calls TO kage_gateway;

GRANT SELECT, INSERT, UPDATE ON model_grants TO kage_runner;
GRANT SELECT ON model_calls, model_budgets TO kage_runner;

GRANT SELECT ON model_grants, model_calls, model_budgets TO kage_api;
GRANT INSERT ON model_budgets TO kage_api;
