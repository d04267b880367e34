-- SPDX-License-Identifier: Apache-2.0
-- Gateways that live. As it is now; migrations/ is how it got here (tests/stack/test_schema.c compares).

-- Each writes its own row, some times in a lease; whoever sees no change for a lease removes it (gateway_lost()).
CREATE TABLE gateway (
    boot text PRIMARY KEY CHECK (boot ~ '^[a-z0-9-]{1,64}$'),
    beat bigint NOT NULL DEFAULT 1,
    seen_at timestamptz NOT NULL DEFAULT now() -- for people; leases are counted by who looks
) WITH (fillfactor = 50);
