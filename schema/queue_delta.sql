-- SPDX-License-Identifier: Apache-2.0
-- Changes of queue depths. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- Changes of queue depths, one row a flush, deployment and rank; queue_compact() adds them up.
-- The depth of a queue is the sum of its rows: nothing counts jobs.
CREATE TABLE queue_delta (
    shard smallint NOT NULL,
    rank smallint NOT NULL,
    deployment text NOT NULL,
    pool text NOT NULL,
    waiting bigint NOT NULL,
    running bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    delayed bigint NOT NULL DEFAULT 0, -- of those that wait: not due yet
    bytes bigint NOT NULL DEFAULT 0    -- inputs of those that wait or run
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 10000,
    autovacuum_vacuum_cost_delay = 0);
CREATE INDEX queue_delta_deployment ON queue_delta (deployment);
