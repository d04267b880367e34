-- SPDX-License-Identifier: Apache-2.0
-- Webhook secrets and keys, and endpoints. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- A kind has at most two that are active: the new one and, for a day after a rotation, the old one.
CREATE TABLE webhook_secret (
    id text PRIMARY KEY,
    tenant text NOT NULL REFERENCES tenant,
    name text NOT NULL DEFAULT 'default',
    sealed bytea NOT NULL, -- nonce and box; the key stays outside of the database
    hint text NOT NULL,    -- last characters, for people
    created_at timestamptz NOT NULL DEFAULT now(),
    retires_at timestamptz, -- set by a rotation; NULL: active
    deleted_at timestamptz,
    kind text NOT NULL DEFAULT 'hmac'
        CONSTRAINT webhook_secret_kind_check CHECK (kind IN ('hmac', 'ed25519')),
    public_key bytea
        CONSTRAINT webhook_secret_public_key_check
        CHECK ((kind = 'ed25519') = (public_key IS NOT NULL) AND octet_length(public_key) = 32)
);
CREATE INDEX webhook_secret_tenant ON webhook_secret (tenant, created_at) WHERE deleted_at IS NULL;

-- Where webhooks go: a tenant's URL without its query. A row for those that are used again and again,
-- are disabled, or do not answer; written by senders, and by people who enable and disable.
CREATE TABLE webhook_endpoint (
    tenant text NOT NULL,
    url text NOT NULL CHECK (length(url) BETWEEN 1 AND 2048),
    disabled_at timestamptz, -- NULL: enabled
    disabled_by text,        -- 'receiver', or the prefix of a key
    disabled_reason text CHECK (disabled_reason IS NOT NULL OR disabled_at IS NULL),
    circuit smallint NOT NULL DEFAULT 1
        CONSTRAINT webhook_endpoint_circuit_check CHECK (circuit IN (1, 2, 3)),
    failure_count integer NOT NULL DEFAULT 0, -- in a row
    last_http_status smallint NOT NULL DEFAULT 0,
    last_error text,
    last_success_at timestamptz,
    last_failure_at timestamptz,
    retry_at timestamptz, -- the circuit is open until then
    latency_ms integer,   -- of answers, smoothed
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, url)
);
