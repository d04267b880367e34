-- SPDX-License-Identifier: Apache-2.0
-- Limits of tenants and API keys, what they are compared with, and the pace of pools.
--
-- Why: caps are refused at the gateway, which must know payload bytes and delayed jobs as cheaply as
-- depths: as sums of deltas. Keys get limits of their own.
-- Lock: ACCESS EXCLUSIVE on api_key, tenant and queue_delta for the catalogue change and one look at
-- their rows; then one reading of the jobs that have not ended.
-- A million rows: of waiting jobs about 1 s for the first sums; nothing is rewritten.
-- Undo: drop the columns, pool_pace and limit_of(); queue_compact() and the trigger as 0004 and 0002
-- have them. Stop brokers and gateways of this version first.

-- A limit as a number; NULL when it is not set, or is no number.
CREATE FUNCTION limit_of(limits jsonb, name text) RETURNS double precision LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN jsonb_typeof(limits -> name) = 'number' THEN (limits ->> name)::double precision END
$$;

ALTER TABLE tenant ADD CONSTRAINT tenant_limits_check CHECK (jsonb_typeof(limits) = 'object');
ALTER TABLE api_key ADD COLUMN limits jsonb NOT NULL DEFAULT '{}'
    CONSTRAINT api_key_limits_check CHECK (jsonb_typeof(limits) = 'object');
DROP TRIGGER api_key_notify ON api_key;
CREATE TRIGGER api_key_notify AFTER INSERT OR DELETE OR UPDATE OF revoked_at, role, limits ON api_key
    FOR EACH ROW EXECUTE FUNCTION config_notify('prefix');

ALTER TABLE queue_delta
    ADD COLUMN delayed bigint NOT NULL DEFAULT 0, -- of those that wait: not due yet
    ADD COLUMN bytes bigint NOT NULL DEFAULT 0;   -- inputs of those that wait or run
INSERT INTO queue_delta (shard, rank, deployment, pool, waiting, running, delayed, bytes)
SELECT shard, rank, deployment, pool, 0, 0, count(*) FILTER (WHERE state = 1 AND due_at IS NOT NULL),
       sum(input_size)::bigint
  FROM job WHERE state IN (1, 2) GROUP BY shard, rank, deployment, pool;

CREATE OR REPLACE FUNCTION queue_compact() RETURNS bigint LANGUAGE plpgsql SET search_path = headrace AS $$
DECLARE
    gone bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(4851712031983) THEN
        RETURN 0;
    END IF;
    WITH old AS (
        DELETE FROM queue_delta WHERE at < now() - interval '10 seconds'
        RETURNING shard, rank, deployment, pool, waiting, running, delayed, bytes
    ), summed AS (
        INSERT INTO queue_delta (shard, rank, deployment, pool, waiting, running, delayed, bytes)
        SELECT shard, rank, deployment, pool, sum(waiting), sum(running), sum(delayed), sum(bytes)
          FROM old GROUP BY shard, rank, deployment, pool
        HAVING sum(waiting) <> 0 OR sum(running) <> 0 OR sum(delayed) <> 0 OR sum(bytes) <> 0
    )
    SELECT count(*) INTO gone FROM old;
    RETURN gone;
END
$$;

-- What the owner of a shard sees of a pool, every few seconds while it changes: what a job is expected
-- to take, and how many slots its workers have. Gateways estimate waiting times by it.
CREATE TABLE pool_pace (
    pool text NOT NULL,
    shard smallint NOT NULL,
    service_us bigint NOT NULL,
    slots bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pool, shard)
) WITH (fillfactor = 50);
