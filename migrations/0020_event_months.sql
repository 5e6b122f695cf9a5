-- Events by month, so that letting a month go costs what dropping a table costs, however much is in it.
--
-- First by kind: output, which is nearly all of it and has an age of its own, and everything else. Then by the month in which the
-- task was submitted: ids of tasks are UUIDs of version 7, which begin with the time. So all of a task's events of one sort are in
-- one partition, a reader who knows the task looks at two tables whatever the number of months, and a month is whole or gone.
-- (task_id, seq) is unique within each sort, across all months; between the two the lock on the task's row, under which numbers
-- are taken, keeps it so.
--
-- What has no month of its own is in "rest": nothing is lost when nobody has made the month in time.

-- In the order in which writers take them: so none of them and this wait for one another.
LOCK TABLE tasks, runs IN SHARE ROW EXCLUSIVE MODE;
LOCK TABLE events IN ACCESS EXCLUSIVE MODE;

ALTER INDEX events_log RENAME TO events_before_log;
ALTER TABLE events RENAME TO events_before;

CREATE TABLE events (
    task_id      uuid NOT NULL,
    seq          bigint NOT NULL,
    run_id       uuid,
    kind         text NOT NULL,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- All kinds but log.
    payload      jsonb,
    -- Log blocks: see 0001.
    attempt      integer,
    stream       smallint,
    log_offset   bigint,
    log_position bigint,
    log          bytea,
    CHECK ((kind = 'log') = (log IS NOT NULL)),
    CHECK ((kind = 'log') <> (payload IS NOT NULL))
) PARTITION BY LIST (kind);
-- As in 0001.
ALTER TABLE events ALTER COLUMN log SET STORAGE EXTERNAL;

CREATE TABLE events_log PARTITION OF events (PRIMARY KEY (task_id, seq)) FOR VALUES IN ('log')
    PARTITION BY RANGE (task_id);
CREATE TABLE events_other PARTITION OF events (PRIMARY KEY (task_id, seq)) DEFAULT
    PARTITION BY RANGE (task_id);
CREATE INDEX events_log_by_run ON events_log (run_id, log_position);
CREATE TABLE events_log_rest PARTITION OF events_log DEFAULT;
CREATE TABLE events_other_rest PARTITION OF events_other DEFAULT;

-- The least id of version 7 of this moment (UTC).
CREATE FUNCTION first_id_of(moment timestamp) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- Makes the tables of a month. False: they are there, or what belongs into them is in "rest" already and stays there.
CREATE FUNCTION add_event_month(month date) RETURNS boolean LANGUAGE plpgsql
    SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    first date := date_trunc('month', month)::date;
    low   uuid := public.first_id_of(first::timestamp);
    high  uuid := public.first_id_of(first + interval '1 month');
    sort  text;
    made  boolean := false;
BEGIN
    FOREACH sort IN ARRAY ARRAY['events_log', 'events_other'] LOOP
        CONTINUE WHEN to_regclass(format('public.%I', sort || to_char(first, '_YYYYMM'))) IS NOT NULL;
        CONTINUE WHEN CASE sort
            WHEN 'events_log' THEN EXISTS (SELECT FROM public.events_log_rest WHERE task_id >= low AND task_id < high)
            ELSE EXISTS (SELECT FROM public.events_other_rest WHERE task_id >= low AND task_id < high) END;
        EXECUTE format('CREATE TABLE public.%I PARTITION OF public.%I FOR VALUES FROM (%L) TO (%L)',
                       sort || to_char(first, '_YYYYMM'), sort, low, high);
        made := true;
    END LOOP;
    RETURN made;
END
$$;
REVOKE EXECUTE ON FUNCTION add_event_month(date) FROM PUBLIC;

DO $$
DECLARE
    month date;
BEGIN
    FOR month IN
        SELECT DISTINCT date_trunc('month', at AT TIME ZONE 'UTC')::date FROM (
            SELECT to_timestamp(('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0) AS at
            FROM tasks WHERE substr(id::text, 15, 1) = '7') AS begun
        WHERE at BETWEEN timestamptz '2020-01-01' AND now() + interval '1 year'
        UNION
        SELECT generate_series(date_trunc('month', now() AT TIME ZONE 'UTC'),
                               now() AT TIME ZONE 'UTC' + interval '3 months', interval '1 month')::date
    LOOP
        PERFORM add_event_month(month);
    END LOOP;
END
$$;

INSERT INTO events (task_id, seq, run_id, kind, at, payload, attempt, stream, log_offset, log_position, log)
SELECT task_id, seq, run_id, kind, at, payload, attempt, stream, log_offset, log_position, log FROM events_before;
DROP TABLE events_before;
-- Now: checked once, and not row by row while they are moved.
ALTER TABLE events
    ADD CONSTRAINT events_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks (id),
    ADD CONSTRAINT events_run_id_fkey FOREIGN KEY (run_id) REFERENCES runs (id);

-- As in 0008.
CREATE TRIGGER events_gateway_warns BEFORE INSERT ON events FOR EACH ROW
    WHEN (NEW.kind <> 'warning' AND pg_has_role(current_user, 'kage_gateway', 'USAGE')
          AND NOT pg_has_role(current_user, 'kage_runner', 'USAGE'))
    EXECUTE FUNCTION refuse_event();

-- As before. Nobody has a right on a single month: what goes in and out goes through the whole.
GRANT SELECT, INSERT ON events TO kage_api, kage_runner;
GRANT INSERT ON events TO kage_gateway;
