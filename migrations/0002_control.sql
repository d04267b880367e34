-- SPDX-License-Identifier: Apache-2.0
-- The control plane: tenants, keys, models, deployments, environments, replicas, audit.
--
-- Why: what gateways resolve requests by, what agents start workers by, what people list.
-- Lock: none that anybody waits for, all objects are new.
-- A million rows: nothing to rewrite.
-- Undo: DROP TABLE of each, in reverse order.
--
-- Any change of configuration sends NOTIFY headrace_config with '<table> <id>': a hint, readers
-- load again what they cache. Ids are short texts that the gateway makes.

CREATE TABLE tenant (
    id text PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 64),
    name text NOT NULL,
    limits jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);

-- Keys are shown once; here are a prefix to tell them apart and the SHA-256 to check them by.
CREATE TABLE api_key (
    prefix text PRIMARY KEY CHECK (length(prefix) BETWEEN 4 AND 32),
    digest bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
    tenant text NOT NULL REFERENCES tenant,
    name text NOT NULL DEFAULT '',
    role text NOT NULL DEFAULT 'admin'
        CONSTRAINT api_key_role_check CHECK (role IN ('admin', 'predict', 'metrics')),
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX api_key_tenant ON api_key (tenant);

CREATE TABLE model (
    id text PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 64),
    tenant text NOT NULL REFERENCES tenant,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    deployment_count integer NOT NULL DEFAULT 0, -- numbers given out, for "deployment-<n>"
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);
CREATE UNIQUE INDEX model_name ON model (tenant, name) WHERE deleted_at IS NULL;

-- Model archives and directories that were pushed, by their digest.
CREATE TABLE archive (
    digest bytea PRIMARY KEY CHECK (octet_length(digest) = 32),
    blob text NOT NULL, -- key in the blob store
    size bigint NOT NULL,
    file_count integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE deployment (
    id text PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 64),
    model_id text NOT NULL REFERENCES model,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    number integer NOT NULL,
    pool text NOT NULL CHECK (length(pool) BETWEEN 1 AND 64),
    shard smallint NOT NULL CHECK (shard BETWEEN 0 AND 1023), -- its home, for ever
    engine text NOT NULL,                                    -- encoder, onnx, llama, sim, truss, server …
    config jsonb NOT NULL DEFAULT '{}',                      -- what the engine and the batcher are given
    archive_digest bytea REFERENCES archive,
    device text NOT NULL DEFAULT 'cpu',
    slot_count integer NOT NULL DEFAULT 1 CHECK (slot_count BETWEEN 1 AND 4096),
    run_limit_ms bigint NOT NULL DEFAULT 3600000,
    replicas_min integer NOT NULL DEFAULT 1 CHECK (replicas_min >= 0),
    replicas_max integer NOT NULL DEFAULT 1 CHECK (replicas_max >= replicas_min),
    replicas_wanted integer NOT NULL DEFAULT 1 CHECK (replicas_wanted >= 0),
    status text NOT NULL DEFAULT 'DEPLOYING' CONSTRAINT deployment_status_check CHECK (status IN (
        'BUILDING', 'DEPLOYING', 'DEPLOY_FAILED', 'LOADING_MODEL', 'ACTIVE', 'UNHEALTHY',
        'BUILD_FAILED', 'BUILD_STOPPED', 'DEACTIVATING', 'INACTIVE', 'FAILED', 'UPDATING',
        'SCALED_TO_ZERO', 'WAKING_UP')),
    status_reason text,
    status_at timestamptz NOT NULL DEFAULT now(),
    promote_to text, -- environment that points here once it is ACTIVE
    labels jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    UNIQUE (model_id, number)
);
CREATE UNIQUE INDEX deployment_name ON deployment (model_id, name) WHERE deleted_at IS NULL;

CREATE TABLE environment (
    model_id text NOT NULL REFERENCES model,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    settings jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_id, name)
);

-- Where an environment sends its requests: weights are shares of their sum.
CREATE TABLE environment_target (
    model_id text NOT NULL,
    environment text NOT NULL,
    deployment_id text NOT NULL REFERENCES deployment,
    weight integer NOT NULL DEFAULT 100 CHECK (weight BETWEEN 0 AND 1000000),
    PRIMARY KEY (model_id, environment, deployment_id),
    FOREIGN KEY (model_id, environment) REFERENCES environment ON DELETE CASCADE
);

-- One worker process that an agent runs or ran, as the agent last saw it.
CREATE TABLE replica (
    worker text PRIMARY KEY CHECK (length(worker) BETWEEN 1 AND 64),
    deployment_id text NOT NULL REFERENCES deployment,
    pool text NOT NULL,
    host text NOT NULL,
    boot bigint NOT NULL DEFAULT 0,
    pid integer NOT NULL DEFAULT 0,
    state text NOT NULL CONSTRAINT replica_state_check CHECK (state IN (
        'STARTING', 'LOADING', 'READY', 'DRAINING', 'STOPPED', 'FAILED')),
    reason text,
    slot_count integer NOT NULL DEFAULT 1,
    restart_count integer NOT NULL DEFAULT 0,
    device text,
    log_path text,
    started_at timestamptz NOT NULL DEFAULT now(),
    ready_at timestamptz,
    seen_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);
CREATE INDEX replica_deployment ON replica (deployment_id);

-- (tenant, Idempotency-Key) -> job: inserted before the Submit is produced (PROTOCOL 8).
CREATE TABLE idempotency (
    tenant text NOT NULL,
    key text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    job_id uuid NOT NULL,
    fingerprint bytea NOT NULL CHECK (octet_length(fingerprint) = 32), -- of route and body
    deployment_id text NOT NULL, -- that the first Submit named: a repeat names it again
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (tenant, key)
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX idempotency_expiry ON idempotency (expires_at);

CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    tenant text NOT NULL,
    actor text NOT NULL, -- prefix of the key, or the role
    action text NOT NULL, -- API_KEY_CREATED, DEPLOYMENT_CREATED …
    target text NOT NULL,
    details jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_tenant ON audit (tenant, id);

CREATE FUNCTION config_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM pg_notify('headrace_config', TG_TABLE_NAME || ' ' || (to_jsonb(OLD) ->> TG_ARGV[0]));
        RETURN OLD;
    END IF;
    PERFORM pg_notify('headrace_config', TG_TABLE_NAME || ' ' || (to_jsonb(NEW) ->> TG_ARGV[0]));
    RETURN NEW;
END
$$;
CREATE TRIGGER tenant_notify AFTER INSERT OR UPDATE OR DELETE ON tenant
    FOR EACH ROW EXECUTE FUNCTION config_notify('id');
CREATE TRIGGER api_key_notify AFTER INSERT OR DELETE OR UPDATE OF revoked_at, role ON api_key
    FOR EACH ROW EXECUTE FUNCTION config_notify('prefix');
CREATE TRIGGER model_notify AFTER INSERT OR UPDATE OR DELETE ON model
    FOR EACH ROW EXECUTE FUNCTION config_notify('id');
CREATE TRIGGER deployment_notify AFTER INSERT OR UPDATE OR DELETE ON deployment
    FOR EACH ROW EXECUTE FUNCTION config_notify('id');
CREATE TRIGGER environment_notify AFTER INSERT OR UPDATE OR DELETE ON environment
    FOR EACH ROW EXECUTE FUNCTION config_notify('model_id');
CREATE TRIGGER environment_target_notify AFTER INSERT OR UPDATE OR DELETE ON environment_target
    FOR EACH ROW EXECUTE FUNCTION config_notify('model_id');
CREATE TRIGGER replica_notify AFTER INSERT OR DELETE OR UPDATE OF state, boot ON replica
    FOR EACH ROW EXECUTE FUNCTION config_notify('worker');
