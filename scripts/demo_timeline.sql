-- SPDX-License-Identifier: Apache-2.0
-- The life of one job from the documented views; :job is its id. Used by ./demo.
SELECT to_char(at, 'HH24:MI:SS.MS') AS time,
       to_char(extract(epoch FROM at - min(at) OVER ()) * 1000, 'FM99990.0') AS ms,
       what
  FROM (SELECT accepted_at AS at, 'accepted: Kafka has it, ' || input_size || ' bytes' AS what
          FROM jobs WHERE id = :job
        UNION ALL
        SELECT dispatched_at, 'attempt ' || number || ' sent to worker ' || worker
          FROM attempts WHERE job_id = :job
        UNION ALL
        SELECT started_at, 'attempt ' || number || ' started, in a batch of ' || batch_size
          FROM attempts WHERE job_id = :job
        UNION ALL
        SELECT ended_at, 'attempt ' || number || ' ended: ' || status
          FROM attempts WHERE job_id = :job
        UNION ALL
        SELECT finished_at, 'final in the ledger: ' || status FROM jobs WHERE id = :job
        UNION ALL
        SELECT started_at, 'webhook try ' || number || ' answered ' || coalesce(http_status::text, error)
          FROM delivery_tries WHERE job_id = :job) AS event
 WHERE at IS NOT NULL
 ORDER BY at
