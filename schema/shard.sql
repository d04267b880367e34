-- SPDX-License-Identifier: Apache-2.0
-- Who owns a shard. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

CREATE TABLE shard (
    id smallint PRIMARY KEY CHECK (id BETWEEN 0 AND 1023),
    epoch bigint NOT NULL DEFAULT 0 CHECK (epoch BETWEEN 0 AND 2147483647),
    owner text NOT NULL DEFAULT '',
    cluster text NOT NULL DEFAULT '', -- Kafka cluster id and topic ids: offsets mean nothing elsewhere
    intake_topic text NOT NULL DEFAULT '',
    outcome_topic text NOT NULL DEFAULT '',
    taken_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
