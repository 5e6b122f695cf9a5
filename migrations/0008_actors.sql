-- Nobody speaks in another's name: whoever takes over one role can lie about that role alone.

-- An audit entry names an actor that its writer may be, and gets its time here. The owner (the `kage` command on the
-- host) may write any; a role that is none of ours may write none. A person on the host registers images with the
-- runner's role, which reaches the engine.
CREATE FUNCTION audit_own_name() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    owner oid := (SELECT relowner FROM pg_class WHERE oid = TG_RELID);
    zone  name := CASE NEW.actor_kind WHEN 'key' THEN 'kage_api' WHEN 'anonymous' THEN 'kage_api'
                                      WHEN 'runner' THEN 'kage_runner' WHEN 'gateway' THEN 'kage_gateway' END;
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
CREATE TRIGGER audit_entries_own_name BEFORE INSERT ON audit_entries
    FOR EACH ROW EXECUTE FUNCTION audit_own_name();

-- The gateway warns a run's watchers. What the run says and how it ends is the runner's to tell.
CREATE FUNCTION refuse_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% may not write an event of kind %', current_user, NEW.kind
        USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER events_gateway_warns BEFORE INSERT ON events FOR EACH ROW
    WHEN (NEW.kind <> 'warning' AND pg_has_role(current_user, 'kage_gateway', 'USAGE')
          AND NOT pg_has_role(current_user, 'kage_runner', 'USAGE'))
    EXECUTE FUNCTION refuse_event();
