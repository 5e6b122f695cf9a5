-- What was let go, who lets it go, and the room that a runner's disk has left.

-- Ends the keeping of output, events and results. It reads none of them: it may call the functions below and nothing else.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'kage_retention') THEN
        BEGIN
            CREATE ROLE kage_retention NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END IF;
    IF NOT pg_has_role(current_user, 'kage_retention', 'MEMBER') THEN
        EXECUTE format('GRANT kage_retention TO %I', current_user);
    END IF;
END
$$;

-- What of a task is no longer there. The task, its runs and how they ended are never let go.
CREATE TABLE let_go (
    task_id uuid NOT NULL REFERENCES tasks (id),
    -- log: output; events: all other events; results: patch, list of files, findings, and the branch in the runner's mirror.
    what    text NOT NULL CHECK (what IN ('log', 'events', 'results')),
    rule    text NOT NULL CHECK (rule IN ('age', 'size')),
    at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (task_id, what)
);
CREATE INDEX tasks_ended ON tasks (completed_at, id) WHERE completed_at IS NOT NULL;

-- The tables of months of one sort, oldest first, and the ids that belong into them.
CREATE FUNCTION event_months(sort text) RETURNS TABLE (name text, month date, low uuid, high uuid)
    LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT c.relname::text, m.month, public.first_id_of(m.month::timestamp),
           public.first_id_of(m.month + interval '1 month')
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid,
         to_date(right(c.relname, 6), 'YYYYMM') AS m (month)
    WHERE i.inhparent = to_regclass('public.events_' || sort) AND c.relname ~ '_[0-9]{6}$'
    ORDER BY m.month
$$;

-- Bytes that a task has of something.
CREATE FUNCTION kept_bytes(task uuid, thing text) RETURNS bigint LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    RETURN CASE thing
        WHEN 'log' THEN (SELECT coalesce(sum(output_bytes), 0) FROM public.runs WHERE task_id = task)
        WHEN 'events' THEN (SELECT coalesce(sum(pg_column_size(payload)), 0) FROM public.events_other WHERE task_id = task)
        ELSE (SELECT coalesce(sum(octet_length(x.patch) + pg_column_size(x.files) + pg_column_size(x.warnings)), 0)
              FROM public.runs r JOIN public.run_results x ON x.run_id = r.id WHERE r.task_id = task)
    END;
END
$$;

-- Ended tasks whose thing is due, oldest end first, a part of them where they are many: it ended before `before`, or what ended
-- after it, with what has not ended, is `most_bytes` already. `whole_months`: who is due by age waits until all of its month could
-- be. The month: of its table; NULL: it is in none.
CREATE FUNCTION retention_due(thing text, before timestamptz, most_bytes bigint, whole_months boolean)
    RETURNS TABLE (task uuid, month date, rule text) LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, public, pg_temp AS $$
    WITH kept AS (
        SELECT t.id, t.completed_at,
               CASE WHEN most_bytes IS NOT NULL THEN
                   sum(public.kept_bytes(t.id, thing)) OVER (ORDER BY t.completed_at DESC NULLS FIRST, t.id DESC) END AS bytes
        FROM public.tasks t
        WHERE (most_bytes IS NOT NULL OR t.completed_at < before)
          AND NOT EXISTS (SELECT FROM public.let_go l WHERE l.task_id = t.id AND l.what = thing)),
    due AS (
        SELECT id, completed_at, CASE WHEN bytes > most_bytes THEN 'size' WHEN completed_at < before THEN 'age' END AS rule
        FROM kept WHERE completed_at IS NOT NULL)
    SELECT due.id, m.month, due.rule
    FROM due LEFT JOIN public.event_months(CASE thing WHEN 'log' THEN 'log' WHEN 'events' THEN 'other' END) m
        ON due.id >= m.low AND due.id < m.high
    WHERE due.rule = 'size' OR due.rule = 'age' AND NOT
        (whole_months AND m.month IS NOT NULL AND m.month + interval '1 month' > before AT TIME ZONE 'UTC')
    ORDER BY due.completed_at, due.id LIMIT 20000
$$;

-- One entry for each act, by whoever lets go: nobody can do the one without the other.
CREATE FUNCTION record_let_go(thing text, facts jsonb) RETURNS void LANGUAGE sql
    SET search_path = pg_catalog, public, pg_temp AS $$
    INSERT INTO public.audit_entries (actor_kind, action, object, outcome, details)
    VALUES ('retention', 'retention.let_go', 'retention:' || thing, 'done', facts)
$$;

-- Lets go of a thing of these tasks, row by row. Those that have not ended, that somebody works on now, or whose thing is gone
-- already are left out. How many tasks and bytes it was.
CREATE FUNCTION retention_let_go(thing text, due uuid[], why text, OUT tasks bigint, OUT bytes bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
    ended uuid[];
    gone  bigint;
    span  tstzrange;
BEGIN
    IF cardinality(due) > 1000 THEN
        RAISE EXCEPTION 'at most 1000 tasks at once' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT array_agg(id), tstzrange(min(completed_at), max(completed_at), '[]'), coalesce(sum(public.kept_bytes(id, thing)), 0)
    INTO ended, span, bytes
    FROM (SELECT t.id, t.completed_at FROM public.tasks t
          WHERE t.id = ANY (due) AND t.completed_at IS NOT NULL
            AND NOT EXISTS (SELECT FROM public.let_go l WHERE l.task_id = t.id AND l.what = thing)
          ORDER BY t.id FOR UPDATE SKIP LOCKED) AS locked;
    tasks := coalesce(cardinality(ended), 0);
    IF tasks = 0 THEN
        RETURN;
    END IF;
    CASE thing
        WHEN 'log' THEN DELETE FROM public.events_log WHERE task_id = ANY (ended);
        WHEN 'events' THEN DELETE FROM public.events_other WHERE task_id = ANY (ended);
        WHEN 'results' THEN
            DELETE FROM public.run_results x USING public.runs r WHERE r.id = x.run_id AND r.task_id = ANY (ended);
    END CASE;
    GET DIAGNOSTICS gone = ROW_COUNT;
    INSERT INTO public.let_go (task_id, what, rule) SELECT id, thing, why FROM unnest(ended) AS id;
    PERFORM public.record_let_go(thing, jsonb_build_object(
        'what', thing, 'rule', why, 'tasks', tasks, 'rows', gone, 'bytes', bytes,
        'ended_from', lower(span), 'ended_until', upper(span), 'task_ids', ended));
END
$$;

-- Drops a month of output or of other events, if it is over and every task of it is let go of already, or ended before `before`, or
-- is among these. NULL: it is not so. Bytes are what the table took of the disk.
CREATE FUNCTION retention_drop_month(thing text, of date, before timestamptz, due uuid[], OUT tasks bigint, OUT bytes bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
    sort  text := CASE thing WHEN 'log' THEN 'log' WHEN 'events' THEN 'other' END;
    part  record;
    span  tstzrange;
    why   text;
BEGIN
    SELECT m.* INTO part FROM public.event_months(sort) m WHERE m.month = of;
    -- A day more, for clocks that differ.
    IF NOT FOUND OR of + interval '1 month 1 day' > now() AT TIME ZONE 'UTC' THEN
        RETURN;
    END IF;
    PERFORM FROM public.tasks t
        WHERE t.id >= part.low AND t.id < part.high
          AND (t.completed_at IS NULL
               OR t.completed_at < before IS NOT TRUE AND NOT EXISTS (SELECT FROM unnest(due) AS d WHERE d = t.id))
          AND NOT EXISTS (SELECT FROM public.let_go l WHERE l.task_id = t.id AND l.what = thing)
        LIMIT 1;
    IF FOUND THEN
        RETURN;
    END IF;
    SELECT tstzrange(min(completed_at), max(completed_at), '[]'),
           CASE WHEN max(completed_at) < before THEN 'age' ELSE 'size' END
    INTO span, why FROM public.tasks WHERE id >= part.low AND id < part.high;
    -- A month without tasks may yet get one of a clock that is late.
    IF span IS NULL OR lower(span) IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO public.let_go (task_id, what, rule)
        SELECT t.id, thing, why FROM public.tasks t WHERE t.id >= part.low AND t.id < part.high
        ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS tasks = ROW_COUNT;
    bytes := pg_total_relation_size(to_regclass('public.' || part.name));
    -- It waits for statements that are under way, and others wait for it: half a second at most.
    EXECUTE format('DROP TABLE public.%I', part.name);
    PERFORM public.record_let_go(thing, jsonb_build_object(
        'what', thing, 'rule', why, 'month', to_char(of, 'YYYY-MM'), 'tasks', tasks, 'bytes', bytes,
        'ended_from', lower(span), 'ended_until', upper(span), 'first_id', part.low, 'before_id', part.high));
END
$$;

-- Makes this month and the next ones, where they are missing; how many were made.
CREATE FUNCTION retention_make_months(ahead integer) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
    made integer := 0;
BEGIN
    FOR number IN 0..least(ahead, 12) LOOP
        IF public.add_event_month((now() AT TIME ZONE 'UTC' + make_interval(months => number))::date) THEN
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END
$$;

-- Months of one sort that are over: those that may be dropped.
CREATE FUNCTION retention_past_months(thing text) RETURNS SETOF date LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT m.month FROM public.event_months(CASE thing WHEN 'log' THEN 'log' WHEN 'events' THEN 'other' END) m
    WHERE m.month + interval '1 month 1 day' <= now() AT TIME ZONE 'UTC' ORDER BY m.month
$$;

REVOKE EXECUTE ON FUNCTION event_months(text), kept_bytes(uuid, text), record_let_go(text, jsonb),
    retention_due(text, timestamptz, bigint, boolean), retention_let_go(text, uuid[], text),
    retention_drop_month(text, date, timestamptz, uuid[]), retention_make_months(integer), retention_past_months(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION retention_due(text, timestamptz, bigint, boolean), retention_let_go(text, uuid[], text),
    retention_drop_month(text, date, timestamptz, uuid[]), retention_make_months(integer), retention_past_months(text),
    last_settings(text, text) TO kage_retention;
GRANT USAGE ON SCHEMA public TO kage_retention;
GRANT SELECT ON _sqlx_migrations TO kage_retention;
-- Of its own start, stop and secrets; what it lets go of the functions record.
GRANT INSERT ON audit_entries TO kage_retention;

-- Clients are told, and a runner removes the branches.
GRANT SELECT ON let_go TO kage_api, kage_runner;

-- As in 0016, with retention.
CREATE OR REPLACE FUNCTION audit_reload() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NOT (pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE')
            OR pg_has_role(current_user, 'kage_api', 'USAGE')
            OR pg_has_role(current_user, 'kage_runner', 'USAGE')
            OR pg_has_role(current_user, 'kage_gateway', 'USAGE')
            OR pg_has_role(current_user, 'kage_notifier', 'USAGE')
            OR pg_has_role(current_user, 'kage_retention', 'USAGE')
            OR pg_has_role(current_user, 'kage_sequencer', 'USAGE')) THEN
        RAISE EXCEPTION '% may not write an audit entry of a % actor', current_user, NEW.actor_kind
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    NEW.at := clock_timestamp();
    RETURN NEW;
END
$$;

-- Whether the data folder's file system has more free than the soft mark, and in words; NULL: the runner is of the release before.
ALTER TABLE runners ADD COLUMN disk_ok boolean, ADD COLUMN disk text;
