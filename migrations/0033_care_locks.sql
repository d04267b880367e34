-- SPDX-License-Identifier: Apache-2.0
-- Who takes care of the ledger is told apart by locks on rows, which only we can take.
--
-- Why: any login of the database may take an advisory lock of any number and keep it: a tenant's could
-- have held up queue_compact(), hours_fill() and every command of everybody. And hours_fill() had the
-- number that commands stand in line by, so each made the other wait.
-- Lock: none that anybody waits for.
-- A million rows: nothing to rewrite.
-- Undo: DROP TABLE care_lock; queue_compact() as in 0007, command_line() as in 0015, hours_fill() as in 0031.

CREATE TABLE care_lock (
    what text PRIMARY KEY
);
INSERT INTO care_lock VALUES ('commands'), ('depths'), ('hours');

CREATE OR REPLACE FUNCTION command_line() RETURNS trigger LANGUAGE plpgsql
    SET search_path = headrace, pg_temp SET lock_timeout = '2s' AS $$
BEGIN
    PERFORM FROM care_lock WHERE what = 'commands' FOR UPDATE;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION queue_compact() RETURNS bigint LANGUAGE plpgsql SET search_path = headrace, pg_temp AS $$
DECLARE
    gone bigint;
BEGIN
    PERFORM FROM care_lock WHERE what = 'depths' FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    WITH old AS (
        DELETE FROM queue_delta WHERE at < now() - interval '10 seconds'
        RETURNING shard, rank, deployment, pool, waiting, running, delayed, bytes
    ), summed AS (
        INSERT INTO queue_delta (shard, rank, deployment, pool, waiting, running, delayed, bytes)
        SELECT shard, rank, deployment, pool, sum(waiting), sum(running), sum(delayed), sum(bytes)
          FROM old GROUP BY shard, rank, deployment, pool
        HAVING sum(waiting) <> 0 OR sum(running) <> 0 OR sum(delayed) <> 0 OR sum(bytes) <> 0
    )
    SELECT count(*) INTO gone FROM old;
    RETURN gone;
END
$$;

CREATE OR REPLACE FUNCTION hours_fill(wait boolean DEFAULT false) RETURNS bigint LANGUAGE plpgsql
    SET search_path = headrace, pg_temp AS $$
DECLARE
    s record;
    upto record;
    added bigint := 0;
BEGIN
    IF wait THEN
        PERFORM FROM care_lock WHERE what = 'hours' FOR UPDATE;
    ELSE
        PERFORM FROM care_lock WHERE what = 'hours' FOR UPDATE SKIP LOCKED;
    END IF;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    FOR s IN SELECT shard.id, coalesce(k.epoch, 0) AS epoch, coalesce(k.number, 0) AS number
               FROM shard LEFT JOIN hour_mark k ON k.shard = shard.id
    LOOP
        SELECT f.epoch, f.number, count(*) OVER () AS flushes INTO upto
          FROM (SELECT epoch, number FROM flush
                 WHERE shard = s.id AND (epoch, number) > (s.epoch, s.number)
                 ORDER BY epoch, number LIMIT 20000) f
         ORDER BY f.epoch DESC, f.number DESC LIMIT 1;
        CONTINUE WHEN NOT FOUND;
        PERFORM hours_add(s.id, s.epoch, s.number, upto.epoch, upto.number);
        INSERT INTO hour_mark VALUES (s.id, upto.epoch, upto.number)
        ON CONFLICT (shard) DO UPDATE SET epoch = excluded.epoch, number = excluded.number;
        added := added + upto.flushes;
    END LOOP;
    RETURN added;
END
$$;

-- A view calls them: its readers may not look names up in `headrace`.
ALTER FUNCTION training_position(uuid) SECURITY DEFINER SET search_path = headrace, pg_temp;
ALTER FUNCTION training_outlook(uuid) SECURITY DEFINER SET search_path = headrace, pg_temp;
