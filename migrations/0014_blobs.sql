-- SPDX-License-Identifier: Apache-2.0
-- Lifetimes: of blobs, and of every table that nobody emptied yet.
--
-- Why: a blob goes with its job's day, or when its job has been over for long enough; the collector
-- of the broker asks here which. Flush rows older than a day, audit rows, dead commands, retired
-- secrets and replicas of machines that are gone grew for ever, and a sweep of 10,000 rows an hour
-- lost against keyed submits.
-- Lock: two CHECKs are replaced under ACCESS EXCLUSIVE of job and attempt for as long as it takes to
-- read them once; the rest replaces functions and makes a view.
-- A million rows: 0.2 s for the two CHECKs.
-- Undo: DROP VIEW headrace_v1.blobs; DROP FUNCTION of the new ones; the old bodies are in 0004, 0005 and 0009.

-- A new error class: the input's blob is missing, short, or not what was submitted.
ALTER TABLE job DROP CONSTRAINT job_error_class_check;
ALTER TABLE job ADD CONSTRAINT job_error_class_check
    CHECK (error_class IN (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14));
ALTER TABLE attempt DROP CONSTRAINT attempt_error_class_check;
ALTER TABLE attempt ADD CONSTRAINT attempt_error_class_check
    CHECK (error_class IN (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14));

CREATE OR REPLACE FUNCTION error_class_name(class smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE class WHEN 1 THEN 'bad_input' WHEN 2 THEN 'model_error' WHEN 3 THEN 'model_unavailable'
        WHEN 4 THEN 'model_timeout' WHEN 5 THEN 'model_not_ready' WHEN 6 THEN 'model_missing'
        WHEN 7 THEN 'oom' WHEN 8 THEN 'device_fault' WHEN 9 THEN 'lost_worker' WHEN 10 THEN 'expired'
        WHEN 11 THEN 'canceled' WHEN 12 THEN 'handed_back' WHEN 13 THEN 'unstorable'
        WHEN 14 THEN 'input_lost' END;

CREATE OR REPLACE FUNCTION error_class_wire(class smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE class WHEN 1 THEN 'MODEL_INVALID_INPUT' WHEN 2 THEN 'MODEL_PREDICT_ERROR'
        WHEN 3 THEN 'MODEL_UNAVAILABLE' WHEN 4 THEN 'MODEL_PREDICT_TIMEOUT' WHEN 5 THEN 'MODEL_NOT_READY'
        WHEN 6 THEN 'MODEL_DOES_NOT_EXIST' WHEN 7 THEN 'MODEL_PREDICT_ERROR' WHEN 10 THEN 'EXPIRED'
        WHEN 11 THEN 'CANCELED' WHEN 8 THEN 'INTERNAL_SERVER_ERROR' WHEN 9 THEN 'INTERNAL_SERVER_ERROR'
        WHEN 12 THEN 'INTERNAL_SERVER_ERROR' WHEN 13 THEN 'INTERNAL_SERVER_ERROR'
        WHEN 14 THEN 'INTERNAL_SERVER_ERROR' END;

-- As error_class_reason() in schema/job.c says; a test compares.
CREATE OR REPLACE FUNCTION fail_reason(class smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN class IN (2, 3, 4, 5) THEN 'attempts_used' WHEN class = 7 THEN 'out_of_memory'
        WHEN class IN (8, 9) THEN 'poison' WHEN class IN (1, 6, 13, 14) THEN error_class_name(class) END;
COMMENT ON COLUMN headrace_v1.dead_jobs.reason IS 'attempts_used, out_of_memory, poison (it cost five workers or engine hosts), bad_input, model_missing, unstorable or input_lost (the blob of its input is missing or not what was submitted).';

-- Makes one partition unless it exists; rows of that day that went to DEFAULT move into it. As in
-- 0004, with inputs among those that are vacuumed early: each is inserted and deleted again.
CREATE OR REPLACE FUNCTION partition_make(parent text, key text, day date) RETURNS boolean LANGUAGE plpgsql
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
    IF parent IN ('job', 'delivery', 'job_input') THEN
        EXECUTE format('ALTER TABLE %I SET (autovacuum_vacuum_scale_factor = 0.02, '
                       'autovacuum_vacuum_cost_delay = 1, autovacuum_analyze_scale_factor = 0.05)',
                       child);
    END IF;
    RETURN true;
END
$$;

-- Drops the days of `flush` that ended longer than `keep` ago. Their newest row of a shard has its
-- offsets, and those above its mark are the outbox: they move to DEFAULT.
CREATE FUNCTION flush_drop(keep interval DEFAULT interval '1 day') RETURNS integer LANGUAGE plpgsql
    SET search_path = headrace SET lock_timeout = '500ms' SET timezone = 'UTC' AS $$
DECLARE
    child record;
    dropped integer := 0;
BEGIN
    FOR child IN
        SELECT c.relname AS name, to_date(right(c.relname, 8), 'YYYYMMDD') AS day
          FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'flush'::regclass AND c.relname ~ '_[0-9]{8}$' ORDER BY 1
    LOOP
        CONTINUE WHEN (child.day + 1)::timestamptz > now() - keep;
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

-- What moved to flush_default and is neither outbox nor newest any more.
CREATE FUNCTION flush_sweep() RETURNS bigint LANGUAGE plpgsql SET search_path = headrace AS $$
DECLARE
    n bigint;
BEGIN
    DELETE FROM flush_default f
     USING shard s
     CROSS JOIN LATERAL (SELECT published_epoch, published_number, epoch, number FROM flush
                          WHERE shard = s.id ORDER BY epoch DESC, number DESC LIMIT 1) newest
     WHERE f.shard = s.id AND f.at < now() - interval '1 day'
       AND (f.epoch, f.number) < (newest.published_epoch, newest.published_number)
       AND (f.epoch, f.number) < (newest.epoch, newest.number);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END
$$;

-- Deletes what is over and old from tables that have no days, at most 10,000 rows a table and call:
-- callers come again at once while that many go. What people may still look for is kept for
-- `audit_keep`, the rest for `keep`.
CREATE FUNCTION retention_sweep_control(keep interval, audit_keep interval) RETURNS bigint LANGUAGE plpgsql
    SET search_path = headrace AS $$
DECLARE
    swept bigint := 0;
    n bigint;
BEGIN
    -- Nobody applied them in all that time: their job is gone, or its shard.
    DELETE FROM command WHERE id IN
        (SELECT c.id FROM command c WHERE c.asked_at < now() - keep
            AND NOT EXISTS (SELECT FROM command_done d WHERE d.command_id = c.id) LIMIT 10000);
    GET DIAGNOSTICS n = ROW_COUNT;
    swept := swept + n;
    DELETE FROM audit WHERE id IN
        (SELECT id FROM audit WHERE at < now() - audit_keep ORDER BY id LIMIT 10000);
    GET DIAGNOSTICS n = ROW_COUNT;
    swept := swept + n;
    DELETE FROM replica WHERE worker IN
        (SELECT worker FROM replica WHERE seen_at < now() - keep AND state IN ('STOPPED', 'FAILED')
          LIMIT 10000);
    GET DIAGNOSTICS n = ROW_COUNT;
    swept := swept + n;
    DELETE FROM webhook_secret WHERE id IN
        (SELECT id FROM webhook_secret
          WHERE coalesce(deleted_at, retires_at) < now() - keep LIMIT 10000);
    GET DIAGNOSTICS n = ROW_COUNT;
    swept := swept + n;
    -- What is known of a receiver that nobody has written to since; what a person disabled stays.
    DELETE FROM webhook_endpoint WHERE (tenant, url) IN
        (SELECT tenant, url FROM webhook_endpoint
          WHERE (disabled_at IS NULL AND updated_at < now() - keep)
             OR (disabled_by = 'receiver' AND updated_at < now() - audit_keep) LIMIT 10000);
    GET DIAGNOSTICS n = ROW_COUNT;
    swept := swept + n;
    -- Their job's day was dropped before they came.
    DELETE FROM delivery_default WHERE (job_id, round, endpoint) IN
        (SELECT d.job_id, d.round, d.endpoint FROM delivery_default d
          WHERE d.state <> 1 AND d.finished_at < now() - keep
            AND NOT EXISTS (SELECT FROM job j WHERE j.id = d.job_id) LIMIT 10000);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN swept + n + flush_sweep();
END
$$;

-- Of these days, those whose blobs may go although no row speaks of them: the day was dropped, and
-- every shard has read and written its intake far beyond it, so that no accepted job of that day can
-- still be on its way into the ledger.
CREATE FUNCTION blob_days_over(days date[], keep interval) RETURNS TABLE (day date) LANGUAGE sql STABLE
    SET search_path = headrace SET timezone = 'UTC' AS $$
    SELECT d FROM unnest(days) d
     WHERE (d + 1)::timestamptz < now() - keep
       AND to_regclass('job_' || to_char(d, 'YYYYMMDD')) IS NULL
       AND EXISTS (SELECT FROM shard)
       AND NOT EXISTS (
           SELECT FROM shard s
             LEFT JOIN LATERAL (SELECT floor_at FROM flush f WHERE f.shard = s.id
                                 ORDER BY epoch DESC, number DESC LIMIT 1) newest ON true
            WHERE coalesce(newest.floor_at, '-infinity') < (d + 2)::timestamptz)
$$;

-- What decides about the blobs of these jobs. A delivery that is owed and has no row yet is open.
CREATE FUNCTION blob_facts(ids uuid[])
    RETURNS TABLE (id uuid, state smallint, age_seconds double precision, delivery_open boolean)
    LANGUAGE sql STABLE SET search_path = headrace AS $$
    SELECT j.id, j.state, extract(epoch FROM now() - j.state_at)::double precision,
           EXISTS (SELECT FROM delivery d WHERE d.job_id = j.id AND d.state = 1)
           OR (j.webhook_url IS NOT NULL AND j.state <> 6
               AND NOT EXISTS (SELECT FROM delivery d WHERE d.job_id = j.id AND d.round = j.round))
      FROM job j WHERE j.id = ANY (ids)
$$;

CREATE VIEW headrace_v1.blobs AS
SELECT j.id AS job_id, 'input' AS kind, j.round, j.input_blob AS key, j.input_size AS size, j.tenant,
       j.model AS model_id
  FROM job j WHERE j.input_blob IS NOT NULL
UNION ALL
SELECT r.job_id, 'output', r.round, r.output_blob, r.output_size, j.tenant, j.model
  FROM job_result r JOIN job j ON j.id = r.job_id WHERE r.output_blob IS NOT NULL;
COMMENT ON VIEW headrace_v1.blobs IS 'Inputs and outputs that are in the blob store; one that outlived its time may be gone from there while its job is still shown.';
COMMENT ON COLUMN headrace_v1.blobs.job_id IS 'The job.';
COMMENT ON COLUMN headrace_v1.blobs.kind IS 'input or output.';
COMMENT ON COLUMN headrace_v1.blobs.round IS 'Round of the job: of an input the newest, of an output that which made it.';
COMMENT ON COLUMN headrace_v1.blobs.key IS 'Key in the blob store.';
COMMENT ON COLUMN headrace_v1.blobs.size IS 'Bytes.';
COMMENT ON COLUMN headrace_v1.blobs.tenant IS 'Who pays.';
COMMENT ON COLUMN headrace_v1.blobs.model_id IS 'Model that the request named.';

DO $$
DECLARE
    child record;
BEGIN
    FOR child IN SELECT c.oid::regclass AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                  WHERE i.inhparent = to_regclass('job_input') AND c.relname ~ '_[0-9]{8}$'
    LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_vacuum_scale_factor = 0.02, '
                       'autovacuum_vacuum_cost_delay = 1, autovacuum_analyze_scale_factor = 0.05)',
                       child.name);
    END LOOP;
END
$$;
