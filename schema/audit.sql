-- SPDX-License-Identifier: Apache-2.0
-- Who changed what. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    tenant text NOT NULL,
    actor text NOT NULL, -- prefix of the key, or the role
    action text NOT NULL, -- API_KEY_CREATED, DEPLOYMENT_CREATED …
    target text NOT NULL,
    details jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_tenant ON audit (tenant, id);
