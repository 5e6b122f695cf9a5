-- The tamper-evident trail: each audit entry gets its place in an RFC 6962 tree, and signed checkpoints say what the tree is.

-- Gives the places, and signs. It may read what was written and add what follows from it; it changes and removes nothing but
-- the note that an entry waits.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'kage_sequencer') THEN
        BEGIN
            CREATE ROLE kage_sequencer NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END IF;
    IF NOT pg_has_role(current_user, 'kage_sequencer', 'MEMBER') THEN
        EXECUTE format('GRANT kage_sequencer TO %I', current_user);
    END IF;
END
$$;

-- Which request an act belongs to, and from where it came.
ALTER TABLE audit_entries ADD COLUMN request_id uuid, ADD COLUMN address inet;

-- Entries that wait for their place. Transactions become visible in another order than that of any number or time that they
-- take; a row here becomes visible with its entry, whenever that is, and so none is ever passed over.
CREATE TABLE audit_queue (
    ordinal  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entry_id uuid NOT NULL
);

-- Writers need no right on the queue, and cannot leave it out.
CREATE FUNCTION audit_enqueue() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO public.audit_queue (entry_id) SELECT id FROM added;
    RETURN NULL;
END
$$;
CREATE TRIGGER audit_entries_enqueue AFTER INSERT ON audit_entries
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION audit_enqueue();

INSERT INTO audit_queue (entry_id) SELECT id FROM audit_entries ORDER BY at, id;

-- Level 0 of the tree. The primary key is the fence: of two sequencers that give the same place, one fails.
CREATE TABLE audit_leaves (
    index    bigint PRIMARY KEY CHECK (index >= 0),
    entry_id uuid NOT NULL UNIQUE REFERENCES audit_entries (id),
    hash     bytea NOT NULL CHECK (octet_length(hash) = 32)
);

-- Hashes of full subtrees of 256, 65,536 … entries: levels 1, 2 … of C2SP tlog-tiles.
CREATE TABLE audit_nodes (
    level smallint NOT NULL CHECK (level BETWEEN 1 AND 7),
    index bigint NOT NULL CHECK (index >= 0),
    hash  bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (level, index)
);

CREATE TABLE audit_checkpoints (
    size bigint PRIMARY KEY CHECK (size > 0),
    root bytea NOT NULL CHECK (octet_length(root) = 32),
    -- C2SP signed note.
    note text NOT NULL,
    at   timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Signature lines of witnesses, as they are in a note.
CREATE TABLE audit_cosignatures (
    size      bigint NOT NULL REFERENCES audit_checkpoints (size),
    witness   text NOT NULL,
    line      text NOT NULL,
    signed_at timestamptz NOT NULL,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (size, witness)
);

CREATE TRIGGER audit_leaves_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_leaves
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_nodes_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_nodes
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_checkpoints_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_cosignatures_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_cosignatures
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_queue_no_change BEFORE UPDATE OR TRUNCATE ON audit_queue
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- As in 0008, with the sequencer, which speaks in its own name alone.
CREATE OR REPLACE FUNCTION audit_own_name() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    owner oid := (SELECT relowner FROM pg_class WHERE oid = TG_RELID);
    zone  name := CASE NEW.actor_kind WHEN 'key' THEN 'kage_api' WHEN 'anonymous' THEN 'kage_api'
                                      WHEN 'runner' THEN 'kage_runner' WHEN 'gateway' THEN 'kage_gateway'
                                      WHEN 'sequencer' THEN 'kage_sequencer' END;
BEGIN
    IF pg_has_role(current_user, owner, 'USAGE') THEN
        RETURN NEW;
    END IF;
    IF NEW.actor_kind = 'host' AND NEW.action LIKE 'image.%' THEN
        zone := 'kage_runner';
    END IF;
    IF zone IS NULL OR NOT pg_has_role(current_user, zone, 'USAGE') THEN
        RAISE EXCEPTION '% may not write an audit entry of a % actor', current_user, NEW.actor_kind
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    NEW.at := clock_timestamp();
    RETURN NEW;
END
$$;

GRANT USAGE ON SCHEMA public TO kage_sequencer;
GRANT SELECT ON _sqlx_migrations TO kage_sequencer;
GRANT SELECT, INSERT ON audit_entries, audit_leaves, audit_nodes, audit_checkpoints TO kage_sequencer;
GRANT SELECT, DELETE ON audit_queue TO kage_sequencer;
GRANT SELECT ON audit_cosignatures TO kage_sequencer;

-- The API answers with entries and proofs.
GRANT SELECT ON audit_entries, audit_leaves, audit_nodes, audit_checkpoints, audit_cosignatures TO kage_api;
