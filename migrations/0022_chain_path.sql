-- SPDX-License-Identifier: Apache-2.0
-- The critical path of a run of a chain.
--
-- Why: which steps a run waited for, and whether they queued or ran, is the question behind every slow
-- run, and needs the graph, which is in the deployment's file alone.
-- Lock: none.
-- A million rows: nothing to rewrite. A run costs one reading of its steps' jobs.
-- Undo: DROP VIEW headrace_v1.chain_critical_path; DROP FUNCTION chain_path(uuid), chain_needs(jsonb).

-- Which step waits for which, by `needs` and by the names in templates and expressions.
CREATE FUNCTION chain_needs(p_steps jsonb) RETURNS TABLE (step text, needs text) LANGUAGE sql IMMUTABLE AS $$
    SELECT DISTINCT s.key, n.name
      FROM jsonb_each(p_steps) AS s
     CROSS JOIN LATERAL (
           SELECT e.name FROM jsonb_array_elements_text(
                  CASE jsonb_typeof(s.value -> 'needs') WHEN 'array' THEN s.value -> 'needs' ELSE '[]' END) AS e (name)
           UNION ALL
           SELECT m[1] FROM regexp_matches(s.value::text, '\msteps\.([A-Za-z0-9_-]+)', 'g') AS m) n
     WHERE n.name <> s.key AND p_steps ? n.name
$$;

-- From the step that ended last back to the first, by the one that each waited for longest. A step without a
-- job (it was skipped, or runs in the coordinator) is looked through. Runs as its owner: who reads the view may
-- not read the tables.
CREATE FUNCTION chain_path(p_run uuid) RETURNS TABLE (back integer, step text, item integer, job_id uuid,
        ready_at timestamptz, began_at timestamptz, started_at timestamptz, ended_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = headrace, pg_temp AS $$
    WITH RECURSIVE run AS (
        SELECT j.id, j.accepted_at, d.config -> 'steps' AS steps
          FROM job j JOIN deployment d ON d.id = j.deployment
         WHERE j.id = p_run AND d.engine = 'chain'),
    done AS MATERIALIZED (
        SELECT DISTINCT ON (x.step) x.step, x.item, x.job_id, x.began_at, x.started_at, x.ended_at
          FROM (SELECT s.step, s.item, s.job_id, min(j.accepted_at) OVER (PARTITION BY s.step) AS began_at,
                       j.started_at, CASE WHEN j.state NOT IN (1, 2) THEN j.state_at END AS ended_at
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

CREATE VIEW headrace_v1.chain_critical_path AS
SELECT r.run_id,
       row_number() OVER (PARTITION BY r.run_id ORDER BY p.back DESC)::integer AS place,
       p.step,
       p.item,
       p.job_id,
       p.ready_at,
       p.began_at,
       p.started_at,
       p.ended_at,
       extract(epoch FROM p.began_at - p.ready_at)::float8 AS wait_seconds,
       extract(epoch FROM coalesce(p.started_at, p.ended_at, now()) - p.began_at)::float8 AS queue_seconds,
       extract(epoch FROM coalesce(p.ended_at, now()) - p.started_at)::float8 AS run_seconds
  FROM headrace.chain_run r
 CROSS JOIN LATERAL headrace.chain_path(r.run_id) p;
COMMENT ON VIEW headrace_v1.chain_critical_path IS 'Steps that a run of a chain waited for: from its end back, by the needed step that ended last.';
COMMENT ON COLUMN headrace_v1.chain_critical_path.run_id IS 'The run. Name one: each costs a reading of its steps.';
COMMENT ON COLUMN headrace_v1.chain_critical_path.place IS '1 is the first step of the path.';
COMMENT ON COLUMN headrace_v1.chain_critical_path.step IS 'Name of the step.';
COMMENT ON COLUMN headrace_v1.chain_critical_path.item IS 'Of a map the item that ended last, from 0; 0 else.';
COMMENT ON COLUMN headrace_v1.chain_critical_path.job_id IS 'Its job.';
COMMENT ON COLUMN headrace_v1.chain_critical_path.ready_at IS 'When the step before it on the path ended; of the first, when the run was accepted.';
COMMENT ON COLUMN headrace_v1.chain_critical_path.began_at IS 'When the first job of the step was accepted.';
COMMENT ON COLUMN headrace_v1.chain_critical_path.started_at IS 'When the newest attempt of this job started.';
COMMENT ON COLUMN headrace_v1.chain_critical_path.ended_at IS 'When this job ended; null while it runs.';
COMMENT ON COLUMN headrace_v1.chain_critical_path.wait_seconds IS 'From ready_at to began_at: what coordination took.';
COMMENT ON COLUMN headrace_v1.chain_critical_path.queue_seconds IS 'From began_at to started_at: waiting for a slot, for other items of the map, and for attempts that failed.';
COMMENT ON COLUMN headrace_v1.chain_critical_path.run_seconds IS 'From started_at to ended_at.';

SELECT tenant_views();
