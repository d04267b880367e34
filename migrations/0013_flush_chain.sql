-- SPDX-License-Identifier: Apache-2.0
-- A flush follows the one before it.
--
-- Why: after a failover that lost commits the owner of a shard may still be the one that the ledger
-- names, with the same epoch, and would go on: its updates meet rows that are gone, and jobs that
-- were accepted are forgotten. The flush before its next one is gone as well. So the guard of a
-- flush asks for it: the owner is then refused as a stale one is, and begins anew, from offsets
-- that have gone back with the rows.
-- Lock: none.
-- A million rows: nothing to rewrite. The look-up is one probe of the key in the days of the last
-- two dates; an owner that wrote nothing for a day begins anew, which does no harm.
-- Undo: DROP FUNCTION flush_guard(smallint, bigint, bigint).

CREATE FUNCTION flush_guard(of_shard smallint, of_epoch bigint, of_number bigint) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM flush_guard(of_shard, of_epoch);
    IF of_number > 1 AND NOT EXISTS (
        SELECT FROM flush WHERE shard = of_shard AND epoch = of_epoch AND number = of_number - 1
           AND at > now() - interval '1 day') THEN
        RAISE EXCEPTION 'flush % of epoch % of shard % is not here', of_number - 1, of_epoch, of_shard
            USING ERRCODE = 'HR001';
    END IF;
END
$$;
