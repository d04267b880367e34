-- SPDX-License-Identifier: Apache-2.0
-- Runs again: a new run of a chain that takes over what some steps of an earlier one came to.
--
-- Why: to try another input, or another version, from a step on, without paying for the steps before it.
-- Nothing is copied: the new run names the old one, its round, and the steps whose outputs it takes. What the
-- old run does later is of later rounds and does not count.
-- Lock: ALTER TABLE of chain_run, a moment: columns without a value.
-- A million rows: nothing to rewrite.
-- Undo: DROP FUNCTION chain_reused, chain_rerun_open, chain_begin with four arguments; the four columns; the
-- view as in 0018.

ALTER TABLE chain_run
    ADD COLUMN input bytea,           -- of the run, up to the inline limit: its job's is gone when it has succeeded
    ADD COLUMN source_run_id uuid,    -- of a run again: whose outputs it takes over
    ADD COLUMN source_round smallint, -- … as they were in that round
    ADD COLUMN source_steps text[];   -- … of these steps

-- As 0028 has it, with the run's input. That one stays for coordinators that were started before.
CREATE FUNCTION chain_begin(p_run uuid, p_token bigint, p_deployment text, p_input bytea)
    RETURNS TABLE (tenant text, targets text, round smallint, depth smallint, again boolean) LANGUAGE plpgsql
    VOLATILE AS $$
#variable_conflict use_column
DECLARE
    its_config jsonb;
    its_targets jsonb;
    its_parent uuid;
BEGIN
    SELECT m.tenant, d.config INTO chain_begin.tenant, its_config
      FROM deployment d JOIN model m ON m.id = d.model_id WHERE d.id = p_deployment;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT o.targets INTO its_targets FROM chain_run o WHERE o.run_id = p_run;
    chain_begin.again := FOUND;
    SELECT s.run_id INTO its_parent FROM chain_step s WHERE s.job_id = p_run;
    chain_begin.depth := coalesce((SELECT r.depth + 1 FROM chain_run r WHERE r.run_id = its_parent), 0);
    its_targets := chain_targets(chain_begin.tenant, its_config) || coalesce(its_targets, '{}');
    INSERT INTO chain_run AS r (run_id, deployment_id, token, depth, targets, input)
    VALUES (p_run, p_deployment, p_token, chain_begin.depth, its_targets, p_input)
    ON CONFLICT (run_id) DO UPDATE SET token = excluded.token, closed_at = NULL, targets = excluded.targets,
           input = coalesce(r.input, excluded.input), begun_at = CASE r.token WHEN 0 THEN now() ELSE r.begun_at END
     WHERE r.token < excluded.token
    RETURNING r.targets::text, r.depth INTO chain_begin.targets, chain_begin.depth;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    chain_begin.round := coalesce((SELECT j.round FROM job j WHERE j.id = p_run), 1);
    RETURN NEXT;
END
$$;

-- Jobs of earlier runs whose outputs this one has; a source may be a run again itself, ten deep.
CREATE FUNCTION chain_reused(p_run uuid)
    RETURNS TABLE (step text, item integer, job_id uuid, run_id uuid) LANGUAGE sql STABLE AS $$
    WITH RECURSIVE source AS (
        SELECT r.source_run_id AS run_id, r.source_round AS round, r.source_steps AS steps, 1 AS depth
          FROM chain_run r WHERE r.run_id = p_run AND r.source_run_id IS NOT NULL
        UNION ALL
        SELECT r.source_run_id, r.source_round,
               ARRAY(SELECT unnest(s.steps) INTERSECT SELECT unnest(r.source_steps)), s.depth + 1
          FROM source s JOIN chain_run r ON r.run_id = s.run_id
         WHERE r.source_run_id IS NOT NULL AND s.depth < 10)
    SELECT DISTINCT ON (t.step, t.item) t.step, t.item, t.job_id, s.run_id
      FROM source s
      JOIN chain_step t ON t.run_id = s.run_id AND t.step = ANY (s.steps) AND abs(t.round) BETWEEN 1 AND s.round
      JOIN job j ON j.id = t.job_id AND j.state = 3
     WHERE EXISTS (SELECT FROM job_result x WHERE x.job_id = j.id AND x.round = j.round)
     ORDER BY t.step, t.item, s.depth, abs(t.round) DESC
$$;

-- Writes down what a new run takes over, before its job is submitted, and with it what was decided for steps
-- that ask. p_given: inputs of steps in place of their templates.
CREATE FUNCTION chain_rerun_open(p_run uuid, p_deployment text, p_source uuid, p_steps text[], p_given text)
    RETURNS void LANGUAGE sql VOLATILE AS $$
    INSERT INTO chain_run (run_id, deployment_id, token, depth, targets, source_run_id, source_round, source_steps)
    SELECT p_run, p_deployment, 0, 0, jsonb_build_object('$rerun', p_given::jsonb), j.id, j.round, p_steps
      FROM job j WHERE j.id = p_source;
    INSERT INTO chain_wait (run_id, step, round, approval, asked, opened_at, due_at, approved, decided_at, decided_by, payload)
    SELECT p_run, w.step, 1, w.approval, w.asked, w.opened_at, w.due_at, w.approved, w.decided_at, w.decided_by, w.payload
      FROM chain_wait w
     WHERE w.run_id = p_source AND w.step = ANY (p_steps) AND (NOT w.approval OR w.approved)
$$;

CREATE OR REPLACE VIEW headrace_v1.chain_runs AS
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
       n.jobs_over,
       r.source_run_id,
       r.source_steps
  FROM headrace.chain_run r
  JOIN headrace.job j ON j.id = r.run_id
  LEFT JOIN headrace.model m ON m.id = j.model
 CROSS JOIN LATERAL (SELECT count(*) AS jobs, count(*) FILTER (WHERE x.state NOT IN (1, 2)) AS jobs_over
                       FROM headrace.chain_step s JOIN headrace.job x ON x.id = s.job_id
                      WHERE s.run_id = r.run_id) n;
COMMENT ON COLUMN headrace_v1.chain_runs.source_run_id IS 'Of a run again: the run whose outputs it has taken over.';
COMMENT ON COLUMN headrace_v1.chain_runs.source_steps IS 'Of a run again: the steps whose outputs these are.';

SELECT tenant_views();
