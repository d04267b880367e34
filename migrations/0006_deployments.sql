-- SPDX-License-Identifier: Apache-2.0
-- Deployments: how one is made, what its replicas make of its status, and when an environment
-- moves to it.
--
-- Why: agents write what they see of their workers, gateways write what people ask for; what
-- follows from both must follow however many of them there are, so it is decided here, in the
-- transaction that changed it.
-- Lock: none that anybody waits for; the triggers lock the deployment whose replica changed.
-- A million rows: nothing to rewrite.
-- Undo: DROP FUNCTION … CASCADE of each.

-- Points an environment at one deployment alone, making the environment if need be.
CREATE FUNCTION environment_point(p_model text, p_environment text, p_deployment text) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO environment (model_id, name) VALUES (p_model, p_environment) ON CONFLICT DO NOTHING;
    DELETE FROM environment_target
    WHERE model_id = p_model AND environment = p_environment AND deployment_id <> p_deployment;
    INSERT INTO environment_target (model_id, environment, deployment_id)
    VALUES (p_model, p_environment, p_deployment)
    ON CONFLICT (model_id, environment, deployment_id) DO UPDATE SET weight = 100;
END
$$;

-- ACTIVE and meant for an environment: the environment moves, unless it has moved on to a younger
-- deployment in the meantime.
CREATE FUNCTION deployment_settle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status = 'ACTIVE' AND NEW.promote_to IS NOT NULL AND NEW.deleted_at IS NULL THEN
        IF NOT EXISTS (SELECT 1 FROM environment_target t JOIN deployment d ON d.id = t.deployment_id
                       WHERE t.model_id = NEW.model_id AND t.environment = NEW.promote_to
                         AND d.number > NEW.number) THEN
            PERFORM environment_point(NEW.model_id, NEW.promote_to, NEW.id);
        END IF;
        UPDATE deployment SET promote_to = NULL WHERE id = NEW.id;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER deployment_settle AFTER INSERT OR UPDATE OF status, promote_to ON deployment
    FOR EACH ROW WHEN (NEW.status = 'ACTIVE' AND NEW.promote_to IS NOT NULL)
    EXECUTE FUNCTION deployment_settle();

-- What the replicas of a deployment say together. One that was ACTIVE is UNHEALTHY without a ready
-- replica; one that never was is DEPLOY_FAILED once a replica has failed.
CREATE FUNCTION replica_settle() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was record;
    ready boolean;
    loading boolean;
    status_new text;
BEGIN
    SELECT d.status, d.replicas_wanted INTO was FROM deployment d
    WHERE d.id = NEW.deployment_id AND d.deleted_at IS NULL FOR UPDATE;
    IF NOT FOUND OR was.status IN ('INACTIVE', 'DEACTIVATING', 'BUILDING', 'BUILD_FAILED', 'BUILD_STOPPED') THEN
        RETURN NULL;
    END IF;
    SELECT coalesce(bool_or(r.state = 'READY'), false), coalesce(bool_or(r.state = 'LOADING'), false)
    INTO ready, loading FROM replica r WHERE r.deployment_id = NEW.deployment_id;
    status_new := CASE
        WHEN ready THEN 'ACTIVE'
        WHEN was.replicas_wanted = 0 THEN 'SCALED_TO_ZERO'
        WHEN was.status IN ('ACTIVE', 'UNHEALTHY') THEN 'UNHEALTHY'
        WHEN NEW.state = 'FAILED' THEN 'DEPLOY_FAILED'
        WHEN loading THEN 'LOADING_MODEL'
        WHEN was.status = 'SCALED_TO_ZERO' THEN 'WAKING_UP'
        WHEN was.status = 'WAKING_UP' THEN 'WAKING_UP'
        ELSE 'DEPLOYING' END;
    IF status_new <> was.status THEN
        UPDATE deployment SET status = status_new, status_at = now(),
            status_reason = CASE WHEN status_new IN ('DEPLOY_FAILED', 'UNHEALTHY') THEN NEW.reason END
        WHERE id = NEW.deployment_id;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER replica_settle AFTER INSERT OR UPDATE OF state ON replica
    FOR EACH ROW EXECUTE FUNCTION replica_settle();

-- A new deployment, and its model when the tenant has none of that name. The first deployment of a
-- model is meant for production; p_environment says something else, '' leaves it to that rule.
CREATE FUNCTION deployment_create(
    p_tenant text, p_model text, p_model_id text, p_id text, p_name text, p_shard integer,
    p_engine text, p_config text, p_digest bytea, p_blob text, p_size bigint, p_file_count integer,
    p_device text, p_slot_count integer, p_replicas integer, p_environment text, p_actor text)
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
        device, slot_count, replicas_min, replicas_max, replicas_wanted, promote_to)
    VALUES (p_id, m, CASE p_name WHEN '' THEN 'deployment-' || n ELSE p_name END, n, p_id,
        p_shard::smallint, p_engine, p_config::jsonb, p_digest, p_device, p_slot_count, p_replicas,
        p_replicas, p_replicas,
        CASE WHEN p_environment <> '' THEN p_environment WHEN n = 1 THEN 'production' END);
    INSERT INTO audit (tenant, actor, action, target) VALUES (p_tenant, p_actor, 'MODEL_DEPLOYED', p_id);
    RETURN QUERY SELECT m, p_id;
END
$$;
