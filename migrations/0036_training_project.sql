-- SPDX-License-Identifier: Apache-2.0
-- Training projects that are there already.
--
-- Why: a variable of training_project_put() had the name of plpgsql's own FOUND, so that naming a project
-- that is there was refused.
-- Lock: none of what is there.
-- A million rows: nothing to rewrite.
-- Undo: the function as in 0032.

CREATE OR REPLACE FUNCTION training_project_put(p_tenant text, p_name text, p_id text, p_deployment text,
                                                p_shard integer, p_by text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    known text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('training_project ' || p_tenant), hashtext(p_name));
    UPDATE training_project SET updated_at = now() WHERE tenant = p_tenant AND name = p_name AND deleted_at IS NULL
    RETURNING id INTO known;
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    INSERT INTO model (id, tenant, name, deployment_count) VALUES (p_id, p_tenant, p_id, 1);
    INSERT INTO deployment (id, model_id, name, number, pool, shard, engine, slot_count, run_limit_ms, replicas_min,
                            replicas_max, replicas_wanted, status)
    VALUES (p_deployment, p_id, 'training', 1, 'training', p_shard::smallint, 'training', 1, 366 * 86400000::bigint, 0, 0, 0,
            'ACTIVE');
    INSERT INTO training_project (id, tenant, name) VALUES (p_id, p_tenant, p_name);
    INSERT INTO audit (tenant, actor, action, target) VALUES (p_tenant, p_by, 'TRAINING_PROJECT_CREATED', p_id);
    RETURN p_id;
END
$$;
