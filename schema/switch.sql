-- SPDX-License-Identifier: Apache-2.0
-- Kill switches that are on. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- While one is on, submits that it matches are refused, and waiting jobs are held.
CREATE TABLE switch (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant text NOT NULL,
    kind text NOT NULL CONSTRAINT switch_kind_check CHECK (kind IN ('tenant', 'model', 'tag')),
    value text NOT NULL, -- id of the model, the tag; of a tenant: itself
    reason text NOT NULL DEFAULT '',
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, kind, value)
);
