-- SPDX-License-Identifier: Apache-2.0
-- Limits that are negative, or that no double can hold, count as not set.
--
-- Why: limits are read for all tenants at once. A number beyond double precision, written by hand,
-- made that reading fail, and so everybody's limits stayed as they were; a negative cap refused all.
-- Lock: none that anybody waits for, a function is replaced.
-- A million rows: nothing to rewrite.
-- Undo: limit_of() as 0007 has it.

-- A limit as a number; NULL when it is not set, or is no number that a limit could be.
CREATE OR REPLACE FUNCTION limit_of(limits jsonb, name text) RETURNS double precision
    LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN jsonb_typeof(limits -> name) = 'number' AND (limits ->> name)::numeric BETWEEN 0 AND 1e18
        THEN (limits ->> name)::double precision END
$$;
