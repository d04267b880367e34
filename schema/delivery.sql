-- SPDX-License-Identifier: Apache-2.0
-- Webhook messages and their tries. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

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
    try_base smallint NOT NULL DEFAULT 0, -- tries made before the last replay
    replayed_at timestamptz,
    PRIMARY KEY (job_id, round, endpoint)
) PARTITION BY RANGE (job_id);
CREATE TABLE delivery_default PARTITION OF delivery DEFAULT;
CREATE INDEX delivery_due ON delivery (shard, next_at) WHERE state = 1;
CREATE INDEX delivery_failed ON delivery (tenant, job_id) WHERE state = 3;

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
