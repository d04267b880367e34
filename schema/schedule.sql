-- SPDX-License-Identifier: Apache-2.0
-- Schedules and their ticks. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- Jobs that are submitted at a time, or again and again. Written by schedule_set(), schedule_advance() and people.
CREATE TABLE schedule (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant text NOT NULL REFERENCES tenant,
    name text NOT NULL CONSTRAINT schedule_name_check CHECK (name ~ '^[A-Za-z0-9._-]{1,64}$'),
    model_id text NOT NULL REFERENCES model,
    environment text NOT NULL,
    body text NOT NULL CONSTRAINT schedule_body_check CHECK (octet_length(body) <= 70000), -- of an async predict
    cron text,           -- NULL: once, at next_at
    zone text NOT NULL DEFAULT 'UTC',
    jitter_s integer NOT NULL DEFAULT 0 CONSTRAINT schedule_jitter_check CHECK (jitter_s BETWEEN 0 AND 86400),
    catch_up text NOT NULL DEFAULT 'one' CONSTRAINT schedule_catch_up_check CHECK (catch_up IN ('skip', 'one', 'all')),
    next_at timestamptz, -- its next tick; NULL: none
    paused_at timestamptz,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, name)
);
CREATE INDEX schedule_due ON schedule (next_at) WHERE paused_at IS NULL;

-- A moment at which a schedule was due, and the job that came of it. The newest 1,000 of a schedule are kept.
CREATE TABLE schedule_tick (
    schedule_id uuid NOT NULL REFERENCES schedule ON DELETE CASCADE,
    tick_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL, -- with its jitter
    state text NOT NULL DEFAULT 'PENDING'
        CONSTRAINT schedule_tick_state_check CHECK (state IN ('PENDING', 'SUBMITTED', 'REFUSED', 'MISSED')),
    by_hand boolean NOT NULL DEFAULT false,
    job_id uuid, -- set before it is sent
    deployment_id text,
    claimed_until timestamptz,
    done_at timestamptz,
    reason text NOT NULL DEFAULT '',
    PRIMARY KEY (schedule_id, tick_at)
);
CREATE INDEX schedule_tick_due ON schedule_tick (due_at) WHERE state = 'PENDING';
