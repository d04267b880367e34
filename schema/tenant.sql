-- SPDX-License-Identifier: Apache-2.0
-- Tenants and their API keys. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- What limits may hold: schema/limits.def.
CREATE TABLE tenant (
    id text PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 64),
    name text NOT NULL,
    limits jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    CONSTRAINT tenant_limits_check CHECK (jsonb_typeof(limits) = 'object')
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
    revoked_at timestamptz,
    limits jsonb NOT NULL DEFAULT '{}' CONSTRAINT api_key_limits_check CHECK (jsonb_typeof(limits) = 'object')
);
CREATE INDEX api_key_tenant ON api_key (tenant);
