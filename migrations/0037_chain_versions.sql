-- SPDX-License-Identifier: Apache-2.0
-- Versions of chains as the management API shows them, and what is done with one.
--
-- Why: a chain in Python is many deployments, pushed under one name, and is shown, stopped and deleted as
-- one. That must happen in one transaction, and not while a run of it is under way: a run ends on the
-- version that it began with. And to promote an older deployment, to go back to it, did nothing: that an
-- environment never moves to an older one is right for those that become ready late, not for what is asked for.
-- Lock: none of what is there.
-- A million rows: nothing to rewrite.
-- Undo: DROP FUNCTION of each; the body of deployment_settle() as in 0006.

-- ACTIVE and meant for an environment: the environment moves. One that becomes ready late stays behind when
-- the environment has moved on to a younger deployment in the meantime.
CREATE OR REPLACE FUNCTION deployment_settle() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was_ready boolean := false;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        was_ready := OLD.status = 'ACTIVE';
    END IF;
    IF NEW.status = 'ACTIVE' AND NEW.promote_to IS NOT NULL AND NEW.deleted_at IS NULL THEN
        IF was_ready OR NOT EXISTS (SELECT 1 FROM environment_target t JOIN deployment d ON d.id = t.deployment_id
                                    WHERE t.model_id = NEW.model_id AND t.environment = NEW.promote_to
                                      AND d.number > NEW.number) THEN
            PERFORM environment_point(NEW.model_id, NEW.promote_to, NEW.id);
        END IF;
        UPDATE deployment SET promote_to = NULL WHERE id = NEW.id;
    END IF;
    RETURN NULL;
END
$$;

-- Those that a version is made of: of a declared chain itself, of one in Python all that were pushed with it.
CREATE FUNCTION chain_members(p_deployment text)
    RETURNS TABLE (deployment_id text, model_id text, name text, entrypoint boolean) LANGUAGE sql STABLE AS $$
    SELECT y.id, x.id, CASE WHEN y.id = d.id THEN x.name ELSE substr(x.name, length(m.name) + 2) END, y.id = d.id
      FROM deployment d JOIN model m ON m.id = d.model_id
      JOIN model x ON x.tenant = m.tenant AND x.deleted_at IS NULL
       AND (x.id = m.id OR starts_with(x.name, m.name || '.'))
      JOIN deployment y ON y.model_id = x.id AND y.deleted_at IS NULL
       AND (y.id = d.id OR x.id <> m.id AND d.engine <> 'chain' AND y.name = d.name
                           AND y.config -> 'truss' -> 'model_metadata' ? 'headrace_chainlets')
     WHERE d.id = p_deployment
$$;

CREATE FUNCTION json_time(at timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
$$;

CREATE FUNCTION chain_scale_json(p_deployment text) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('min_replica', d.replicas_min, 'max_replica', d.replicas_max,
                              'autoscaling_window', NULL, 'scale_down_delay', NULL,
                              'concurrency_target', d.slot_count, 'target_utilization_percentage', NULL)
      FROM deployment d WHERE d.id = p_deployment
$$;

-- The deployment of a chain, as an object of the API.
CREATE FUNCTION chain_deployment_json(p_deployment text) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
               'id', d.id, 'name', d.name, 'created_at', json_time(d.created_at), 'chain_id', d.model_id,
               'environment', (SELECT t.environment FROM environment_target t
                                WHERE t.deployment_id = d.id AND t.weight > 0
                                ORDER BY t.environment <> 'production', t.environment LIMIT 1),
               'status', d.status, 'error', d.status_reason,
               'chainlets', (SELECT jsonb_agg(jsonb_build_object(
                       'id', y.id, 'name', c.name, 'model_id', c.model_id, 'status', y.status,
                       'instance_type_name', 'local', 'autoscaling_settings', chain_scale_json(y.id),
                       'active_replica_count', (SELECT count(*) FROM replica r
                                                 WHERE r.deployment_id = y.id AND r.state = 'READY'))
                       ORDER BY NOT c.entrypoint, c.name)
                  FROM chain_members(d.id) c JOIN deployment y ON y.id = c.deployment_id))
      FROM deployment d WHERE d.id = p_deployment
$$;

CREATE FUNCTION chain_environment_json(p_model text, p_environment text) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
               'name', e.name, 'created_at', json_time(e.created_at), 'chain_id', e.model_id,
               'promotion_settings', jsonb_build_object(
                   'redeploy_on_promotion', false, 'rolling_deploy', false, 'promotion_cleanup_strategy', 'KEEP',
                   'rolling_deploy_config', NULL, 'ramp_up_while_promoting', false, 'ramp_up_duration_seconds', 0),
               'chainlet_settings', coalesce((SELECT jsonb_agg(jsonb_build_object(
                       'chainlet_name', c.name, 'autoscaling_settings', chain_scale_json(c.deployment_id),
                       'instance_type', jsonb_build_object('id', 'local', 'name', 'local')) ORDER BY NOT c.entrypoint, c.name)
                  FROM chain_members(t.deployment_id) c), '[]'),
               'current_deployment', chain_deployment_json(t.deployment_id),
               'candidate_deployment', (SELECT chain_deployment_json(d.id) FROM deployment d
                                         WHERE d.model_id = e.model_id AND d.promote_to = e.name
                                           AND d.deleted_at IS NULL ORDER BY d.number DESC LIMIT 1))
      FROM environment e
      LEFT JOIN LATERAL (SELECT x.deployment_id FROM environment_target x
                          WHERE x.model_id = e.model_id AND x.environment = e.name
                          ORDER BY x.weight DESC, x.deployment_id LIMIT 1) t ON true
     WHERE e.model_id = p_model AND e.name = p_environment
$$;

-- Runs and calls of it that are not over.
CREATE FUNCTION chain_open_count(p_deployment text) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(q.waiting + q.running), 0)::bigint FROM chain_members(p_deployment) c
      JOIN queue_delta q ON q.deployment = c.deployment_id
$$;

-- What stands in the way of stopping or deleting a version; null: nothing.
CREATE FUNCTION chain_obstacle(p_deployment text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN n.open > 0
                THEN n.open || ' of its runs are not over: they end on the version that they began with; wait or cancel them'
                WHEN t.environment IS NOT NULL
                THEN 'the environment ''' || t.environment || ''' points at it: promote another one first' END
      FROM (SELECT chain_open_count(p_deployment) AS open) n
      LEFT JOIN LATERAL (SELECT x.environment FROM environment_target x WHERE x.deployment_id = p_deployment
                          ORDER BY x.environment LIMIT 1) t ON true
$$;

-- Does one of stop, start, delete with a version and all that belongs to it. No row: there is no such
-- deployment; refused: why not.
CREATE FUNCTION chain_version_do(p_model text, p_deployment text, p_what text)
    RETURNS TABLE (deployment_id text, refused text) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    members text[];
BEGIN
    SELECT d.id INTO chain_version_do.deployment_id FROM deployment d
     WHERE d.model_id = p_model AND p_deployment IN (d.id, d.name) AND d.deleted_at IS NULL
     ORDER BY d.id <> p_deployment LIMIT 1 FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF p_what <> 'start' THEN
        chain_version_do.refused := chain_obstacle(chain_version_do.deployment_id);
    END IF;
    IF chain_version_do.refused IS NULL THEN
        members := ARRAY(SELECT c.deployment_id FROM chain_members(chain_version_do.deployment_id) c);
        UPDATE deployment SET status = 'INACTIVE', status_at = now(), replicas_wanted = 0, promote_to = NULL,
               deleted_at = CASE WHEN p_what = 'delete' THEN now() END
         WHERE id = ANY (members) AND p_what <> 'start';
        UPDATE deployment SET status = 'DEPLOYING', status_at = now(), replicas_wanted = greatest(1, replicas_min)
         WHERE id = ANY (members) AND p_what = 'start' AND status = 'INACTIVE';
    END IF;
    RETURN NEXT;
END
$$;

-- Deletes a chain, its versions and its chainlets. refused: why not.
CREATE FUNCTION chain_delete(p_model text) RETURNS TABLE (refused text) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    models text[];
BEGIN
    models := ARRAY(SELECT DISTINCT c.model_id FROM deployment d CROSS JOIN LATERAL chain_members(d.id) c
                     WHERE d.model_id = p_model AND d.deleted_at IS NULL);
    SELECT sum(chain_open_count(d.id)) || ' of its runs are not over: wait, or cancel them' INTO refused
      FROM deployment d WHERE d.model_id = p_model AND d.deleted_at IS NULL HAVING sum(chain_open_count(d.id)) > 0;
    IF refused IS NULL THEN
        DELETE FROM environment WHERE model_id = ANY (models);
        UPDATE deployment SET deleted_at = now(), status = 'INACTIVE', status_at = now(), replicas_wanted = 0,
               replicas_min = 0, promote_to = NULL
         WHERE model_id = ANY (models) AND deleted_at IS NULL;
        UPDATE model SET deleted_at = now() WHERE id = ANY (models) AND deleted_at IS NULL;
    END IF;
    RETURN NEXT;
END
$$;

-- Replicas of one chainlet of what an environment points at; null leaves one as it is. False: there is none.
CREATE FUNCTION chain_scale(p_model text, p_environment text, p_chainlet text, p_min integer, p_max integer)
    RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    UPDATE deployment d SET replicas_min = coalesce(p_min, least(d.replicas_min, p_max)),
           replicas_max = coalesce(p_max, greatest(d.replicas_max, p_min)),
           replicas_wanted = least(greatest(d.replicas_wanted, coalesce(p_min, 0)),
                                   coalesce(p_max, greatest(d.replicas_max, p_min)))
      FROM environment_target t CROSS JOIN LATERAL chain_members(t.deployment_id) c
     WHERE t.model_id = p_model AND t.environment = p_environment AND c.name = p_chainlet AND d.id = c.deployment_id;
    RETURN FOUND;
END
$$;
