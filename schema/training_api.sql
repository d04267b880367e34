-- SPDX-License-Identifier: Apache-2.0
-- Training, for its routes. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- Workspaces that a tenant has sent: knowing the digest of somebody else's is not enough to run it.
CREATE TABLE training_archive (
    tenant text NOT NULL REFERENCES tenant,
    digest bytea NOT NULL REFERENCES archive,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, digest)
);

-- Checkpoints that a deployment was made of.
CREATE TABLE training_lineage (
    deployment_id text NOT NULL REFERENCES deployment,
    job_id uuid NOT NULL,
    checkpoint text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (deployment_id, job_id, checkpoint)
);
CREATE INDEX training_lineage_job ON training_lineage (job_id);
