-- Who makes backups: reads what is backed up, and changes nothing.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'kage_backup') THEN
        BEGIN
            CREATE ROLE kage_backup NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END IF;
    IF NOT pg_has_role(current_user, 'kage_backup', 'MEMBER') THEN
        EXECUTE format('GRANT kage_backup TO %I', current_user);
    END IF;
END
$$;

GRANT USAGE ON SCHEMA public TO kage_backup;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO kage_backup;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO kage_backup;
-- A backup has every table, also those to come: what a migration adds must not be missing because nobody thought of it.
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO kage_backup;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON SEQUENCES TO kage_backup;
-- In no backup, and so nothing for it to read. A migration that adds such a table does the same.
REVOKE ALL ON sessions, sign_ins, runners FROM kage_backup;
-- The first backup makes the key.
GRANT INSERT ON backup_name_key TO kage_backup;
-- Of what it does with backups, and of nothing else: see below.
GRANT INSERT ON audit_entries TO kage_backup;

-- As since 0017, with what somebody on the host does with backups. A restore is the owner's to tell.
CREATE OR REPLACE FUNCTION audit_own_name() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    owner oid := (SELECT relowner FROM pg_class WHERE oid = TG_RELID);
    zone  name := CASE NEW.actor_kind WHEN 'key' THEN 'kage_api' WHEN 'person' THEN 'kage_api'
                                      WHEN 'anonymous' THEN 'kage_api'
                                      WHEN 'runner' THEN 'kage_runner' WHEN 'gateway' THEN 'kage_gateway'
                                      WHEN 'sequencer' THEN 'kage_sequencer' END;
BEGIN
    IF pg_has_role(current_user, owner, 'USAGE') THEN
        RETURN NEW;
    END IF;
    IF NEW.actor_kind = 'host' AND NEW.action LIKE 'image.%' THEN
        zone := 'kage_runner';
    END IF;
    IF NEW.actor_kind = 'host' AND NEW.action IN ('backup.make', 'backup.verify', 'backup.prune') THEN
        zone := 'kage_backup';
    END IF;
    IF zone IS NULL OR NOT pg_has_role(current_user, zone, 'USAGE') THEN
        RAISE EXCEPTION '% may not write an audit entry of a % actor', current_user, NEW.actor_kind
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    NEW.at := clock_timestamp();
    RETURN NEW;
END
$$;
