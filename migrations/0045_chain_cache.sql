-- SPDX-License-Identifier: Apache-2.0
-- Steps of chains whose output is taken over from a job that had the same input.
--
-- Why: the same question of the same deployment need not be answered twice. An entry names a job of the
-- ledger and keeps no output of its own: there are no more of them than jobs of the last day, and one whose
-- job's output is gone does not count. What a run has taken over is a row among its steps, so that whoever
-- goes on with it takes over the same.
-- Lock: ALTER TABLE of chain_step, a moment: a column without a value.
-- A million rows: nothing to rewrite.
-- Undo: DROP FUNCTION chain_cache_take, chain_cache_put, chain_cache_sweep; DROP TABLE chain_cache; the views
-- as in 0018 and 0038, chain_path() as in 0022; the column.

ALTER TABLE chain_step ADD COLUMN taken_at timestamptz; -- the job is another run's, and its output was taken over then

CREATE TABLE chain_cache (
    deployment_id text NOT NULL,
    digest bytea NOT NULL, -- SHA-256 of the input
    job_id uuid NOT NULL,  -- that succeeded with it
    stored_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (deployment_id, digest)
);
CREATE INDEX chain_cache_stored ON chain_cache (stored_at);

-- For each step that is asked for: the output of a job with the same input, if there is one that is young
-- enough, and the attempt that asks still has the run. Asked again, the answer is the same.
CREATE FUNCTION chain_cache_take(p_runs uuid[], p_tokens bigint[], p_steps text[], p_items integer[], p_rounds smallint[],
                                 p_deployments text[], p_digests bytea[], p_ages double precision[])
    RETURNS TABLE (place integer, job_id uuid, output bytea, output_type text, output_blob text) LANGUAGE plpgsql
    VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM FROM chain_run r WHERE r.run_id = ANY (p_runs) ORDER BY r.run_id FOR SHARE;
    INSERT INTO chain_step (run_id, step, item, round, job_id, taken_at)
    SELECT a.run_id, a.step, a.item, a.round, c.job_id, now()
      FROM unnest(p_runs, p_tokens, p_steps, p_items, p_rounds, p_deployments, p_digests, p_ages)
           AS a (run_id, token, step, item, round, deployment_id, digest, age)
      JOIN chain_run r ON r.run_id = a.run_id AND r.token = a.token
      JOIN chain_cache c ON c.deployment_id = a.deployment_id AND c.digest = a.digest
       AND c.stored_at > now() - a.age * interval '1 second'
      JOIN job j ON j.id = c.job_id AND j.state = 3
     WHERE EXISTS (SELECT FROM job_result x WHERE x.job_id = j.id AND x.round = j.round)
        ON CONFLICT DO NOTHING;
    RETURN QUERY
    SELECT a.place::integer, s.job_id, x.output, x.output_type, x.output_blob
      FROM unnest(p_runs, p_steps, p_items, p_rounds) WITH ORDINALITY AS a (run_id, step, item, round, place)
      JOIN chain_step s ON s.run_id = a.run_id AND s.step = a.step AND s.item = a.item AND s.round = a.round
       AND s.taken_at IS NOT NULL
      JOIN job j ON j.id = s.job_id
      JOIN job_result x ON x.job_id = j.id AND x.round = j.round;
END
$$;

-- Jobs that have succeeded; the newest one with an input counts.
CREATE FUNCTION chain_cache_put(p_deployments text[], p_digests bytea[], p_jobs uuid[]) RETURNS void LANGUAGE sql VOLATILE AS $$
    INSERT INTO chain_cache AS c (deployment_id, digest, job_id)
    SELECT DISTINCT ON (a.deployment_id, a.digest) a.deployment_id, a.digest, a.job_id
      FROM unnest(p_deployments, p_digests, p_jobs) AS a (deployment_id, digest, job_id)
     ORDER BY a.deployment_id, a.digest
        ON CONFLICT (deployment_id, digest) DO UPDATE SET job_id = excluded.job_id, stored_at = now()
$$;

-- A day is the most that a step may ask for. At most 10,000 a call.
CREATE FUNCTION chain_cache_sweep() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    WITH old AS (
        DELETE FROM chain_cache WHERE (deployment_id, digest) IN
            (SELECT deployment_id, digest FROM chain_cache WHERE stored_at < now() - interval '1 day'
              ORDER BY stored_at LIMIT 10000)
        RETURNING 1)
    SELECT count(*) FROM old
$$;

-- As 0022 has it; what was taken over was there at once.
CREATE OR REPLACE FUNCTION chain_path(p_run uuid) RETURNS TABLE (back integer, step text, item integer, job_id uuid,
        ready_at timestamptz, began_at timestamptz, started_at timestamptz, ended_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = headrace, pg_temp AS $$
    WITH RECURSIVE run AS (
        SELECT j.id, j.accepted_at, d.config -> 'steps' AS steps
          FROM job j JOIN deployment d ON d.id = j.deployment
         WHERE j.id = p_run AND d.engine = 'chain'),
    done AS MATERIALIZED (
        SELECT DISTINCT ON (x.step) x.step, x.item, x.job_id, x.began_at, x.started_at, x.ended_at
          FROM (SELECT s.step, s.item, s.job_id,
                       min(coalesce(s.taken_at, j.accepted_at)) OVER (PARTITION BY s.step) AS began_at,
                       coalesce(s.taken_at, j.started_at) AS started_at,
                       CASE WHEN j.state NOT IN (1, 2) THEN coalesce(s.taken_at, j.state_at) END AS ended_at
                  FROM chain_step s JOIN job j ON j.id = s.job_id
                 WHERE s.run_id = p_run AND s.round > 0) x
         ORDER BY x.step, x.ended_at DESC NULLS FIRST, x.item DESC),
    needs AS MATERIALIZED (SELECT n.step, n.needs FROM run CROSS JOIN LATERAL chain_needs(run.steps) n),
    waits (step, needs) AS (
        SELECT n.step, n.needs FROM needs n
        UNION
        SELECT w.step, n.needs FROM waits w JOIN needs n ON n.step = w.needs
         WHERE NOT EXISTS (SELECT FROM done WHERE done.step = w.needs)),
    path AS (
        (SELECT 1 AS back, d.* FROM run CROSS JOIN done d ORDER BY d.ended_at DESC NULLS FIRST, d.began_at DESC LIMIT 1)
        UNION ALL
        SELECT p.back + 1, n.* FROM path p CROSS JOIN LATERAL (
               SELECT d.* FROM waits w JOIN done d ON d.step = w.needs
                WHERE w.step = p.step ORDER BY d.ended_at DESC NULLS FIRST LIMIT 1) n
         WHERE p.back < 1000)
    SELECT p.back, p.step, p.item, p.job_id,
           coalesce((SELECT q.ended_at FROM path q WHERE q.back = p.back + 1), run.accepted_at),
           p.began_at, p.started_at, p.ended_at
      FROM path p CROSS JOIN run
$$;

CREATE OR REPLACE VIEW headrace_v1.chain_steps AS
SELECT s.run_id,
       s.step,
       s.item,
       s.round,
       s.job_id,
       coalesce(m.name, j.model) AS model,
       j.deployment AS deployment_id,
       state_name(j.state) AS status,
       CASE WHEN s.taken_at IS NULL THEN j.attempt_count ELSE 0::smallint END AS attempts,
       coalesce(s.taken_at, j.accepted_at) AS accepted_at,
       coalesce(s.taken_at, j.started_at) AS started_at,
       CASE WHEN j.state NOT IN (1, 2) THEN coalesce(s.taken_at, j.state_at) END AS ended_at,
       error_class_name(j.error_class) AS error_class,
       j.error_message,
       s.taken_at
  FROM headrace.chain_step s
  JOIN headrace.job j ON j.id = s.job_id
  LEFT JOIN headrace.model m ON m.id = j.model;
COMMENT ON COLUMN headrace_v1.chain_steps.taken_at IS 'When the output of an earlier job was taken over (cache); null of a job of its own.';

SELECT tenant_views();
