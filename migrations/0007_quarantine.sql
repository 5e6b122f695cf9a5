-- Configuration of CLIs in repositories: what was found at base revisions, and which content of it an operator approved.
-- A run is not shown what is not approved.

CREATE TABLE repository_configuration (
    repository text NOT NULL REFERENCES repositories (name) ON DELETE CASCADE,
    -- At most 1 KiB; where it is not plain text, escaped, and then never approved.
    path       text NOT NULL,
    -- Of modes, names and contents.
    digest     text NOT NULL CHECK (digest ~ '^sha256:[0-9a-f]{64}$'),
    kind       text NOT NULL CHECK (kind IN ('file', 'folder', 'link', 'submodule')),
    files      bigint NOT NULL,
    bytes      bigint NOT NULL,
    -- Why it cannot be approved; NULL: it can.
    obstacle   text,
    -- Where it was seen last, and when.
    commit_hash text NOT NULL,
    seen_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (repository, path, digest)
);

CREATE TABLE repository_approvals (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    repository  text NOT NULL REFERENCES repositories (name) ON DELETE CASCADE,
    path        text NOT NULL,
    digest      text NOT NULL CHECK (digest ~ '^sha256:[0-9a-f]{64}$'),
    -- Id of the API key.
    approved_by text NOT NULL,
    approved_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (repository, path, digest)
);

-- What the present attempt does not see: array of {path, digest}.
ALTER TABLE runs ADD COLUMN quarantined jsonb NOT NULL DEFAULT '[]';

GRANT SELECT ON repository_configuration TO kage_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON repository_configuration TO kage_runner;
GRANT SELECT, INSERT, DELETE ON repository_approvals TO kage_api;
GRANT SELECT ON repository_approvals TO kage_runner;
