-- SPDX-License-Identifier: Apache-2.0
-- What coordinators ask as they begin with a run and when runs are over, in plpgsql.
--
-- Why: a function in SQL that is not inlined is planned at each call. These are called once a run, or
-- every five seconds, and planning them cost more than what they do. And to find out whether a run is a
-- step of another one read all steps there are, in the order of a key: 10 ms at 13,000 of them.
-- Lock: none of what is there.
-- A million rows: nothing to rewrite.
-- Undo: the bodies of 0018.

CREATE OR REPLACE FUNCTION chain_targets(p_tenant text, p_chain jsonb) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN (SELECT coalesce(jsonb_object_agg(s.key, jsonb_build_object(
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
             ORDER BY -ln(1 - random()) / t.weight LIMIT 1)) d ON true);
END
$$;

-- A coordinator begins with a run, or goes on with it. No row: a newer attempt has it.
CREATE OR REPLACE FUNCTION chain_begin(p_run uuid, p_token bigint, p_deployment text)
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
    INSERT INTO chain_run AS r (run_id, deployment_id, token, depth, targets)
    VALUES (p_run, p_deployment, p_token, chain_begin.depth, its_targets)
    ON CONFLICT (run_id) DO UPDATE SET token = excluded.token, closed_at = NULL, targets = excluded.targets
     WHERE r.token < excluded.token
    RETURNING r.targets::text, r.depth INTO chain_begin.targets, chain_begin.depth;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    chain_begin.round := coalesce((SELECT j.round FROM job j WHERE j.id = p_run), 1);
    RETURN NEXT;
END
$$;

-- Jobs of runs that are over. What is over for long and has none is closed, at most 100 a call.
CREATE OR REPLACE FUNCTION chain_leftovers() RETURNS TABLE (job_id uuid, tenant text) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
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
    SELECT l.id, l.tenant FROM live l;
END
$$;
