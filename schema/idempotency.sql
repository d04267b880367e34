-- SPDX-License-Identifier: Apache-2.0
-- Idempotency-Key reservations. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

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
