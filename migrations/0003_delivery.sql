-- SPDX-License-Identifier: Apache-2.0
-- Webhooks: secrets, deliveries and their tries.
--
-- Why: a delivery is owed from the moment that its job is final until it is given up; each POST is
-- kept, so that people see what their server answered.
-- Lock: none that anybody waits for, all objects are new.
-- A million rows: nothing to rewrite.
-- Undo: DROP TABLE of each, in reverse order.

-- At most two are active a tenant: the new one and, for a day after a rotation, the old one.
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
CREATE TRIGGER webhook_secret_notify AFTER INSERT OR UPDATE OR DELETE ON webhook_secret
    FOR EACH ROW EXECUTE FUNCTION config_notify('tenant');

-- Endpoints that answered 410: nothing more is sent there until the row is deleted.
CREATE TABLE webhook_gone (
    tenant text NOT NULL,
    url text NOT NULL CHECK (length(url) BETWEEN 1 AND 2048),
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, url)
);

-- One webhook message: key (job, round, endpoint), inserted before the offset of its `completed`
-- record is stored. endpoint is 'job' for the address that the request itself named.
CREATE TABLE delivery (
    job_id uuid NOT NULL,
    round smallint NOT NULL,
    shard smallint NOT NULL, -- partition of `completed` that it came from
    endpoint text NOT NULL DEFAULT 'job' CHECK (length(endpoint) BETWEEN 1 AND 64),
    state smallint NOT NULL CONSTRAINT delivery_state_check CHECK (state IN (1, 2, 3, 4)),
    try_count smallint NOT NULL DEFAULT 0,
    last_http_status smallint NOT NULL DEFAULT 0,
    next_at timestamptz, -- when PENDING: not before
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    tenant text NOT NULL,
    model text NOT NULL,
    url text NOT NULL,
    webhook_id text NOT NULL, -- the same on every try
    last_error text,
    record bytea NOT NULL, -- the `completed` message: the body is made from it, blobs by their key
    PRIMARY KEY (job_id, round, endpoint)
) PARTITION BY RANGE (job_id);
CREATE TABLE delivery_default PARTITION OF delivery DEFAULT;
CREATE INDEX delivery_due ON delivery (shard, next_at) WHERE state = 1;

CREATE TABLE delivery_try (
    job_id uuid NOT NULL,
    round smallint NOT NULL,
    number smallint NOT NULL,
    endpoint text NOT NULL DEFAULT 'job',
    http_status smallint NOT NULL DEFAULT 0, -- 0: no answer
    started_at timestamptz NOT NULL,
    took_us bigint NOT NULL,
    address text, -- that was connected to
    error text,
    answer text, -- beginning of the body of the answer
    PRIMARY KEY (job_id, round, endpoint, number)
) PARTITION BY RANGE (job_id);
CREATE TABLE delivery_try_default PARTITION OF delivery_try DEFAULT;
