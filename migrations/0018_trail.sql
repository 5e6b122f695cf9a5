-- The request of an act in columns of its own; start and stop of each role, with its settings.

-- As clients may choose it. Nothing has written it before: no leaf changes, and the form of one would be the same.
ALTER TABLE audit_entries ALTER COLUMN request_id TYPE text USING request_id::text;
-- Method and path of the route: `POST /api/v1/tasks`.
ALTER TABLE audit_entries ADD COLUMN route text;
CREATE INDEX audit_entries_by_request ON audit_entries (request_id) WHERE request_id IS NOT NULL;

-- As in 0013, for more that somebody on the host does through a role: its start, its stop, another certificate. A role tells of itself
-- alone. What 0013 made goes on beside it.
DROP TRIGGER audit_entries_own_name ON audit_entries;
CREATE TRIGGER audit_entries_own_name BEFORE INSERT ON audit_entries
    FOR EACH ROW WHEN (NEW.actor_kind <> 'host'
        OR NEW.action NOT IN ('secret.reload', 'certificate.reload', 'role.start', 'role.stop'))
    EXECUTE FUNCTION audit_own_name();

CREATE FUNCTION audit_own_role() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    zone text := CASE WHEN NEW.action = 'certificate.reload' THEN 'kage_api'
                      WHEN NEW.object ~ '^role:[a-z]+$' THEN 'kage_' || substr(NEW.object, 6) END;
BEGIN
    IF NOT pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE')
        AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = zone AND pg_has_role(current_user, oid, 'USAGE')) THEN
        RAISE EXCEPTION '% may not write an audit entry % of %', current_user, NEW.action, NEW.object
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    NEW.at := clock_timestamp();
    RETURN NEW;
END
$$;
CREATE TRIGGER audit_entries_own_role BEFORE INSERT ON audit_entries
    FOR EACH ROW WHEN (NEW.actor_kind = 'host' AND NEW.action IN ('certificate.reload', 'role.start', 'role.stop'))
    EXECUTE FUNCTION audit_own_role();

-- How long the entry that waits longest has waited for its place, in seconds; 0: none waits.
CREATE FUNCTION audit_waits_secs() RETURNS double precision LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT coalesce((SELECT greatest(extract(epoch FROM clock_timestamp() - e.at), 0)::double precision
                     FROM public.audit_queue q JOIN public.audit_entries e ON e.id = q.entry_id
                     ORDER BY q.ordinal LIMIT 1), 0)
$$;
REVOKE EXECUTE ON FUNCTION audit_waits_secs() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_waits_secs() TO kage_api;

-- Whether the keeper of refused calls answers; NULL: none is needed, or the runner is of the release before.
ALTER TABLE runners ADD COLUMN keeper_ok boolean;

-- With what settings a role last began, so that it can say what has changed. Of the trail a role reads no more than this.
CREATE FUNCTION last_settings(role text, instance text) RETURNS jsonb LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT details -> 'settings' FROM public.audit_entries
    WHERE object = 'role:' || role AND action = 'role.start' AND actor_kind = 'host' AND details ->> 'instance' = instance
    ORDER BY at DESC LIMIT 1
$$;
REVOKE EXECUTE ON FUNCTION last_settings(text, text) FROM PUBLIC;
DO $$
DECLARE
    zone name;
BEGIN
    FOR zone IN SELECT rolname FROM pg_roles
        WHERE rolname IN ('kage_api', 'kage_runner', 'kage_gateway', 'kage_sequencer', 'kage_notifier')
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION last_settings(text, text) TO %I', zone);
    END LOOP;
END
$$;
