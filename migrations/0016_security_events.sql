-- What somebody should hear of, each written with the act that it tells of; and what became of telling it.

-- Tells receivers outside. It sees these tables and nothing else: no task, no output, no key.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'kage_notifier') THEN
        BEGIN
            CREATE ROLE kage_notifier NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END IF;
    IF NOT pg_has_role(current_user, 'kage_notifier', 'MEMBER') THEN
        EXECUTE format('GRANT kage_notifier TO %I', current_user);
    END IF;
END
$$;

CREATE TABLE security_events (
    -- The order of the list, and its cursor.
    ordinal  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Also the `webhook-id`.
    id       uuid NOT NULL UNIQUE,
    -- Spelled as in src/domain/security_event.rs.
    kind     text NOT NULL CHECK (kind ~ '^[a-z]+\.[a-z_]+$'),
    -- 1 low, 2 medium, 3 high, 4 critical.
    severity smallint NOT NULL CHECK (severity BETWEEN 1 AND 4),
    subject  text NOT NULL CHECK (octet_length(subject) <= 1024),
    details  jsonb NOT NULL CHECK (octet_length(details::text) <= 65536),
    task_id  uuid,
    run_id   uuid,
    -- Where the same thing may be found again: it is told once.
    once     text,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (kind, once)
);
CREATE INDEX security_events_by_task ON security_events (task_id, ordinal) WHERE task_id IS NOT NULL;
CREATE INDEX security_events_by_time ON security_events (at);

-- Events that no notifier has looked at. As with the trail's queue: a row becomes visible with its event.
CREATE TABLE security_event_queue (
    ordinal bigint PRIMARY KEY REFERENCES security_events (ordinal)
);

-- Writers need no right on the queue, and cannot leave it out. A role tells of what it does itself, now.
CREATE FUNCTION security_event_enqueue() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO public.security_event_queue (ordinal) VALUES (NEW.ordinal);
    RETURN NULL;
END
$$;
CREATE TRIGGER security_events_enqueue AFTER INSERT ON security_events
    FOR EACH ROW EXECUTE FUNCTION security_event_enqueue();

CREATE FUNCTION security_event_own_kind() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    zone name := CASE split_part(NEW.kind, '.', 1)
                     WHEN 'auth' THEN 'kage_api' WHEN 'budget' THEN 'kage_gateway' WHEN 'trail' THEN 'kage_sequencer'
                     WHEN 'sandbox' THEN 'kage_runner' WHEN 'repository' THEN 'kage_runner' WHEN 'host' THEN 'kage_runner' END;
BEGIN
    IF pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
        RETURN NEW;
    END IF;
    IF zone IS NULL OR NOT pg_has_role(current_user, zone, 'USAGE') THEN
        RAISE EXCEPTION '% may not write a security event of kind %', current_user, NEW.kind
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    NEW.at := clock_timestamp();
    RETURN NEW;
END
$$;
CREATE TRIGGER security_events_own_kind BEFORE INSERT ON security_events
    FOR EACH ROW EXECUTE FUNCTION security_event_own_kind();

CREATE FUNCTION security_event_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a security event is never changed' USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER security_events_stay BEFORE UPDATE ON security_events
    FOR EACH STATEMENT EXECUTE FUNCTION security_event_stays();

-- One row for each receiver that wants an event.
CREATE TABLE webhook_deliveries (
    event    bigint NOT NULL REFERENCES security_events (ordinal),
    -- Its name in the notifier's file.
    hook     text NOT NULL CHECK (octet_length(hook) <= 64),
    state    text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'given_up')),
    -- Counted before a try begins: one that ends its notifier counts too.
    attempts integer NOT NULL DEFAULT 0,
    -- Of the last try.
    lease    uuid,
    last_at  timestamptz,
    -- What was answered; NULL: nothing was.
    status   integer,
    -- Why it failed; written by us, never what was answered.
    problem  text CHECK (octet_length(problem) <= 1024),
    -- While one tries, the time from which another one may.
    next_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (event, hook)
);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (hook, next_at) WHERE state = 'pending';

-- As in 0013, with the notifier, which has secrets too. It writes no other entry.
CREATE OR REPLACE FUNCTION audit_reload() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT (pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE')
            OR pg_has_role(current_user, 'kage_api', 'USAGE')
            OR pg_has_role(current_user, 'kage_runner', 'USAGE')
            OR pg_has_role(current_user, 'kage_gateway', 'USAGE')
            OR pg_has_role(current_user, 'kage_notifier', 'USAGE')
            OR pg_has_role(current_user, 'kage_sequencer', 'USAGE')) THEN
        RAISE EXCEPTION '% may not write an audit entry of a % actor', current_user, NEW.actor_kind
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    NEW.at := clock_timestamp();
    RETURN NEW;
END
$$;

GRANT INSERT ON security_events TO kage_api, kage_runner, kage_gateway, kage_sequencer;
GRANT SELECT ON security_events, webhook_deliveries TO kage_api;

GRANT USAGE ON SCHEMA public TO kage_notifier;
GRANT SELECT ON _sqlx_migrations TO kage_notifier;
GRANT INSERT ON audit_entries TO kage_notifier;
GRANT SELECT ON security_events TO kage_notifier;
-- UPDATE, for FOR UPDATE asks for it.
GRANT SELECT, UPDATE, DELETE ON security_event_queue TO kage_notifier;
GRANT SELECT, INSERT, UPDATE ON webhook_deliveries TO kage_notifier;
