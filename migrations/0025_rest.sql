-- What came before its month had tables (0020) goes into them afterwards, so that the month can be dropped as a whole.

-- Moves events of the first tasks in a sort's "rest" into the table of their month, in one transaction: so many rows and bytes, and a
-- task as a whole. The table's range ends where what was moved ends, and grows with the next call, to the month's end with the last:
-- at every moment a task's events are in one place, whoever reads or writes. Nobody does while this works. Other tables' writers wait,
-- too, for at most half a second before. The month is NULL where there is nothing to move; what is of no time, or of one that is far
-- from ours, stays.
CREATE FUNCTION retention_move_rest(thing text, most_rows integer, most_bytes bigint,
                                    OUT month date, OUT tasks bigint, OUT moved bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
    sort  text := CASE thing WHEN 'log' THEN 'events_log' WHEN 'events' THEN 'events_other' END;
    rest  text := sort || '_rest';
    part  text;
    first uuid;
    until uuid;
    low   uuid := public.first_id_of(timestamp '2020-01-01');
    high  uuid := public.first_id_of(date_trunc('month', now() AT TIME ZONE 'UTC') + interval '13 months');
    list  text;
BEGIN
    IF sort IS NULL THEN
        RAISE EXCEPTION 'only events are kept by month' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format('SELECT task_id FROM public.%I WHERE task_id >= $1 AND task_id < $2 ORDER BY task_id LIMIT 1', rest)
        INTO first USING low, high;
    IF first IS NULL THEN
        RETURN;
    END IF;
    month := date_trunc('month', to_timestamp(('x' || left(replace(first::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
                                     AT TIME ZONE 'UTC')::date;
    low := public.first_id_of(month::timestamp);
    high := public.first_id_of(month + interval '1 month');
    -- The task in which it is enough; with the first of all begins what is always moved.
    EXECUTE format(
        'SELECT task_id FROM (
             SELECT task_id, row_number() OVER w AS number, sum(bytes) OVER w AS bytes FROM (
                 SELECT task_id, seq, coalesce(octet_length(log), pg_column_size(payload)) AS bytes
                 FROM public.%I WHERE task_id >= $1 AND task_id < $2 ORDER BY task_id, seq LIMIT $3 + 1) AS piece
             WINDOW w AS (ORDER BY task_id, seq)) AS counted
         WHERE number > $3 OR bytes > $4 ORDER BY number LIMIT 1', rest)
        INTO until USING first, high, greatest(least(most_rows, 10000), 1), least(most_bytes, 64 << 20);
    IF until = first THEN
        EXECUTE format('SELECT task_id FROM public.%I WHERE task_id > $1 AND task_id < $2 ORDER BY task_id LIMIT 1', rest)
            INTO until USING first, high;
    END IF;
    until := coalesce(until, high);

    -- In the order in which writers take them: so none of them and this wait for one another. A change of the foreign keys' tables
    -- is part of what follows.
    LOCK TABLE public.tasks, public.runs IN SHARE ROW EXCLUSIVE MODE;
    EXECUTE format('LOCK TABLE ONLY public.%I IN ACCESS EXCLUSIVE MODE', sort);
    part := sort || to_char(month, '_YYYYMM');
    IF to_regclass('public.' || part) IS NULL THEN
        EXECUTE format('CREATE TABLE public.%I (LIKE public.%I INCLUDING ALL)', part, sort);
    ELSE
        EXECUTE format('ALTER TABLE public.%I DETACH PARTITION public.%I', sort, part);
    END IF;
    -- Of the two tables' columns only the names are the same for certain.
    SELECT string_agg(format('%I', attname), ', ') INTO list FROM pg_attribute
        WHERE attrelid = to_regclass('public.' || sort) AND attnum > 0 AND NOT attisdropped AND attgenerated = '';
    EXECUTE format(
        'WITH gone AS (DELETE FROM public.%1$I WHERE task_id >= $1 AND task_id < $2 RETURNING *),
              here AS (INSERT INTO public.%2$I (%3$s) SELECT %3$s FROM gone RETURNING task_id)
         SELECT count(DISTINCT task_id), count(*) FROM here', rest, part, list)
        INTO tasks, moved USING low, until;
    EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', sort, part, low, until);
END
$$;
REVOKE EXECUTE ON FUNCTION retention_move_rest(text, integer, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION retention_move_rest(text, integer, bigint) TO kage_retention;

-- As in 0021, but not before the whole month is in its table: what is in "rest" of it would stay, and be said to be gone.
CREATE OR REPLACE FUNCTION retention_drop_month(thing text, of date, before timestamptz, due uuid[], OUT tasks bigint, OUT bytes bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
    sort  text := CASE thing WHEN 'log' THEN 'log' WHEN 'events' THEN 'other' END;
    part  record;
    span  tstzrange;
    why   text;
    apart boolean;
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
