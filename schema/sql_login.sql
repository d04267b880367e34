-- SPDX-License-Identifier: Apache-2.0
-- Logins of SQL that see one tenant. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- Written by tenant_bind() and tenant_unbind(); sql_tenant() reads it for the views of headrace_tenant_v1.
CREATE TABLE sql_login (
    role text PRIMARY KEY CHECK (length(role) BETWEEN 1 AND 63),
    tenant text NOT NULL REFERENCES tenant,
    may_write boolean NOT NULL DEFAULT false, -- cancel, retry, set_priority
    created_at timestamptz NOT NULL DEFAULT now()
);
