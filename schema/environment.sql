-- SPDX-License-Identifier: Apache-2.0
-- Environments and where they point to. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

CREATE TABLE environment (
    model_id text NOT NULL REFERENCES model,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    settings jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_id, name)
);

-- Where an environment sends its requests: weights are shares of their sum.
CREATE TABLE environment_target (
    model_id text NOT NULL,
    environment text NOT NULL,
    deployment_id text NOT NULL REFERENCES deployment,
    weight integer NOT NULL DEFAULT 100 CHECK (weight BETWEEN 0 AND 1000000),
    PRIMARY KEY (model_id, environment, deployment_id),
    FOREIGN KEY (model_id, environment) REFERENCES environment ON DELETE CASCADE
);
