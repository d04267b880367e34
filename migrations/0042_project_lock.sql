-- SPDX-License-Identifier: Apache-2.0
-- Who makes a training project waits for a lock on a row, which only we can take.
--
-- Why: any login of the database may take the advisory lock that training_project_put() waited for, and
-- keep it: nobody could have made a project of that name any more.
-- Lock: none that anybody waits for.
-- A million rows: nothing to rewrite.
-- Undo: DELETE FROM care_lock WHERE what = 'projects'; the function as in 0036.

INSERT INTO care_lock VALUES ('projects');

CREATE OR REPLACE FUNCTION training_project_put(p_tenant text, p_name text, p_id text, p_deployment text,
                                                p_shard integer, p_by text) RETURNS text LANGUAGE plpgsql
    SET lock_timeout = '2s' AS $$
DECLARE
    known text;
BEGIN
    PERFORM FROM care_lock WHERE what = 'projects' FOR UPDATE;
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
