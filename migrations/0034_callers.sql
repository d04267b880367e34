-- SPDX-License-Identifier: Apache-2.0
-- Gateways that live, and the jobs whose callers wait at them.
--
-- Why: when a gateway is lost its callers are gone, and the jobs of their sync calls ran on for nobody. Each
-- gateway now says here that it lives, and any other cancels what the callers of a lost one had waited for.
-- Lock: SHARE on job while the index is built; it holds what is not final of sync calls only.
-- A million rows: a read of them, a second or two.
-- Undo: DROP FUNCTION gateway_lost(text, bigint); DROP INDEX job_caller; DROP TABLE gateway.

CREATE TABLE gateway (
    boot text PRIMARY KEY CHECK (boot ~ '^[a-z0-9-]{1,64}$'),
    beat bigint NOT NULL DEFAULT 1,
    seen_at timestamptz NOT NULL DEFAULT now() -- for people; leases are counted by who looks
) WITH (fillfactor = 50);

CREATE INDEX job_caller ON job (gateway) WHERE sync AND state IN (1, 2) AND idempotency_key IS NULL;

-- Cancels what the callers of a lost gateway had waited for, unless it has given a sign of life since p_beat.
-- What was sent with an Idempotency-Key is left: its caller comes again, to another gateway. Returns how many.
CREATE FUNCTION gateway_lost(p_boot text, p_beat bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    n bigint;
BEGIN
    DELETE FROM gateway WHERE boot = p_boot AND beat = p_beat;
    IF EXISTS (SELECT FROM gateway WHERE boot = p_boot) THEN
        RETURN 0;
    END IF;
    INSERT INTO command (shard, kind, job_id, tenant, asked_by)
    SELECT shard, 'cancel', id, tenant, 'gateway ' || p_boot || ' is lost' FROM job
     WHERE gateway = p_boot AND sync AND state IN (1, 2) AND idempotency_key IS NULL;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END
$$;
