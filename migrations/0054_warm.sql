-- SPDX-License-Identifier: Apache-2.0
-- Workers that are kept warm beside those that serve: loaded, without work.
--
-- Why: a start takes as long as the model takes to load, and whoever waits for it waits as long.
-- Lock: ACCESS EXCLUSIVE on deployment and replica for a moment; the new column has a constant default, so no row is
-- rewritten, and the check reads a few rows of replica.
-- A million rows: of neither table.
-- Undo: UPDATE replica SET state = 'READY' WHERE state = 'WARM'; the constraint as in 0002; DROP FUNCTION
-- deployment_create, and that of 0006; DROP VIEW headrace_v1.deployments, and that of 0005; DROP COLUMN replicas_warm.

ALTER TABLE deployment ADD COLUMN replicas_warm integer NOT NULL DEFAULT 0
    CONSTRAINT deployment_warm_check CHECK (replicas_warm BETWEEN 0 AND 16);

-- WARM: loaded, and told to nobody but its agent.
ALTER TABLE replica DROP CONSTRAINT replica_state_check;
ALTER TABLE replica ADD CONSTRAINT replica_state_check CHECK (state IN (
    'STARTING', 'LOADING', 'WARM', 'READY', 'DRAINING', 'STOPPED', 'FAILED'));

-- As in 0006, with p_warm; who does not know of it says nothing of it.
DROP FUNCTION deployment_create(text, text, text, text, text, integer, text, text, bytea, text, bigint, integer, text,
                                integer, integer, text, text);
CREATE FUNCTION deployment_create(
    p_tenant text, p_model text, p_model_id text, p_id text, p_name text, p_shard integer,
    p_engine text, p_config text, p_digest bytea, p_blob text, p_size bigint, p_file_count integer,
    p_device text, p_slot_count integer, p_replicas integer, p_environment text, p_actor text,
    p_warm integer DEFAULT 0)
    RETURNS TABLE (model text, deployment text) LANGUAGE plpgsql AS $$
DECLARE
    m text;
    n integer;
BEGIN
    SELECT x.id INTO m FROM model x
    WHERE x.tenant = p_tenant AND (x.id = p_model OR x.name = p_model) AND x.deleted_at IS NULL;
    IF NOT FOUND THEN
        INSERT INTO model AS x (id, tenant, name) VALUES (p_model_id, p_tenant, p_model)
        ON CONFLICT (tenant, name) WHERE deleted_at IS NULL DO UPDATE SET name = excluded.name
        RETURNING x.id INTO m;
    END IF;
    UPDATE model x SET deployment_count = x.deployment_count + 1 WHERE x.id = m
    RETURNING x.deployment_count INTO n;
    INSERT INTO environment AS e (model_id, name) VALUES (m, 'production') ON CONFLICT DO NOTHING;
    IF p_digest IS NOT NULL THEN
        INSERT INTO archive AS a (digest, blob, size, file_count)
        VALUES (p_digest, p_blob, p_size, p_file_count) ON CONFLICT DO NOTHING;
    END IF;
    INSERT INTO deployment AS d (id, model_id, name, number, pool, shard, engine, config, archive_digest,
        device, slot_count, replicas_min, replicas_max, replicas_wanted, replicas_warm, promote_to)
    VALUES (p_id, m, CASE p_name WHEN '' THEN 'deployment-' || n ELSE p_name END, n, p_id,
        p_shard::smallint, p_engine, p_config::jsonb, p_digest, p_device, p_slot_count, p_replicas,
        p_replicas, p_replicas, p_warm,
        CASE WHEN p_environment <> '' THEN p_environment WHEN n = 1 THEN 'production' END);
    INSERT INTO audit (tenant, actor, action, target) VALUES (p_tenant, p_actor, 'MODEL_DEPLOYED', p_id);
    RETURN QUERY SELECT m, p_id;
END
$$;

CREATE OR REPLACE VIEW headrace_v1.deployments AS
SELECT d.id,
       d.model_id,
       m.name AS model_name,
       m.tenant,
       d.name,
       d.status,
       d.status_reason,
       d.status_at,
       (SELECT string_agg(t.environment, ', ' ORDER BY t.environment) FROM environment_target t
         WHERE t.deployment_id = d.id) AS environments,
       d.engine,
       d.device,
       d.slot_count AS slots,
       d.pool,
       d.shard,
       d.replicas_min,
       d.replicas_max,
       d.replicas_wanted,
       (SELECT count(*) FROM replica r WHERE r.deployment_id = d.id AND r.state = 'READY') AS replicas_ready,
       encode(d.archive_digest, 'hex') AS archive_digest,
       d.created_at,
       d.replicas_warm,
       (SELECT count(*) FROM replica r WHERE r.deployment_id = d.id AND r.state = 'WARM') AS replicas_warm_ready
  FROM deployment d
  JOIN model m ON m.id = d.model_id
 WHERE d.deleted_at IS NULL;
COMMENT ON COLUMN headrace_v1.deployments.replicas_warm IS 'Workers to keep loaded beside those, without work.';
COMMENT ON COLUMN headrace_v1.deployments.replicas_warm_ready IS 'Workers that are loaded and wait.';
COMMENT ON COLUMN headrace_v1.workers.status IS 'STARTING, LOADING, WARM (loaded, takes no jobs), READY, DRAINING, STOPPED or FAILED.';

SELECT tenant_views();
