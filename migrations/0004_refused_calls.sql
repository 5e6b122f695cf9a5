-- System calls that sandboxes refused: a row a kind, however often it was tried.
CREATE TABLE refused_calls (
    run_id   uuid NOT NULL REFERENCES runs (id),
    attempt  integer NOT NULL,
    -- The kernel's name.
    call     text NOT NULL,
    -- Which form of it; empty where the name says it all.
    form     text NOT NULL,
    -- Ordinary programs try it and do without: no alarm.
    expected boolean NOT NULL,
    count    bigint NOT NULL CHECK (count > 0),
    first_at timestamptz NOT NULL,
    last_at  timestamptz NOT NULL,
    PRIMARY KEY (run_id, attempt, call, form)
);

GRANT SELECT ON refused_calls TO kage_api;
GRANT SELECT, INSERT, UPDATE ON refused_calls TO kage_runner;
