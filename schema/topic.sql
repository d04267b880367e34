-- SPDX-License-Identifier: Apache-2.0
-- Users' Kafka topics. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- A topic and the model that its records are for; never changed but for paused_at.
CREATE TABLE topic_binding (
    id text PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 64), -- in the hash that ids of its jobs are made of
    tenant text NOT NULL REFERENCES tenant,
    name text NOT NULL CONSTRAINT topic_binding_name_check CHECK (name ~ '^[A-Za-z0-9._-]{1,64}$'),
    topic text CHECK (length(topic) BETWEEN 1 AND 249), -- records come from; null: none do
    brokers text NOT NULL DEFAULT '',    -- of the user's cluster; '': the platform's own
    properties text NOT NULL DEFAULT '', -- name=value;… of librdkafka
    secret text,                         -- of the tenant, with more of them
    group_id text NOT NULL,
    model text NOT NULL,                 -- id or name
    environment text,
    deployment text,                     -- one of the two
    format text NOT NULL CONSTRAINT topic_binding_format_check CHECK (format IN ('json', 'msgpack')),
    mapping jsonb NOT NULL DEFAULT '{}', -- input, key, priority: where they are in a record
    max_attempts smallint NOT NULL CHECK (max_attempts BETWEEN 1 AND 10),
    queue_limit_ms bigint NOT NULL CHECK (queue_limit_ms > 0),
    priority smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN 0 AND 2),
    tags text NOT NULL DEFAULT '',
    start_at text NOT NULL CONSTRAINT topic_binding_start_check CHECK (start_at IN ('beginning', 'end')),
    bad text NOT NULL CONSTRAINT topic_binding_bad_check CHECK (bad IN ('stop', 'skip', 'dead_letter')),
    dead_topic text CHECK (length(dead_topic) BETWEEN 1 AND 249),
    result_topic text CHECK (length(result_topic) BETWEEN 1 AND 249),
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    paused_at timestamptz,
    CONSTRAINT topic_binding_use_check CHECK (topic IS NOT NULL OR result_topic IS NOT NULL),
    CONSTRAINT topic_binding_dead_check CHECK ((bad = 'dead_letter') = (dead_topic IS NOT NULL)),
    CONSTRAINT topic_binding_target_check CHECK ((environment IS NULL) <> (deployment IS NULL)),
    UNIQUE (tenant, name)
);

-- How far a partition has come: of the bound topic, or of `completed` for its result topic.
CREATE TABLE topic_position (
    binding_id text NOT NULL REFERENCES topic_binding ON DELETE CASCADE,
    result boolean NOT NULL,
    number integer NOT NULL CHECK (number BETWEEN 0 AND 1048575), -- of the partition
    epoch bigint NOT NULL DEFAULT 1, -- raised by each that takes it over: the fence
    owner text NOT NULL,
    position bigint,  -- everything before has come to its end here; null: nothing was read yet
    claim_to bigint,  -- from the position to before here, ids are of the time and the targets that follow
    claim_ms bigint,
    claim_targets jsonb,
    log_end bigint,   -- as last seen
    accepted bigint NOT NULL DEFAULT 0,
    refused bigint NOT NULL DEFAULT 0,
    repeated bigint NOT NULL DEFAULT 0, -- whose key had a job
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (binding_id, result, number)
) WITH (fillfactor = 50);

-- What is wrong with a binding now, as an ingest sees it; said again every few seconds.
CREATE TABLE topic_problem (
    binding_id text NOT NULL REFERENCES topic_binding ON DELETE CASCADE,
    result boolean NOT NULL,
    owner text NOT NULL,
    problem text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (binding_id, result, owner)
) WITH (fillfactor = 50);

-- Records that could not be made jobs; the newest of them.
CREATE TABLE topic_refusal (
    binding_id text NOT NULL REFERENCES topic_binding ON DELETE CASCADE,
    number integer NOT NULL,
    record_offset bigint NOT NULL,
    reason text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (binding_id, number, record_offset)
);
CREATE INDEX topic_refusal_at ON topic_refusal (at);

-- The record that a job was made of, where its result goes to a topic.
CREATE TABLE topic_record (
    job_id uuid NOT NULL,
    binding_id text NOT NULL,
    number integer NOT NULL,
    record_offset bigint NOT NULL,
    key bytea,
    headers bytea, -- as producers/ingest_headers.h has it; null: none
    PRIMARY KEY (job_id, binding_id)
) PARTITION BY RANGE (job_id);
CREATE TABLE topic_record_default PARTITION OF topic_record DEFAULT;
