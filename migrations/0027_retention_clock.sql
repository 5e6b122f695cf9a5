-- How old a thing is says the database's clock alone: a role whose clock is ahead let go of what had just ended. And no month is dropped in
-- which a task has come meanwhile. Both functions take days now; those of 0021, which believe their caller, go: a `kage retention` of the
-- release before lets go of nothing until it is replaced.
DROP FUNCTION retention_due(text, timestamptz, bigint, boolean);
DROP FUNCTION retention_drop_month(text, date, timestamptz, uuid[]);

-- Ended tasks whose thing is due, oldest end first, a part of them where they are many: it ended more than so many `days` ago, or
-- what ended after it, with what has not ended, is `most_bytes` already. `whole_months`: who is due by age waits until all of its month could
-- be. The month: of its table; NULL: it is in none.
CREATE FUNCTION retention_due(thing text, days integer, most_bytes bigint, whole_months boolean)
    RETURNS TABLE (task uuid, month date, rule text) LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, public, pg_temp AS $$
    WITH clock AS (SELECT now() - make_interval(days => least(days, 36500)) AS before WHERE days >= 1),
    kept AS (
        SELECT t.id, t.completed_at,
               CASE WHEN most_bytes IS NOT NULL THEN
                   sum(public.kept_bytes(t.id, thing)) OVER (ORDER BY t.completed_at DESC NULLS FIRST, t.id DESC) END AS bytes
        FROM public.tasks t
        WHERE (most_bytes IS NOT NULL OR t.completed_at < (SELECT before FROM clock))
          AND NOT EXISTS (SELECT FROM public.let_go l WHERE l.task_id = t.id AND l.what = thing)),
    due AS (
        SELECT id, completed_at,
               CASE WHEN bytes > most_bytes THEN 'size' WHEN completed_at < (SELECT before FROM clock) THEN 'age' END AS rule
        FROM kept WHERE completed_at IS NOT NULL)
    SELECT due.id, m.month, due.rule
    FROM due LEFT JOIN public.event_months(CASE thing WHEN 'log' THEN 'log' WHEN 'events' THEN 'other' END) m
        ON due.id >= m.low AND due.id < m.high
    WHERE due.rule = 'size' OR due.rule = 'age' AND NOT
        (whole_months AND m.month IS NOT NULL AND m.month + interval '1 month' > (SELECT before FROM clock) AT TIME ZONE 'UTC')
    ORDER BY due.completed_at, due.id LIMIT 20000
$$;

-- Drops a month of output or of other events, if it is over, all of it is in its table, and every task of it is let go of already, or
-- ended more than so many `days` ago, or is among these. NULL: it is not so. Bytes are what the table took of the disk.
CREATE FUNCTION retention_drop_month(thing text, of date, days integer, due uuid[], OUT tasks bigint, OUT bytes bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
    sort  text := CASE thing WHEN 'log' THEN 'log' WHEN 'events' THEN 'other' END;
    part  record;
    span  tstzrange;
    why   text;
    apart boolean;
    before timestamptz := CASE WHEN days >= 1 THEN now() - make_interval(days => least(days, 36500)) END;
BEGIN
    SELECT m.* INTO part FROM public.event_months(sort) m WHERE m.month = of;
    -- A day more, for clocks that differ.
    IF NOT FOUND OR of + interval '1 month 1 day' > now() AT TIME ZONE 'UTC' THEN
        RETURN;
    END IF;
    EXECUTE format('SELECT EXISTS (SELECT FROM public.%I WHERE task_id >= $1 AND task_id < $2)', 'events_' || sort || '_rest')
        INTO apart USING part.low, part.high;
    IF apart THEN
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
        SELECT t.id, thing, why FROM public.tasks t
        WHERE t.id >= part.low AND t.id < part.high AND t.completed_at IS NOT NULL
        ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS tasks = ROW_COUNT;
    bytes := pg_total_relation_size(to_regclass('public.' || part.name));
    -- It waits for statements that are under way, and others wait for it: half a second at most.
    EXECUTE format('DROP TABLE public.%I', part.name);
    -- Whoever was about to write there has been waited for: a task of a clock that is late may have come since we looked.
    PERFORM FROM public.tasks t
        WHERE t.id >= part.low AND t.id < part.high
          AND NOT EXISTS (SELECT FROM public.let_go l WHERE l.task_id = t.id AND l.what = thing)
        LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'a task of % came while its table was dropped', to_char(of, 'YYYY-MM') USING ERRCODE = 'lock_not_available';
    END IF;
    PERFORM public.record_let_go(thing, jsonb_build_object(
        'what', thing, 'rule', why, 'month', to_char(of, 'YYYY-MM'), 'tasks', tasks, 'bytes', bytes,
        'ended_from', lower(span), 'ended_until', upper(span), 'first_id', part.low, 'before_id', part.high));
END
$$;

REVOKE EXECUTE ON FUNCTION retention_due(text, integer, bigint, boolean),
    retention_drop_month(text, date, integer, uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION retention_due(text, integer, bigint, boolean),
    retention_drop_month(text, date, integer, uuid[]) TO kage_retention;
