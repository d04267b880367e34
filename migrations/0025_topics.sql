-- SPDX-License-Identifier: Apache-2.0
-- Topics: Kafka topics of users that become jobs, and topics that results go to.
--
-- Why: a record of a bound topic is a job whose id follows from its place in the topic. The claim of a
-- partition (from where to where, at what time, for which deployments) is written before the first
-- Submit of it, so that whoever reads those records again makes the same ids of them.
-- Lock: none of what is there.
-- A million rows: nothing to rewrite.
-- Undo: DROP the tables, views and functions named here; day_tables() and retention_sweep() as before.

-- A topic and the model that its records are for; never changed but for paused_at.
CREATE TABLE topic_binding (
    id text PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 64), -- in the hash that ids of its jobs are made of
    tenant text NOT NULL REFERENCES tenant,
    name text NOT NULL CONSTRAINT topic_binding_name_check CHECK (name ~ '^[A-Za-z0-9._-]{1,64}$'),
    topic text CHECK (length(topic) BETWEEN 1 AND 249), -- records come from; null: none do
    brokers text NOT NULL DEFAULT '',    -- of the user's cluster; '': the platform's own
    properties text NOT NULL DEFAULT '', -- name=value;… of librdkafka
    secret text,                         -- of the tenant, with more of them
    group_id text NOT NULL,
    model text NOT NULL,                 -- id or name
    environment text,
    deployment text,                     -- one of the two
    format text NOT NULL CONSTRAINT topic_binding_format_check CHECK (format IN ('json', 'msgpack')),
    mapping jsonb NOT NULL DEFAULT '{}', -- input, key, priority: where they are in a record
    max_attempts smallint NOT NULL CHECK (max_attempts BETWEEN 1 AND 10),
    queue_limit_ms bigint NOT NULL CHECK (queue_limit_ms > 0),
    priority smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN 0 AND 2),
    tags text NOT NULL DEFAULT '',
    start_at text NOT NULL CONSTRAINT topic_binding_start_check CHECK (start_at IN ('beginning', 'end')),
    bad text NOT NULL CONSTRAINT topic_binding_bad_check CHECK (bad IN ('stop', 'skip', 'dead_letter')),
    dead_topic text CHECK (length(dead_topic) BETWEEN 1 AND 249),
    result_topic text CHECK (length(result_topic) BETWEEN 1 AND 249),
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    paused_at timestamptz,
    CONSTRAINT topic_binding_use_check CHECK (topic IS NOT NULL OR result_topic IS NOT NULL),
    CONSTRAINT topic_binding_dead_check CHECK ((bad = 'dead_letter') = (dead_topic IS NOT NULL)),
    CONSTRAINT topic_binding_target_check CHECK ((environment IS NULL) <> (deployment IS NULL)),
    UNIQUE (tenant, name)
);
CREATE TRIGGER topic_binding_notify AFTER INSERT OR UPDATE OR DELETE ON topic_binding
    FOR EACH ROW EXECUTE FUNCTION config_notify('id');

-- How far a partition has come: of the bound topic, or of `completed` for its result topic.
CREATE TABLE topic_position (
    binding_id text NOT NULL REFERENCES topic_binding ON DELETE CASCADE,
    result boolean NOT NULL,
    number integer NOT NULL CHECK (number BETWEEN 0 AND 1048575), -- of the partition
    epoch bigint NOT NULL DEFAULT 1, -- raised by each that takes it over: the fence
    owner text NOT NULL,
    position bigint,  -- everything before has come to its end here; null: nothing was read yet
    claim_to bigint,  -- from the position to before here, ids are of the time and the targets that follow
    claim_ms bigint,
    claim_targets jsonb,
    log_end bigint,   -- as last seen
    accepted bigint NOT NULL DEFAULT 0,
    refused bigint NOT NULL DEFAULT 0,
    repeated bigint NOT NULL DEFAULT 0, -- whose key had a job
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (binding_id, result, number)
) WITH (fillfactor = 50);

-- What is wrong with a binding now, as an ingest sees it; said again every few seconds.
CREATE TABLE topic_problem (
    binding_id text NOT NULL REFERENCES topic_binding ON DELETE CASCADE,
    result boolean NOT NULL,
    owner text NOT NULL,
    problem text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (binding_id, result, owner)
) WITH (fillfactor = 50);

-- Records that could not be made jobs; the newest of them.
CREATE TABLE topic_refusal (
    binding_id text NOT NULL REFERENCES topic_binding ON DELETE CASCADE,
    number integer NOT NULL,
    record_offset bigint NOT NULL,
    reason text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (binding_id, number, record_offset)
);
CREATE INDEX topic_refusal_at ON topic_refusal (at);

-- The record that a job was made of, where its result goes to a topic.
CREATE TABLE topic_record (
    job_id uuid NOT NULL,
    binding_id text NOT NULL,
    number integer NOT NULL,
    record_offset bigint NOT NULL,
    key bytea,
    headers bytea, -- as producers/ingest_headers.h has it; null: none
    PRIMARY KEY (job_id, binding_id)
) PARTITION BY RANGE (job_id);
CREATE TABLE topic_record_default PARTITION OF topic_record DEFAULT;

-- Tables with a partition a day, in the order in which they are locked.
CREATE OR REPLACE FUNCTION day_tables() RETURNS TABLE (name text, key text) LANGUAGE sql IMMUTABLE AS $$
    VALUES ('job', 'id'), ('job_input', 'job_id'), ('job_tag', 'job_id'), ('chain_run', 'run_id'),
           ('chain_step', 'run_id'), ('topic_record', 'job_id'), ('job_result', 'job_id'),
           ('attempt', 'job_id'), ('delivery', 'job_id'), ('delivery_try', 'job_id'), ('flush', 'at')
$$;

-- Deletes what is over and old from tables that have no days, and from the DEFAULT partitions; at
-- most 10,000 rows a table and call. Returns the rows deleted.
CREATE OR REPLACE FUNCTION retention_sweep(keep interval DEFAULT interval '4 days') RETURNS bigint LANGUAGE plpgsql
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
        DELETE FROM job_tag WHERE job_id = ANY (old);
        DELETE FROM chain_run WHERE run_id = ANY (old);
        DELETE FROM chain_step WHERE run_id = ANY (old);
        DELETE FROM topic_record WHERE job_id = ANY (old);
        DELETE FROM job_result WHERE job_id = ANY (old);
        DELETE FROM attempt WHERE job_id = ANY (old);
        DELETE FROM delivery WHERE job_id = ANY (old);
        DELETE FROM delivery_try WHERE job_id = ANY (old);
    END IF;
    DELETE FROM idempotency WHERE (tenant, key) IN
        (SELECT tenant, key FROM idempotency WHERE expires_at < now() LIMIT 10000);
    GET DIAGNOSTICS n = ROW_COUNT;
    swept := swept + n;
    DELETE FROM topic_refusal WHERE (binding_id, number, record_offset) IN
        (SELECT binding_id, number, record_offset FROM topic_refusal WHERE at < now() - keep LIMIT 10000);
    GET DIAGNOSTICS n = ROW_COUNT;
    swept := swept + n;
    DELETE FROM topic_problem WHERE at < now() - keep;
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

-- Whom the records of each binding go to now, what stands against it, and how many more jobs its
-- tenant and its pool may have waiting. The arguments are the limits of who has none of his own.
CREATE FUNCTION topic_look(p_pool_waiting bigint, p_pool_bytes double precision,
                           p_tenant_waiting double precision, p_tenant_delayed double precision,
                           p_tenant_bytes double precision)
    RETURNS TABLE (binding_id text, model_id text, targets text, problem text, limit_name text,
                   limit_value double precision, limit_now double precision, room double precision)
    LANGUAGE sql STABLE AS $$
    WITH depth AS MATERIALIZED (
        SELECT q.deployment, q.pool, sum(q.waiting) AS waiting, sum(q.delayed) AS delayed, sum(q.bytes) AS bytes
          FROM queue_delta q WHERE EXISTS (SELECT FROM topic_binding) GROUP BY 1, 2),
    of_pool AS (SELECT d.pool, sum(d.waiting) AS waiting, sum(d.bytes) AS bytes FROM depth d GROUP BY 1),
    of_tenant AS (
        SELECT m.tenant, sum(d.waiting) AS waiting, sum(d.delayed) AS delayed, sum(d.bytes) AS bytes
          FROM depth d JOIN deployment p ON p.id = d.deployment JOIN model m ON m.id = p.model_id GROUP BY 1)
    SELECT b.id, m.id, coalesce(t.targets::text, '[]'),
           CASE WHEN m.id IS NULL THEN format('there is no model ''%s''', b.model)
                WHEN w.kind IS NOT NULL THEN format('%s ''%s'' is switched off', w.kind, w.value)
                WHEN t.targets IS NULL THEN
                    format('model ''%s'' has no deployment in %s that can take jobs', b.model,
                           coalesce('environment ''' || b.environment || '''', 'deployment ''' || b.deployment || '''')) END,
           l.name, l.highest, l.now, l.room
      FROM topic_binding b
      LEFT JOIN LATERAL (SELECT x.id FROM model x
                          WHERE x.tenant = b.tenant AND x.deleted_at IS NULL AND b.model IN (x.id, x.name)
                          ORDER BY x.id <> b.model LIMIT 1) m ON true
      LEFT JOIN LATERAL (
           SELECT jsonb_agg(jsonb_build_object('deployment', y.id, 'environment', y.environment, 'pool', y.pool,
                      'shard', y.shard, 'run_limit_ms', y.run_limit_ms, 'weight', y.weight) ORDER BY y.id) AS targets,
                  min(y.pool) AS pool
             FROM (SELECT d.id, '' AS environment, d.pool, d.shard, d.run_limit_ms, 1 AS weight, d.status
                     FROM deployment d
                    WHERE d.model_id = m.id AND d.deleted_at IS NULL AND b.deployment IN (d.id, d.name)
                   UNION ALL
                   SELECT d.id, e.environment, d.pool, d.shard, d.run_limit_ms, e.weight, d.status
                     FROM environment_target e JOIN deployment d ON d.id = e.deployment_id
                    WHERE e.model_id = m.id AND e.environment = b.environment AND e.weight > 0
                      AND d.deleted_at IS NULL) y
            WHERE y.status NOT IN ('INACTIVE', 'DEACTIVATING', 'FAILED', 'DEPLOY_FAILED', 'BUILD_FAILED',
                                   'BUILD_STOPPED')) t ON true
      LEFT JOIN LATERAL (SELECT s.kind, s.value FROM switch s
                          WHERE s.tenant = b.tenant
                            AND (s.kind = 'tenant' OR (s.kind = 'model' AND s.value = m.id)
                                 OR (s.kind = 'tag' AND s.value = ANY (string_to_array(b.tags, ','))))
                          LIMIT 1) w ON true
      JOIN tenant n ON n.id = b.tenant
      LEFT JOIN of_tenant ot ON ot.tenant = b.tenant
      LEFT JOIN of_pool op ON op.pool = t.pool
     CROSS JOIN LATERAL (
           SELECT v.name, v.highest, v.now,
                  CASE WHEN v.counts OR v.now >= v.highest THEN greatest(v.highest - v.now, 0) ELSE 1e9 END AS room
             FROM (VALUES
                   ('waiting_jobs', coalesce(limit_of(n.limits, 'waiting_jobs'), p_tenant_waiting),
                    coalesce(ot.waiting, 0)::double precision, true),
                   ('delayed_jobs', coalesce(limit_of(n.limits, 'delayed_jobs'), p_tenant_delayed),
                    coalesce(ot.delayed, 0), false),
                   ('payload_bytes', coalesce(limit_of(n.limits, 'payload_bytes'), p_tenant_bytes),
                    coalesce(ot.bytes, 0), false),
                   ('pool_waiting_jobs', p_pool_waiting, coalesce(op.waiting, 0), true),
                   ('pool_payload_bytes', p_pool_bytes, coalesce(op.bytes, 0), false))
                  v (name, highest, now, counts)
            ORDER BY 4, 1 LIMIT 1) l
$$;

CREATE VIEW headrace_v1.topics AS
SELECT b.name, b.tenant, b.topic, b.brokers, b.group_id, b.model, b.environment, b.deployment, b.format, b.bad,
       b.dead_topic, b.result_topic, b.paused_at IS NOT NULL AS paused, b.created_at,
       coalesce(p.accepted, 0)::bigint AS accepted,
       coalesce(p.refused, 0)::bigint AS refused,
       coalesce(p.repeated, 0)::bigint AS repeated,
       p.lag::bigint AS lag,
       (SELECT string_agg(DISTINCT x.problem, '; ') FROM headrace.topic_problem x
         WHERE x.binding_id = b.id AND x.at > now() - interval '30 seconds') AS problem
  FROM headrace.topic_binding b
  LEFT JOIN LATERAL (SELECT sum(x.accepted) AS accepted, sum(x.refused) AS refused, sum(x.repeated) AS repeated,
                            sum(greatest(x.log_end - x.position, 0)) AS lag
                       FROM headrace.topic_position x WHERE x.binding_id = b.id AND NOT x.result) p ON true;
COMMENT ON VIEW headrace_v1.topics IS 'Kafka topics that are bound to models: how far they were read, and what is wrong.';
COMMENT ON COLUMN headrace_v1.topics.name IS 'Name of the binding.';
COMMENT ON COLUMN headrace_v1.topics.tenant IS 'Whose jobs its records become.';
COMMENT ON COLUMN headrace_v1.topics.topic IS 'Topic whose records become jobs; null: it only has a result topic.';
COMMENT ON COLUMN headrace_v1.topics.brokers IS 'Bootstrap servers of its cluster; empty: the platform''s own.';
COMMENT ON COLUMN headrace_v1.topics.group_id IS 'Consumer group in that cluster.';
COMMENT ON COLUMN headrace_v1.topics.model IS 'Model or chain, by id or name.';
COMMENT ON COLUMN headrace_v1.topics.environment IS 'Environment of the model; null where a deployment is named.';
COMMENT ON COLUMN headrace_v1.topics.deployment IS 'Deployment; null where an environment is named.';
COMMENT ON COLUMN headrace_v1.topics.format IS 'json or msgpack.';
COMMENT ON COLUMN headrace_v1.topics.bad IS 'What becomes of records that cannot be jobs: stop, skip, dead_letter.';
COMMENT ON COLUMN headrace_v1.topics.dead_topic IS 'Topic that those go to.';
COMMENT ON COLUMN headrace_v1.topics.result_topic IS 'Topic that results go to.';
COMMENT ON COLUMN headrace_v1.topics.paused IS 'Whether somebody has paused it.';
COMMENT ON COLUMN headrace_v1.topics.created_at IS 'When it was bound.';
COMMENT ON COLUMN headrace_v1.topics.accepted IS 'Records that became jobs, those that were read again included.';
COMMENT ON COLUMN headrace_v1.topics.refused IS 'Records that could not.';
COMMENT ON COLUMN headrace_v1.topics.repeated IS 'Records whose key had a job.';
COMMENT ON COLUMN headrace_v1.topics.lag IS 'Records that wait in the topic, as last seen.';
COMMENT ON COLUMN headrace_v1.topics.problem IS 'What is wrong now; null: nothing.';

CREATE VIEW headrace_v1.topic_partitions AS
SELECT b.name, b.tenant, CASE WHEN p.result THEN 'completed' ELSE b.topic END AS topic, p.number AS partition,
       p.position, p.log_end, greatest(p.log_end - p.position, 0) AS lag, p.accepted, p.refused, p.repeated, p.owner,
       p.epoch, p.updated_at
  FROM headrace.topic_position p JOIN headrace.topic_binding b ON b.id = p.binding_id;
COMMENT ON VIEW headrace_v1.topic_partitions IS 'Partitions of bound topics, and of completed where a binding has a result topic.';
COMMENT ON COLUMN headrace_v1.topic_partitions.name IS 'Name of the binding.';
COMMENT ON COLUMN headrace_v1.topic_partitions.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.topic_partitions.topic IS 'The topic that is read.';
COMMENT ON COLUMN headrace_v1.topic_partitions.partition IS 'Number of the partition.';
COMMENT ON COLUMN headrace_v1.topic_partitions.position IS 'Offset of the next record: all before are jobs, or refused.';
COMMENT ON COLUMN headrace_v1.topic_partitions.log_end IS 'Offset that the next record will have, as last seen.';
COMMENT ON COLUMN headrace_v1.topic_partitions.lag IS 'Records between the two.';
COMMENT ON COLUMN headrace_v1.topic_partitions.accepted IS 'Records that became jobs, or results that were sent.';
COMMENT ON COLUMN headrace_v1.topic_partitions.refused IS 'Records that could not.';
COMMENT ON COLUMN headrace_v1.topic_partitions.repeated IS 'Records whose key had a job.';
COMMENT ON COLUMN headrace_v1.topic_partitions.owner IS 'Who reads it, or has read it last.';
COMMENT ON COLUMN headrace_v1.topic_partitions.epoch IS 'How often it was taken over.';
COMMENT ON COLUMN headrace_v1.topic_partitions.updated_at IS 'When this was written.';

CREATE VIEW headrace_v1.topic_refusals AS
SELECT b.name, b.tenant, b.topic, r.number AS partition, r.record_offset, r.reason, r.at
  FROM headrace.topic_refusal r JOIN headrace.topic_binding b ON b.id = r.binding_id;
COMMENT ON VIEW headrace_v1.topic_refusals IS 'Records that could not be made jobs, the first twenty of each batch.';
COMMENT ON COLUMN headrace_v1.topic_refusals.name IS 'Name of the binding.';
COMMENT ON COLUMN headrace_v1.topic_refusals.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.topic_refusals.topic IS 'Topic of the record.';
COMMENT ON COLUMN headrace_v1.topic_refusals.partition IS 'Partition of the record.';
COMMENT ON COLUMN headrace_v1.topic_refusals.record_offset IS 'Its offset.';
COMMENT ON COLUMN headrace_v1.topic_refusals.reason IS 'Why.';
COMMENT ON COLUMN headrace_v1.topic_refusals.at IS 'When it was read.';

SELECT tenant_views();
