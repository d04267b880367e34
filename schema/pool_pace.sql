-- SPDX-License-Identifier: Apache-2.0
-- How fast pools work. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- What the owner of a shard sees of a pool, every few seconds while it changes: what a job is expected
-- to take, and how many slots its workers have. Gateways estimate waiting times by it.
CREATE TABLE pool_pace (
    pool text NOT NULL,
    shard smallint NOT NULL,
    service_us bigint NOT NULL,
    slots bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pool, shard)
) WITH (fillfactor = 50);
