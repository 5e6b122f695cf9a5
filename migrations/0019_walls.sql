-- What a role that was taken over could do by names and sizes.

-- A temporary table hides a catalog's of the same name, unless the search path says otherwise: a function that asks who owns a
-- table must not be answered by its caller. Twice: nobody may make such tables, and no function of ours looks there first.
DO $$
DECLARE
    routine regprocedure;
BEGIN
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    REVOKE CREATE ON SCHEMA public FROM PUBLIC;
    FOR routine IN
        SELECT p.oid FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
        WHERE p.pronamespace = 'public'::regnamespace AND l.lanname = 'plpgsql'
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, public, pg_temp', routine);
    END LOOP;
END
$$;

-- One entry must fit into the memory of who gives it its place, whoever wrote it. Rows that are there already are not looked at.
ALTER TABLE audit_entries ADD CONSTRAINT audit_entries_bounded CHECK (
    octet_length(details::text) <= 4194304
    AND octet_length(action) <= 100
    AND octet_length(object) <= 2048
    AND octet_length(actor_kind) <= 100
    AND coalesce(octet_length(actor_id), 0) <= 2048
    AND coalesce(octet_length(request_id), 0) <= 512
    AND coalesce(octet_length(route), 0) <= 2048) NOT VALID;

-- As src/domain/security_event.rs knows them: a kind that nobody knows could not be shown.
ALTER TABLE security_events ADD CONSTRAINT security_events_known CHECK (kind IN (
    'auth.repeated_failures', 'budget.exhausted', 'host.danger_accepted', 'host.danger_refused', 'repository.quarantined',
    'sandbox.containment_refused', 'sandbox.refused_burst', 'sandbox.flood', 'sandbox.refusals_interrupted',
    'trail.anchor_failed', 'trail.checkpoint_failed', 'trail.inconsistent')) NOT VALID;
