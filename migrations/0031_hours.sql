-- SPDX-License-Identifier: Apache-2.0
-- Sums by hour of what ended, and views that are quick with many jobs.
--
-- Why: "by hour, the last day of a model" read each job of the day. A flush tells in its own row what it
-- makes final, added up by hour, model and end, in two arrays: nothing is counted on the hot path, and
-- hours_fill() adds them up every ten seconds. Percentiles of many jobs pay for the join that jobs has
-- with deliveries, and for extract(), which counts in numeric: job_times has neither.
-- Lock: ACCESS EXCLUSIVE on flush for a moment, for the columns.
-- A million rows: they are counted once, 2 s.
-- Undo: DROP VIEW headrace_tenant_v1.job_hours, headrace_tenant_v1.job_times, headrace_v1.job_hours,
-- headrace_v1.job_times; DROP FUNCTION hours_fill(boolean), hours_add(smallint, bigint, bigint, bigint, bigint);
-- DROP TABLE job_hour, hour_mark; ALTER TABLE flush DROP COLUMN end_names, DROP COLUMN end_numbers;
-- flush_drop(interval) as in 0014, the view jobs as in 0015.

ALTER TABLE flush ADD COLUMN end_names text[], ADD COLUMN end_numbers bigint[];

-- What ended in an hour (UTC), by the time of its end.
CREATE TABLE job_hour (
    hour timestamptz NOT NULL,
    tenant text NOT NULL,
    model text NOT NULL,
    deployment text NOT NULL,
    state smallint NOT NULL,
    error_class smallint NOT NULL,
    jobs bigint NOT NULL,
    attempts bigint NOT NULL,
    wait_seconds double precision NOT NULL,
    run_seconds double precision NOT NULL,
    PRIMARY KEY (model, hour, deployment, tenant, state, error_class)
) WITH (fillfactor = 70);

-- The newest flush of each shard that job_hour has.
CREATE TABLE hour_mark (
    shard smallint PRIMARY KEY,
    epoch bigint NOT NULL,
    number bigint NOT NULL
);

-- Adds the flushes of a shard behind the first one up to the second one.
CREATE FUNCTION hours_add(p_shard smallint, p_epoch bigint, p_number bigint, p_to_epoch bigint, p_to_number bigint)
    RETURNS void LANGUAGE plpgsql SET search_path = headrace, pg_temp AS $$
DECLARE
    old record;
BEGIN
    INSERT INTO job_hour AS h
    SELECT to_timestamp(f.end_numbers[n * 7 + 1]), coalesce(f.end_names[n * 3 + 1], ''),
           coalesce(f.end_names[n * 3 + 2], ''), coalesce(f.end_names[n * 3 + 3], ''),
           f.end_numbers[n * 7 + 2], f.end_numbers[n * 7 + 3],
           sum(f.end_numbers[n * 7 + 4]), sum(f.end_numbers[n * 7 + 5]),
           sum(f.end_numbers[n * 7 + 6] / 1e6), sum(f.end_numbers[n * 7 + 7] / 1e6)
      FROM flush f CROSS JOIN LATERAL generate_series(0, cardinality(f.end_names) / 3 - 1) n
     WHERE f.shard = p_shard AND (f.epoch, f.number) > (p_epoch, p_number)
       AND (f.epoch, f.number) <= (p_to_epoch, p_to_number)
     GROUP BY 1, 2, 3, 4, 5, 6
    ON CONFLICT (model, hour, deployment, tenant, state, error_class) DO UPDATE
       SET jobs = h.jobs + excluded.jobs, attempts = h.attempts + excluded.attempts,
           wait_seconds = h.wait_seconds + excluded.wait_seconds, run_seconds = h.run_seconds + excluded.run_seconds;
    -- Flushes of a broker that does not know these columns, while programs are replaced one by one.
    FOR old IN SELECT final_ids FROM flush f
                WHERE f.shard = p_shard AND (f.epoch, f.number) > (p_epoch, p_number)
                  AND (f.epoch, f.number) <= (p_to_epoch, p_to_number)
                  AND f.end_names IS NULL AND f.final_ids <> '{}'
    LOOP
        INSERT INTO job_hour AS h
        SELECT date_trunc('hour', j.state_at, 'UTC'), j.tenant, j.model, j.deployment, j.state, j.error_class, count(*),
               sum(j.attempt_count), sum(date_part('epoch', coalesce(j.started_at, j.state_at)
                                                   - coalesce(j.replayed_at, j.accepted_at))),
               coalesce(sum(date_part('epoch', j.state_at - j.started_at)), 0)
          FROM job j WHERE j.id = ANY (old.final_ids) AND j.state NOT IN (1, 2)
         GROUP BY 1, 2, 3, 4, 5, 6
        ON CONFLICT (model, hour, deployment, tenant, state, error_class) DO UPDATE
           SET jobs = h.jobs + excluded.jobs, attempts = h.attempts + excluded.attempts,
               wait_seconds = h.wait_seconds + excluded.wait_seconds,
               run_seconds = h.run_seconds + excluded.run_seconds;
    END LOOP;
END
$$;

-- Adds up what flushes have made final since the last call, at most 20,000 flushes a shard; returns how
-- many those were. A shard's flushes are committed in the order of their numbers, so a mark tells which
-- have been added. One caller at a time: a second one goes away, or waits.
CREATE FUNCTION hours_fill(wait boolean DEFAULT false) RETURNS bigint LANGUAGE plpgsql
    SET search_path = headrace, pg_temp AS $$
DECLARE
    s record;
    upto record;
    added bigint := 0;
BEGIN
    IF wait THEN
        PERFORM pg_advisory_xact_lock(4851712031984);
    ELSIF NOT pg_try_advisory_xact_lock(4851712031984) THEN
        RETURN 0;
    END IF;
    FOR s IN SELECT shard.id, coalesce(k.epoch, 0) AS epoch, coalesce(k.number, 0) AS number
               FROM shard LEFT JOIN hour_mark k ON k.shard = shard.id
    LOOP
        SELECT f.epoch, f.number, count(*) OVER () AS flushes INTO upto
          FROM (SELECT epoch, number FROM flush
                 WHERE shard = s.id AND (epoch, number) > (s.epoch, s.number)
                 ORDER BY epoch, number LIMIT 20000) f
         ORDER BY f.epoch DESC, f.number DESC LIMIT 1;
        CONTINUE WHEN NOT FOUND;
        PERFORM hours_add(s.id, s.epoch, s.number, upto.epoch, upto.number);
        INSERT INTO hour_mark VALUES (s.id, upto.epoch, upto.number)
        ON CONFLICT (shard) DO UPDATE SET epoch = excluded.epoch, number = excluded.number;
        added := added + upto.flushes;
    END LOOP;
    RETURN added;
END
$$;

-- What the ledger has already, and its marks, by one look at both.
WITH marks AS (
    INSERT INTO hour_mark
    SELECT s.id, f.epoch, f.number FROM shard s CROSS JOIN LATERAL
        (SELECT epoch, number FROM flush WHERE shard = s.id ORDER BY epoch DESC, number DESC LIMIT 1) f
)
INSERT INTO job_hour
SELECT date_trunc('hour', j.state_at, 'UTC'), j.tenant, j.model, j.deployment, j.state, j.error_class, count(*),
       sum(j.attempt_count), sum(date_part('epoch', coalesce(j.started_at, j.state_at)
                                           - coalesce(j.replayed_at, j.accepted_at))),
       coalesce(sum(date_part('epoch', j.state_at - j.started_at)), 0)
  FROM job j WHERE j.state NOT IN (1, 2)
 GROUP BY 1, 2, 3, 4, 5, 6;

-- As before, but that nothing is dropped before it was counted; hours are kept for 90 days.
CREATE OR REPLACE FUNCTION flush_drop(keep interval DEFAULT interval '1 day') RETURNS integer LANGUAGE plpgsql
    SET search_path = headrace SET lock_timeout = '500ms' SET timezone = 'UTC' AS $$
DECLARE
    child record;
    dropped integer := 0;
BEGIN
    DELETE FROM job_hour WHERE hour < now() - interval '90 days';
    FOR child IN
        SELECT c.relname AS name, to_date(right(c.relname, 8), 'YYYYMMDD') AS day
          FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'flush'::regclass AND c.relname ~ '_[0-9]{8}$' ORDER BY 1
    LOOP
        CONTINUE WHEN (child.day + 1)::timestamptz > now() - keep;
        WHILE hours_fill(true) > 0 LOOP END LOOP; -- what is dropped has been counted
        LOCK TABLE flush IN ACCESS EXCLUSIVE MODE;
        CONTINUE WHEN to_regclass(child.name) IS NULL; -- somebody else was faster
        EXECUTE format('ALTER TABLE flush DETACH PARTITION %I', child.name);
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
            $sql$, child.name);
        EXECUTE format('DROP TABLE %I', child.name);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;

-- As before, but for date_part(): extract() counts in numeric.
CREATE OR REPLACE VIEW headrace_v1.jobs AS
SELECT j.id,
       j.tenant,
       j.model AS model_id,
       m.name AS model_name,
       j.deployment AS deployment_id,
       j.environment,
       j.pool,
       CASE WHEN j.state = 3 AND d.state = 3 THEN 'WEBHOOK_FAILED' ELSE state_name(j.state) END AS status,
       webhook_status(j.webhook_url, j.state, d.state) AS webhook_status,
       rank_name(j.rank) AS class,
       j.accepted_at,
       j.started_at,
       j.state_at AS status_at,
       CASE WHEN j.state IN (1, 2) THEN NULL ELSE j.state_at END AS finished_at,
       date_part('epoch', coalesce(j.started_at, CASE WHEN j.state IN (1, 2) THEN now() ELSE j.state_at END)
                 - coalesce(j.replayed_at, j.accepted_at)) AS wait_seconds,
       CASE WHEN j.started_at IS NOT NULL THEN
           date_part('epoch', CASE WHEN j.state IN (1, 2) THEN now() ELSE j.state_at END - j.started_at)
       END AS run_seconds,
       j.attempt_count AS attempts,
       j.max_attempts,
       j.due_at AS retry_at,
       j.round,
       error_class_wire(j.error_class) AS error_code,
       error_class_name(j.error_class) AS error_class,
       j.error_message,
       j.input_size,
       encode(j.input_digest, 'hex') AS input_digest,
       j.input_blob,
       j.webhook_url,
       j.idempotency_key,
       j.start_deadline_at,
       j.total_deadline_at,
       j.worker,
       j.shard,
       split_part(j.trace, '-', 2) AS trace_id,
       j.key_prefix AS api_key_prefix,
       j.replayed_at,
       (SELECT array_agg(t.tag ORDER BY t.tag) FROM headrace.job_tag t WHERE t.job_id = j.id) AS tags
  FROM job j
  LEFT JOIN model m ON m.id = j.model
  LEFT JOIN delivery d ON d.job_id = j.id AND d.round = j.round AND d.endpoint = 'job';

CREATE VIEW headrace_v1.job_hours AS
SELECT h.hour,
       h.tenant,
       h.model AS model_id,
       m.name AS model_name,
       h.deployment AS deployment_id,
       state_name(h.state) AS status,
       error_class_name(h.error_class) AS error_class,
       h.jobs,
       h.attempts,
       h.wait_seconds,
       h.run_seconds
  FROM job_hour h
  LEFT JOIN model m ON m.id = h.model;
COMMENT ON VIEW headrace_v1.job_hours IS 'What ended in each hour, added up as it ends: as quick with ten million jobs as with ten. The last ten to twenty seconds may be missing. Kept for 90 days.';
COMMENT ON COLUMN headrace_v1.job_hours.hour IS 'Beginning of the hour, of UTC, in which the jobs ended.';
COMMENT ON COLUMN headrace_v1.job_hours.tenant IS 'Who pays.';
COMMENT ON COLUMN headrace_v1.job_hours.model_id IS 'Model that the requests named.';
COMMENT ON COLUMN headrace_v1.job_hours.model_name IS 'Name of that model now.';
COMMENT ON COLUMN headrace_v1.job_hours.deployment_id IS 'Deployment.';
COMMENT ON COLUMN headrace_v1.job_hours.status IS 'How they ended: SUCCEEDED, FAILED, EXPIRED or CANCELED.';
COMMENT ON COLUMN headrace_v1.job_hours.error_class IS 'Class that decided it; null when they succeeded.';
COMMENT ON COLUMN headrace_v1.job_hours.jobs IS 'How many. A job that is replayed ends once more.';
COMMENT ON COLUMN headrace_v1.job_hours.attempts IS 'Attempts that they took.';
COMMENT ON COLUMN headrace_v1.job_hours.wait_seconds IS 'Sum of their times from acceptance, or replay, to the start of the last attempt, or to the end.';
COMMENT ON COLUMN headrace_v1.job_hours.run_seconds IS 'Sum of the times that their last attempts ran.';

CREATE VIEW headrace_v1.job_times AS
SELECT j.id,
       j.tenant,
       j.model AS model_id,
       j.deployment AS deployment_id,
       state_name(j.state) AS status,
       j.accepted_at,
       j.started_at,
       CASE WHEN j.state IN (1, 2) THEN NULL ELSE j.state_at END AS finished_at,
       CASE WHEN j.round = 1 THEN
           date_part('epoch', coalesce(j.started_at, CASE WHEN j.state IN (1, 2) THEN now() ELSE j.state_at END)
                     - j.accepted_at) END AS wait_seconds,
       CASE WHEN j.started_at IS NOT NULL THEN
           date_part('epoch', CASE WHEN j.state IN (1, 2) THEN now() ELSE j.state_at END - j.started_at)
       END AS run_seconds
  FROM job j;
COMMENT ON VIEW headrace_v1.job_times IS 'The jobs of the view jobs with no more than their times: nothing is joined, which counts when many thousand are read.';
COMMENT ON COLUMN headrace_v1.job_times.id IS 'Id of the job.';
COMMENT ON COLUMN headrace_v1.job_times.tenant IS 'Who pays.';
COMMENT ON COLUMN headrace_v1.job_times.model_id IS 'Model that the request named.';
COMMENT ON COLUMN headrace_v1.job_times.deployment_id IS 'Deployment that it was resolved to.';
COMMENT ON COLUMN headrace_v1.job_times.status IS 'As in jobs, but SUCCEEDED whatever became of the webhook.';
COMMENT ON COLUMN headrace_v1.job_times.accepted_at IS 'When Kafka took the request.';
COMMENT ON COLUMN headrace_v1.job_times.started_at IS 'When its newest attempt started; null when none did.';
COMMENT ON COLUMN headrace_v1.job_times.finished_at IS 'When it became final; null before.';
COMMENT ON COLUMN headrace_v1.job_times.wait_seconds IS 'From acceptance to the start of its newest attempt, or to its end, or to now; null for a job that was replayed.';
COMMENT ON COLUMN headrace_v1.job_times.run_seconds IS 'From the start of its newest attempt to its end, or to now.';

SELECT tenant_views();
