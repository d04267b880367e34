-- SPDX-License-Identifier: Apache-2.0
-- Requests that are to run at a time. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- Written by gateways: as it is accepted, and deleted when its Submit is in Kafka. A job of the ledger from then on.
CREATE TABLE planned (
    job_id uuid PRIMARY KEY, -- of the time at which it is to run, so that it belongs to that day
    tenant text NOT NULL,
    model text NOT NULL,
    deployment text NOT NULL,
    environment text NOT NULL,
    key_prefix text NOT NULL,
    run_at timestamptz NOT NULL,
    record bytea NOT NULL, -- its Submit, marked as a repeat: it may be sent more than once
    created_at timestamptz NOT NULL DEFAULT now(),
    canceled_at timestamptz, -- then it stays for a day, to say so
    claimed_until timestamptz
);
CREATE INDEX planned_due ON planned (run_at) WHERE canceled_at IS NULL;
CREATE INDEX planned_over ON planned (run_at) WHERE canceled_at IS NOT NULL;
CREATE INDEX planned_tenant ON planned (tenant) WHERE canceled_at IS NULL;
