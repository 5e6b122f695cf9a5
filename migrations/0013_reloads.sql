-- A role that has read a secret of its settings again says so. Who replaced it is somebody on the host.

DROP TRIGGER audit_entries_own_name ON audit_entries;
CREATE TRIGGER audit_entries_own_name BEFORE INSERT ON audit_entries
    FOR EACH ROW WHEN (NEW.actor_kind <> 'host' OR NEW.action <> 'secret.reload')
    EXECUTE FUNCTION audit_own_name();

CREATE FUNCTION audit_reload() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT (pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE')
            OR pg_has_role(current_user, 'kage_api', 'USAGE')
            OR pg_has_role(current_user, 'kage_runner', 'USAGE')
            OR pg_has_role(current_user, 'kage_gateway', 'USAGE')
            OR pg_has_role(current_user, 'kage_sequencer', 'USAGE')) THEN
        RAISE EXCEPTION '% may not write an audit entry of a % actor', current_user, NEW.actor_kind
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    NEW.at := clock_timestamp();
    RETURN NEW;
END
$$;
CREATE TRIGGER audit_entries_reload BEFORE INSERT ON audit_entries
    FOR EACH ROW WHEN (NEW.actor_kind = 'host' AND NEW.action = 'secret.reload')
    EXECUTE FUNCTION audit_reload();
