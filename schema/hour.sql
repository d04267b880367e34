-- SPDX-License-Identifier: Apache-2.0
-- Sums by hour. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- What ended in an hour (UTC), by the time of its end: hours_fill() adds up what flushes say.
CREATE TABLE job_hour (
    hour timestamptz NOT NULL,
    tenant text NOT NULL,
    model text NOT NULL,
    deployment text NOT NULL,
    state smallint NOT NULL,
    error_class smallint NOT NULL,
    jobs bigint NOT NULL,
    attempts bigint NOT NULL,
    wait_seconds double precision NOT NULL,
    run_seconds double precision NOT NULL,
    PRIMARY KEY (model, hour, deployment, tenant, state, error_class)
) WITH (fillfactor = 70);

-- The newest flush of each shard that job_hour has.
CREATE TABLE hour_mark (
    shard smallint PRIMARY KEY,
    epoch bigint NOT NULL,
    number bigint NOT NULL
);
