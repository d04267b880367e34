-- SPDX-License-Identifier: Apache-2.0
-- Days: makes partitions ahead, drops those whose jobs are all over.
--
-- Why: retention is dropping tables. A day with an unfinished job, or with a delivery that is
-- still open, is dropped all the same, after the stragglers were moved to the DEFAULT partition.
-- Lock: making a day locks the DEFAULT partitions, dropping one locks the parents, both for
-- milliseconds and with a lock_timeout of 500 ms: when it cannot be had, the next call tries again.
-- A million rows: nothing to rewrite.
-- Undo: DROP FUNCTION of each.
--
-- A broker calls partitions_make(now()) and retention_drop(...) every hour; calling them more
-- often, or by several at once, does no harm.

-- The lowest UUIDv7 of a day, UTC.
CREATE FUNCTION day_id(day date) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM day) * 1000)::bigint), 12, '0')
            || '00000000000000000000')::uuid
$$;

-- The time in a UUIDv7.
CREATE FUNCTION id_time(id uuid) RETURNS timestamptz LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT to_timestamp(('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0)
$$;

-- Tables with a partition a day, in the order in which they are locked.
CREATE FUNCTION day_tables() RETURNS TABLE (name text, key text) LANGUAGE sql IMMUTABLE AS $$
    VALUES ('job', 'id'), ('job_input', 'job_id'), ('job_result', 'job_id'), ('attempt', 'job_id'),
           ('delivery', 'job_id'), ('delivery_try', 'job_id'), ('flush', 'at')
$$;

-- Makes one partition unless it exists; rows of that day that went to DEFAULT move into it.
CREATE FUNCTION partition_make(parent text, key text, day date) RETURNS boolean LANGUAGE plpgsql
    SET search_path = headrace SET lock_timeout = '500ms' SET timezone = 'UTC' AS $$
DECLARE
    child text := parent || '_' || to_char(day, 'YYYYMMDD');
    lowest text := CASE key WHEN 'at' THEN day::text ELSE day_id(day)::text END;
    beyond text := CASE key WHEN 'at' THEN (day + 1)::text ELSE day_id(day + 1)::text END;
BEGIN
    IF to_regclass(child) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('LOCK TABLE %I IN SHARE UPDATE EXCLUSIVE MODE', parent);
    IF to_regclass(child) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)',
                   child, parent);
    EXECUTE format('WITH moved AS (DELETE FROM %I WHERE %I >= %L AND %I < %L RETURNING *) '
                   'INSERT INTO %I SELECT * FROM moved',
                   parent || '_default', key, lowest, key, beyond, child);
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                   parent, child, lowest, beyond);
    IF parent IN ('job', 'delivery') THEN
        -- Partial indexes of waiting rows see an insert and a delete a job: clean them early.
        EXECUTE format('ALTER TABLE %I SET (autovacuum_vacuum_scale_factor = 0.02, '
                       'autovacuum_vacuum_cost_delay = 1, autovacuum_analyze_scale_factor = 0.05)',
                       child);
    END IF;
    RETURN true;
END
$$;

-- Makes the days from yesterday to three days ahead of `at`; returns how many were missing.
CREATE FUNCTION partitions_make(at timestamptz) RETURNS integer LANGUAGE plpgsql
    SET search_path = headrace SET timezone = 'UTC' AS $$
DECLARE
    made integer := 0;
    parent record;
    day date;
BEGIN
    FOR parent IN SELECT name, key FROM day_tables() LOOP
        FOR day IN SELECT at::date + n FROM generate_series(-1, 3) AS n LOOP
            IF partition_make(parent.name, parent.key, day) THEN
                made := made + 1;
            END IF;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;

-- Ids of a table of jobs that must outlive their day.
CREATE FUNCTION day_stragglers(day date) RETURNS TABLE (id uuid) LANGUAGE sql STABLE
    SET search_path = headrace AS $$
    SELECT j.id FROM job j
     WHERE j.id >= day_id(day) AND j.id < day_id(day + 1) AND j.state = 1 AND j.attempt_count = 0
    UNION
    SELECT j.id FROM job j
     WHERE j.id >= day_id(day) AND j.id < day_id(day + 1)
       AND (j.state = 2 OR (j.state = 1 AND j.attempt_count > 0))
    UNION
    SELECT d.job_id FROM delivery d
     WHERE d.job_id >= day_id(day) AND d.job_id < day_id(day + 1) AND d.state = 1
$$;

-- Drops the partitions of one day; what is not over moves to DEFAULT.
CREATE FUNCTION retention_drop_day(day date) RETURNS integer LANGUAGE plpgsql
    SET search_path = headrace SET lock_timeout = '500ms' SET timezone = 'UTC' AS $$
DECLARE
    parent record;
    child text;
    kept uuid[];
BEGIN
    FOR parent IN SELECT name FROM day_tables() LOOP
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', parent.name);
    END LOOP;
    kept := ARRAY(SELECT s.id FROM day_stragglers(day) s);
    FOR parent IN SELECT name, key FROM day_tables() LOOP
        child := parent.name || '_' || to_char(day, 'YYYYMMDD');
        CONTINUE WHEN to_regclass(child) IS NULL;
        EXECUTE format('ALTER TABLE %I DETACH PARTITION %I', parent.name, child);
        IF parent.name = 'flush' THEN
            -- The newest flush of a shard has its offsets; those above its mark are the outbox.
            EXECUTE format($sql$
                INSERT INTO flush
                SELECT f.*
                  FROM shard s
                 CROSS JOIN LATERAL (
                    (SELECT epoch, number, published_epoch, published_number FROM flush
                      WHERE shard = s.id ORDER BY epoch DESC, number DESC LIMIT 1)
                    UNION ALL
                    (SELECT epoch, number, published_epoch, published_number FROM %1$I
                      WHERE shard = s.id ORDER BY epoch DESC, number DESC LIMIT 1)
                    ORDER BY epoch DESC, number DESC LIMIT 1) newest
                  JOIN %1$I f ON f.shard = s.id
                   AND (f.epoch, f.number) >= (newest.published_epoch, newest.published_number)
                $sql$, child);
        ELSE
            EXECUTE format('INSERT INTO %I SELECT * FROM %I WHERE %I = ANY ($1)',
                           parent.name, child, parent.key) USING kept;
        END IF;
        EXECUTE format('DROP TABLE %I', child);
    END LOOP;
    RETURN cardinality(kept);
END
$$;

-- Drops every day that ended longer than `keep` ago. Returns the days dropped. The default keeps the
-- result of a job that waited as long as a job may (72 h) for 24 h.
CREATE FUNCTION retention_drop(keep interval DEFAULT interval '4 days') RETURNS integer LANGUAGE plpgsql
    SET search_path = headrace SET timezone = 'UTC' AS $$
DECLARE
    child record;
    dropped integer := 0;
BEGIN
    FOR child IN
        SELECT DISTINCT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
          FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent IN (SELECT to_regclass(name) FROM day_tables())
           AND c.relname ~ '_[0-9]{8}$'
         ORDER BY 1
    LOOP
        CONTINUE WHEN (child.day + 1)::timestamptz > now() - keep;
        PERFORM retention_drop_day(child.day);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;

-- Deletes what is over and old from tables that have no days, and from the DEFAULT partitions; at
-- most 10,000 rows a table and call. Returns the rows deleted.
CREATE FUNCTION retention_sweep(keep interval DEFAULT interval '4 days') RETURNS bigint LANGUAGE plpgsql
    SET search_path = headrace AS $$
DECLARE
    old uuid[];
    swept bigint := 0;
    n bigint;
BEGIN
    old := ARRAY(SELECT j.id FROM job_default j
                  WHERE j.state NOT IN (1, 2) AND j.state_at < now() - keep
                    AND NOT EXISTS (SELECT FROM delivery d WHERE d.job_id = j.id AND d.state = 1)
                  LIMIT 10000);
    swept := cardinality(old);
    IF swept > 0 THEN
        DELETE FROM job WHERE id = ANY (old);
        DELETE FROM job_input WHERE job_id = ANY (old);
        DELETE FROM job_result WHERE job_id = ANY (old);
        DELETE FROM attempt WHERE job_id = ANY (old);
        DELETE FROM delivery WHERE job_id = ANY (old);
        DELETE FROM delivery_try WHERE job_id = ANY (old);
    END IF;
    DELETE FROM idempotency WHERE (tenant, key) IN
        (SELECT tenant, key FROM idempotency WHERE expires_at < now() LIMIT 10000);
    GET DIAGNOSTICS n = ROW_COUNT;
    swept := swept + n;
    WITH done AS (DELETE FROM command_done WHERE command_id IN
                   (SELECT command_id FROM command_done WHERE done_at < now() - keep LIMIT 10000)
                   RETURNING command_id)
    DELETE FROM command WHERE id IN (SELECT command_id FROM done);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN swept + n;
END
$$;

-- Adds up the deltas of queue depths that are older than ten seconds. One at a time: a second
-- caller goes away.
CREATE FUNCTION queue_compact() RETURNS bigint LANGUAGE plpgsql SET search_path = headrace AS $$
DECLARE
    gone bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(4851712031983) THEN
        RETURN 0;
    END IF;
    WITH old AS (
        DELETE FROM queue_delta WHERE at < now() - interval '10 seconds'
        RETURNING shard, rank, deployment, pool, waiting, running
    ), summed AS (
        INSERT INTO queue_delta (shard, rank, deployment, pool, waiting, running)
        SELECT shard, rank, deployment, pool, sum(waiting), sum(running)
          FROM old GROUP BY shard, rank, deployment, pool
        HAVING sum(waiting) <> 0 OR sum(running) <> 0
    )
    SELECT count(*) INTO gone FROM old;
    RETURN gone;
END
$$;
