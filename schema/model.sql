-- SPDX-License-Identifier: Apache-2.0
-- Models. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

CREATE TABLE model (
    id text PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 64),
    tenant text NOT NULL REFERENCES tenant,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    deployment_count integer NOT NULL DEFAULT 0, -- numbers given out, for "deployment-<n>"
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);
CREATE UNIQUE INDEX model_name ON model (tenant, name) WHERE deleted_at IS NULL;
