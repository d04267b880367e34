-- SPDX-License-Identifier: Apache-2.0
-- Bulk jobs: files of requests, each line a job.
--
-- Why: a bulk job is a row that one `headrace ingest` at a time works on. Its lines are cut into
-- chunks; a chunk is what is sent, collected and written at once. Lines have ids that follow from
-- the bulk job and the line's number, so nothing is kept of a line but its job.
-- Lock: ACCESS EXCLUSIVE on job while its CHECK of the rank is replaced, with a scan of its rows.
-- A million rows: the scan takes about a second.
-- Undo: DROP the tables, views and functions named here, file.bulk_id, file.part; the CHECK as in
-- 0001, rank_name() as in 0005.

ALTER TABLE job DROP CONSTRAINT job_rank_check;
ALTER TABLE job ADD CONSTRAINT job_rank_check CHECK (rank BETWEEN 0 AND 4);
CREATE OR REPLACE FUNCTION rank_name(rank smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE rank WHEN 0 THEN 'sync' WHEN 4 THEN 'bulk' ELSE (rank - 1)::text END;

CREATE TABLE bulk (
    id uuid PRIMARY KEY, -- 'batch_' and its 32 digits on the wire
    tenant text NOT NULL,
    key_prefix text NOT NULL,
    endpoint text NOT NULL,
    input_file_id uuid NOT NULL,
    input_blob text NOT NULL,
    input_size bigint NOT NULL,
    completion_window text NOT NULL,
    status text NOT NULL DEFAULT 'validating' CONSTRAINT bulk_status_check CHECK (status IN (
        'validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', 'cancelling', 'cancelled')),
    targets jsonb NOT NULL DEFAULT '{}', -- by model of a line: whom its jobs go to
    metadata jsonb,
    errors jsonb, -- of validation: OpenAI's list
    total bigint NOT NULL DEFAULT 0,
    completed bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    output_expiry_s bigint, -- of its files; null: they stay
    output_file_id uuid,
    error_file_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    in_progress_at timestamptz,
    finalizing_at timestamptz,
    completed_at timestamptz,
    failed_at timestamptz,
    expired_at timestamptz,
    cancelling_at timestamptz,
    cancelled_at timestamptz,
    epoch bigint NOT NULL DEFAULT 0, -- of the ingest that works on it: one more with each that takes it
    owner text,
    leased_until timestamptz NOT NULL DEFAULT '-infinity'
);
CREATE INDEX bulk_tenant ON bulk (tenant, id);
CREATE INDEX bulk_open ON bulk (id) WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');

-- Lines that are sent and written together, in the order of the file.
CREATE TABLE bulk_chunk (
    bulk_id uuid NOT NULL,
    number integer NOT NULL, -- from 0
    start bigint NOT NULL,   -- of its bytes in the input
    size integer NOT NULL,
    first_line bigint NOT NULL, -- from 1
    done boolean NOT NULL DEFAULT false,
    completed integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    output_size bigint NOT NULL DEFAULT 0,
    error_size bigint NOT NULL DEFAULT 0,
    failed_lines bigint[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (bulk_id, number)
);
CREATE INDEX bulk_chunk_open ON bulk_chunk (bulk_id, number) WHERE NOT done;

ALTER TABLE file ADD COLUMN bulk_id uuid;  -- that has written it …
ALTER TABLE file ADD COLUMN part text CONSTRAINT file_part_check CHECK (part IN ('output', 'error')); -- … as which
CREATE INDEX file_bulk ON file (bulk_id) WHERE bulk_id IS NOT NULL;

-- Takes bulk jobs that nobody works on, oldest first.
CREATE FUNCTION bulk_claim(p_owner text, p_lease interval, p_count integer) RETURNS SETOF bulk LANGUAGE sql
    VOLATILE AS $$
    UPDATE bulk b SET epoch = b.epoch + 1, owner = p_owner, leased_until = now() + p_lease
     WHERE b.id IN (SELECT o.id FROM bulk o
                     WHERE o.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
                       AND o.leased_until < now()
                     ORDER BY o.id LIMIT p_count FOR UPDATE SKIP LOCKED)
    RETURNING b.*
$$;

-- Chunks that were found while a bulk job is validated. Nothing when another has taken it.
CREATE FUNCTION bulk_chunks_add(p_bulk uuid, p_epoch bigint, p_numbers integer[], p_starts bigint[],
                                p_sizes integer[], p_first_lines bigint[]) RETURNS void LANGUAGE sql VOLATILE AS $$
    INSERT INTO bulk_chunk (bulk_id, number, start, size, first_line)
    SELECT b.id, c.number, c.start, c.size, c.first_line
      FROM (SELECT id FROM bulk WHERE id = p_bulk AND epoch = p_epoch FOR UPDATE) b,
           unnest(p_numbers, p_starts, p_sizes, p_first_lines) AS c (number, start, size, first_line)
    ON CONFLICT (bulk_id, number) DO UPDATE
       SET start = excluded.start, size = excluded.size, first_line = excluded.first_line
$$;

-- A chunk's blobs are written: what is in them counts, once.
CREATE FUNCTION bulk_chunk_done(p_bulk uuid, p_epoch bigint, p_number integer, p_completed integer, p_failed integer,
                                p_output_size bigint, p_error_size bigint, p_failed_lines bigint[]) RETURNS void
    LANGUAGE sql VOLATILE AS $$
    WITH mine AS (SELECT id FROM bulk WHERE id = p_bulk AND epoch = p_epoch FOR UPDATE),
    done AS (
        UPDATE bulk_chunk c SET done = true, completed = p_completed, failed = p_failed,
               output_size = p_output_size, error_size = p_error_size, failed_lines = p_failed_lines
          FROM mine WHERE c.bulk_id = mine.id AND c.number = p_number AND NOT c.done
        RETURNING c.completed, c.failed)
    UPDATE bulk b SET completed = b.completed + done.completed, failed = b.failed + done.failed
      FROM done WHERE b.id = p_bulk
$$;

-- All chunks are done: the files are there, and the bulk job is over.
CREATE FUNCTION bulk_finish(p_bulk uuid, p_epoch bigint, p_output uuid, p_error uuid, p_expired boolean)
    RETURNS void LANGUAGE sql VOLATILE AS $$
    WITH mine AS (
        SELECT b.id, b.tenant, b.status, b.output_expiry_s FROM bulk b
         WHERE b.id = p_bulk AND b.epoch = p_epoch AND b.status IN ('in_progress', 'finalizing', 'cancelling')
           AND NOT EXISTS (SELECT FROM bulk_chunk c WHERE c.bulk_id = p_bulk AND NOT c.done)
           FOR UPDATE),
    sizes AS (SELECT coalesce(sum(c.output_size), 0) AS output, coalesce(sum(c.error_size), 0) AS error
                FROM bulk_chunk c WHERE c.bulk_id = p_bulk),
    files AS (
        INSERT INTO file (id, tenant, purpose, filename, size, bulk_id, part, expires_at)
        SELECT f.id, mine.tenant, 'batch_output',
               'batch_' || replace(mine.id::text, '-', '') || '_' || f.part || '.jsonl', f.size, mine.id, f.part,
               now() + mine.output_expiry_s * interval '1 second'
          FROM mine, sizes, LATERAL (VALUES (p_output, 'output', sizes.output), (p_error, 'error', sizes.error))
               AS f (id, part, size)
         WHERE f.size > 0
        RETURNING id, part)
    UPDATE bulk b
       SET status = CASE WHEN mine.status = 'cancelling' THEN 'cancelled'
                         WHEN p_expired THEN 'expired' ELSE 'completed' END,
           finalizing_at = coalesce(b.finalizing_at, now()),
           cancelled_at = CASE WHEN mine.status = 'cancelling' THEN now() END,
           expired_at = CASE WHEN mine.status <> 'cancelling' AND p_expired THEN now() END,
           completed_at = CASE WHEN mine.status <> 'cancelling' AND NOT p_expired THEN now() END,
           output_file_id = (SELECT id FROM files WHERE part = 'output'),
           error_file_id = (SELECT id FROM files WHERE part = 'error'),
           leased_until = 'infinity'
      FROM mine WHERE b.id = mine.id
$$;

-- Whom lines go to: of each model of a tenant the deployment of its production environment that gets
-- most, with the engine that says which routes it has.
CREATE FUNCTION bulk_targets(p_tenant text) RETURNS TABLE (model text, name text, deployment text, environment text,
    pool text, shard smallint, run_limit_ms bigint, engine text) LANGUAGE sql STABLE AS $$
    SELECT m.id, m.name, d.id, d.environment, d.pool, d.shard, d.run_limit_ms, d.engine
      FROM model m
      JOIN LATERAL (SELECT y.id, t.environment, y.pool, y.shard, y.run_limit_ms, y.engine
                      FROM environment_target t JOIN deployment y ON y.id = t.deployment_id
                     WHERE t.model_id = m.id AND t.environment = 'production' AND t.weight > 0
                       AND y.deleted_at IS NULL
                     ORDER BY t.weight DESC, y.number DESC LIMIT 1) d ON true
     WHERE m.tenant = p_tenant AND m.deleted_at IS NULL
     ORDER BY m.name LIMIT 10000
$$;

-- The job of a line, as producers/bulk_line.c makes its id.
CREATE FUNCTION bulk_line_job(p_bulk uuid, p_line bigint, p_shard smallint) RETURNS uuid LANGUAGE sql IMMUTABLE
    PARALLEL SAFE AS $$
    SELECT encode(substring(uuid_send(p_bulk) FROM 1 FOR 6)
        || set_byte(set_byte('\x0000'::bytea, 0, 112 | (get_byte(h, 0) & 15)), 1, get_byte(h, 1))
        || set_byte(set_byte('\x0000'::bytea, 0, 128 | (p_shard >> 4)), 1,
                    ((p_shard & 15) << 4) | (get_byte(h, 0) >> 4))
        || substring(h FROM 3 FOR 6), 'hex')::uuid
      FROM (SELECT sha256(uuid_send(p_bulk) || int8send(p_line)) AS h) x
$$;

CREATE VIEW headrace_v1.bulk_jobs AS
SELECT b.id AS bulk_id,
       b.tenant,
       b.endpoint,
       b.status,
       b.input_file_id,
       b.input_size,
       b.total AS lines,
       b.completed,
       b.failed,
       b.output_file_id,
       b.error_file_id,
       b.created_at,
       b.in_progress_at,
       coalesce(b.completed_at, b.failed_at, b.expired_at, b.cancelled_at) AS ended_at,
       b.expires_at,
       CASE WHEN b.leased_until > now() AND b.leased_until < 'infinity' THEN b.owner END AS worked_on_by
  FROM headrace.bulk b;
COMMENT ON VIEW headrace_v1.bulk_jobs IS 'Bulk jobs: files of requests, each line a job.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.bulk_id IS 'Id of the bulk job; on the wire batch_ and its 32 digits.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.tenant IS 'Who pays.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.endpoint IS 'Route of its lines.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.status IS 'As OpenAI names it: validating, failed, in_progress, finalizing, completed, expired, cancelling, cancelled.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.input_file_id IS 'Its input.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.input_size IS 'Bytes of that.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.lines IS 'Requests in it; 0 until they are validated.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.completed IS 'Of those: in the output.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.failed IS 'Of those: in the error file.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.output_file_id IS 'Where the answers are; null before the end, or without any.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.error_file_id IS 'Where the failures are; null before the end, or without any.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.created_at IS 'When it was accepted.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.in_progress_at IS 'When its input was validated.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.ended_at IS 'When it ended; null before.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.expires_at IS 'When what has not run is given up.';
COMMENT ON COLUMN headrace_v1.bulk_jobs.worked_on_by IS 'Boot of the ingest that works on it.';

SELECT tenant_views();
