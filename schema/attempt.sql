-- SPDX-License-Identifier: Apache-2.0
-- Attempts that have ended. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- Attempts that have ended; the running one is in its job's row.
CREATE TABLE attempt (
    job_id uuid NOT NULL,
    token bigint NOT NULL,
    boot bigint NOT NULL,
    dispatched_at timestamptz,
    started_at timestamptz,
    ended_at timestamptz,
    round smallint NOT NULL,
    number smallint NOT NULL,
    error_class smallint NOT NULL
        CONSTRAINT attempt_error_class_check CHECK (error_class IN (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)),
    batch_count integer NOT NULL DEFAULT 0,
    worker text NOT NULL,
    device text,
    error_message text,
    PRIMARY KEY (job_id, token)
) PARTITION BY RANGE (job_id);
CREATE TABLE attempt_default PARTITION OF attempt DEFAULT;
