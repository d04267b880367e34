-- SPDX-License-Identifier: Apache-2.0
-- Deployments. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

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
    -- replicas beside replicas_wanted that are loaded and take no jobs
    replicas_warm integer NOT NULL DEFAULT 0 CONSTRAINT deployment_warm_check CHECK (replicas_warm BETWEEN 0 AND 16),
    UNIQUE (model_id, number)
);
CREATE UNIQUE INDEX deployment_name ON deployment (model_id, name) WHERE deleted_at IS NULL;
