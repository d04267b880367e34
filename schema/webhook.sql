-- SPDX-License-Identifier: Apache-2.0
-- Webhook secrets, and endpoints that are gone. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

CREATE TABLE webhook_secret (
    id text PRIMARY KEY,
    tenant text NOT NULL REFERENCES tenant,
    name text NOT NULL DEFAULT 'default',
    sealed bytea NOT NULL, -- nonce and box; the key stays outside of the database
    hint text NOT NULL,    -- last characters, for people
    created_at timestamptz NOT NULL DEFAULT now(),
    retires_at timestamptz, -- set by a rotation; NULL: active
    deleted_at timestamptz
);
CREATE INDEX webhook_secret_tenant ON webhook_secret (tenant, created_at) WHERE deleted_at IS NULL;

-- Endpoints that answered 410: nothing more is sent there until the row is deleted.
CREATE TABLE webhook_gone (
    tenant text NOT NULL,
    url text NOT NULL CHECK (length(url) BETWEEN 1 AND 2048),
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, url)
);
