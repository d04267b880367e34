-- SPDX-License-Identifier: Apache-2.0
-- Chains: which jobs belong to a run, and what a run was begun with.
--
-- Why: a run is a job of a model whose engine is `chain`, and its steps are jobs too. The flush that
-- inserts the row of a step's job writes here to which run and step it belongs, so that whoever goes
-- on with a run finds everything that was submitted for it.
-- Lock: none of what is there.
-- A million rows: nothing to rewrite.
-- Undo: DROP the tables, views and functions named here; day_tables() and retention_sweep() as in 0015.

-- A run, once a coordinator has begun with it.
CREATE TABLE chain_run (
    run_id uuid NOT NULL, -- its job
    deployment_id text NOT NULL,
    token bigint NOT NULL, -- of the attempt that may go on with it: the fence of coordinators
    depth smallint NOT NULL, -- 0: no step of another run
    targets jsonb NOT NULL, -- by step: whom its jobs go to, chosen as the run began
    begun_at timestamptz NOT NULL DEFAULT now(),
    closed_at timestamptz, -- over, and nothing of it runs any more
    PRIMARY KEY (run_id)
) PARTITION BY RANGE (run_id);
CREATE TABLE chain_run_default PARTITION OF chain_run DEFAULT;
CREATE INDEX chain_run_open ON chain_run (run_id) WHERE closed_at IS NULL;

-- A job that a run has submitted.
CREATE TABLE chain_step (
    run_id uuid NOT NULL,
    step text NOT NULL,
    item integer NOT NULL,   -- of a map; 0 else
    round smallint NOT NULL, -- of the run
    job_id uuid NOT NULL,
    PRIMARY KEY (run_id, step, item, round)
) PARTITION BY RANGE (run_id);
CREATE TABLE chain_step_default PARTITION OF chain_step DEFAULT;
CREATE INDEX chain_step_job ON chain_step (job_id);

-- Tables with a partition a day, in the order in which they are locked.
CREATE OR REPLACE FUNCTION day_tables() RETURNS TABLE (name text, key text) LANGUAGE sql IMMUTABLE AS $$
    VALUES ('job', 'id'), ('job_input', 'job_id'), ('job_tag', 'job_id'), ('chain_run', 'run_id'),
           ('chain_step', 'run_id'), ('job_result', 'job_id'), ('attempt', 'job_id'),
           ('delivery', 'job_id'), ('delivery_try', 'job_id'), ('flush', 'at')
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

-- Whom the jobs of each step go to: a deployment of its own, or one of its environment by weight. A
-- step whose model or deployment is not there has no member.
CREATE FUNCTION chain_targets(p_tenant text, p_chain jsonb) RETURNS jsonb LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(jsonb_object_agg(s.key, jsonb_build_object(
               'model', m.id, 'deployment', d.id, 'environment', d.environment, 'pool', d.pool,
               'shard', d.shard, 'run_limit_ms', d.run_limit_ms, 'chain', d.engine = 'chain')), '{}')
      FROM jsonb_each(p_chain -> 'steps') AS s
      JOIN LATERAL (SELECT x.id FROM model x
                     WHERE x.tenant = p_tenant AND x.deleted_at IS NULL
                       AND (x.id = s.value ->> 'model' OR x.name = s.value ->> 'model')
                     ORDER BY x.id <> s.value ->> 'model' LIMIT 1) m ON true
      JOIN LATERAL (
           (SELECT y.id, '' AS environment, y.pool, y.shard, y.run_limit_ms, y.engine
              FROM deployment y
             WHERE y.model_id = m.id AND y.deleted_at IS NULL
               AND s.value ->> 'deployment' IN (y.id, y.name) LIMIT 1)
           UNION ALL
           (SELECT y.id, t.environment, y.pool, y.shard, y.run_limit_ms, y.engine
              FROM environment_target t JOIN deployment y ON y.id = t.deployment_id
             WHERE s.value -> 'deployment' IS NULL AND t.model_id = m.id AND t.weight > 0
               AND t.environment = coalesce(s.value ->> 'environment', 'production')
               AND y.deleted_at IS NULL
             ORDER BY -ln(1 - random()) / t.weight LIMIT 1)) d ON true
$$;

-- A coordinator begins with a run, or goes on with it. No row: a newer attempt has it.
CREATE FUNCTION chain_begin(p_run uuid, p_token bigint, p_deployment text)
    RETURNS TABLE (tenant text, targets text, round smallint, depth smallint, again boolean) LANGUAGE sql
    VOLATILE AS $$
    WITH chain AS (
        SELECT m.tenant, d.config,
               coalesce((SELECT r.depth + 1 FROM chain_step s JOIN chain_run r ON r.run_id = s.run_id
                          WHERE s.job_id = p_run LIMIT 1), 0)::smallint AS depth,
               EXISTS (SELECT FROM chain_run o WHERE o.run_id = p_run) AS again
          FROM deployment d JOIN model m ON m.id = d.model_id WHERE d.id = p_deployment),
    taken AS (
        INSERT INTO chain_run AS r (run_id, deployment_id, token, depth, targets)
        SELECT p_run, p_deployment, p_token, c.depth,
               chain_targets(c.tenant, c.config) ||
                   coalesce((SELECT o.targets FROM chain_run o WHERE o.run_id = p_run), '{}')
          FROM chain c
        ON CONFLICT (run_id) DO UPDATE SET token = excluded.token, closed_at = NULL,
            targets = excluded.targets
         WHERE r.token < excluded.token
        RETURNING r.targets, r.depth)
    SELECT c.tenant, t.targets::text, coalesce((SELECT j.round FROM job j WHERE j.id = p_run), 1::smallint),
           t.depth, c.again
      FROM chain c CROSS JOIN taken t
$$;

-- Jobs of runs that are over. What is over for long and has none is closed, at most 100 a call.
CREATE FUNCTION chain_leftovers() RETURNS TABLE (job_id uuid, tenant text) LANGUAGE sql VOLATILE AS $$
    WITH over AS MATERIALIZED (
        SELECT r.run_id, j.state_at FROM chain_run r JOIN job j ON j.id = r.run_id
         WHERE r.closed_at IS NULL AND j.state NOT IN (1, 2)
         ORDER BY j.state_at LIMIT 100),
    live AS MATERIALIZED (
        SELECT o.run_id, j.id, j.tenant FROM over o JOIN chain_step s ON s.run_id = o.run_id
          JOIN job j ON j.id = s.job_id WHERE j.state IN (1, 2)),
    closed AS (
        UPDATE chain_run r SET closed_at = now() FROM over o
         WHERE r.run_id = o.run_id AND o.state_at < now() - interval '10 seconds'
           AND NOT EXISTS (SELECT FROM live l WHERE l.run_id = o.run_id))
    SELECT l.id, l.tenant FROM live l
$$;

CREATE VIEW headrace_v1.chain_runs AS
SELECT j.id AS run_id,
       coalesce(m.name, j.model) AS chain,
       j.tenant,
       j.deployment AS deployment_id,
       state_name(j.state) AS status,
       j.round,
       j.attempt_count AS attempts,
       r.depth,
       j.error_message,
       j.accepted_at,
       r.begun_at,
       CASE WHEN j.state NOT IN (1, 2) THEN j.state_at END AS ended_at,
       r.closed_at,
       n.jobs,
       n.jobs_over
  FROM headrace.chain_run r
  JOIN headrace.job j ON j.id = r.run_id
  LEFT JOIN headrace.model m ON m.id = j.model
 CROSS JOIN LATERAL (SELECT count(*) AS jobs, count(*) FILTER (WHERE x.state NOT IN (1, 2)) AS jobs_over
                       FROM headrace.chain_step s JOIN headrace.job x ON x.id = s.job_id
                      WHERE s.run_id = r.run_id) n;
COMMENT ON VIEW headrace_v1.chain_runs IS 'Runs of chains that have begun. A run is a job; its steps are in chain_steps.';
COMMENT ON COLUMN headrace_v1.chain_runs.run_id IS 'Id of the run: of its job.';
COMMENT ON COLUMN headrace_v1.chain_runs.chain IS 'Name of the chain.';
COMMENT ON COLUMN headrace_v1.chain_runs.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.chain_runs.deployment_id IS 'Version of the chain that the run began with, and ends with.';
COMMENT ON COLUMN headrace_v1.chain_runs.status IS 'Of its job.';
COMMENT ON COLUMN headrace_v1.chain_runs.round IS '1, and one more for each replay.';
COMMENT ON COLUMN headrace_v1.chain_runs.attempts IS 'Attempts of its coordinator: each went on where the one before stopped.';
COMMENT ON COLUMN headrace_v1.chain_runs.depth IS '0, or how many runs it is a step within.';
COMMENT ON COLUMN headrace_v1.chain_runs.error_message IS 'Why it failed; begins with the step.';
COMMENT ON COLUMN headrace_v1.chain_runs.accepted_at IS 'When it was accepted.';
COMMENT ON COLUMN headrace_v1.chain_runs.begun_at IS 'When a coordinator began with it.';
COMMENT ON COLUMN headrace_v1.chain_runs.ended_at IS 'When it ended; null while it runs.';
COMMENT ON COLUMN headrace_v1.chain_runs.closed_at IS 'When it was over and nothing of it ran any more.';
COMMENT ON COLUMN headrace_v1.chain_runs.jobs IS 'Jobs that it has submitted.';
COMMENT ON COLUMN headrace_v1.chain_runs.jobs_over IS 'Those of them that are over.';

CREATE VIEW headrace_v1.chain_steps AS
SELECT s.run_id,
       s.step,
       s.item,
       s.round,
       s.job_id,
       coalesce(m.name, j.model) AS model,
       j.deployment AS deployment_id,
       state_name(j.state) AS status,
       j.attempt_count AS attempts,
       j.accepted_at,
       j.started_at,
       CASE WHEN j.state NOT IN (1, 2) THEN j.state_at END AS ended_at,
       error_class_name(j.error_class) AS error_class,
       j.error_message
  FROM headrace.chain_step s
  JOIN headrace.job j ON j.id = s.job_id
  LEFT JOIN headrace.model m ON m.id = j.model;
COMMENT ON VIEW headrace_v1.chain_steps IS 'Jobs that runs of chains have submitted: one for each step, or item of a map, that began.';
COMMENT ON COLUMN headrace_v1.chain_steps.run_id IS 'The run.';
COMMENT ON COLUMN headrace_v1.chain_steps.step IS 'Name of the step.';
COMMENT ON COLUMN headrace_v1.chain_steps.item IS 'Place in the list of a map, from 0; 0 of a step without one.';
COMMENT ON COLUMN headrace_v1.chain_steps.round IS 'Round of the run that submitted it.';
COMMENT ON COLUMN headrace_v1.chain_steps.job_id IS 'The job; its attempts are in attempts, its output in results.';
COMMENT ON COLUMN headrace_v1.chain_steps.model IS 'Name of the model.';
COMMENT ON COLUMN headrace_v1.chain_steps.deployment_id IS 'Deployment that it went to.';
COMMENT ON COLUMN headrace_v1.chain_steps.status IS 'Of the job.';
COMMENT ON COLUMN headrace_v1.chain_steps.attempts IS 'Attempts that it has had.';
COMMENT ON COLUMN headrace_v1.chain_steps.accepted_at IS 'When it was accepted.';
COMMENT ON COLUMN headrace_v1.chain_steps.started_at IS 'When its newest attempt started.';
COMMENT ON COLUMN headrace_v1.chain_steps.ended_at IS 'When it ended; null before.';
COMMENT ON COLUMN headrace_v1.chain_steps.error_class IS 'Class of its last error.';
COMMENT ON COLUMN headrace_v1.chain_steps.error_message IS 'Its last error.';
