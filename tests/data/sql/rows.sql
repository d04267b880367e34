-- SPDX-License-Identifier: Apache-2.0
-- A small world with known answers for the questions of docs/sql.md: two tenants, acme and globex.
-- tests/stack/test_sql.py puts it into a migrated database; times are told from now.

SET search_path = headrace, pg_temp;

INSERT INTO tenant (id, name) VALUES ('acme', 'Acme'), ('globex', 'Globex');
INSERT INTO api_key (prefix, digest, tenant, name) VALUES
    ('hr_acme1', sha256('1'), 'acme', 'ci'), ('hr_glob1', sha256('2'), 'globex', 'ci');
INSERT INTO model (id, tenant, name, deployment_count) VALUES
    ('m-sum', 'acme', 'summarize', 2), ('m-pipe', 'acme', 'pipeline', 1), ('m-emb', 'globex', 'embed', 1);
INSERT INTO deployment (id, model_id, name, number, pool, shard, engine, slot_count, status, status_reason,
    replicas_wanted, replicas_max, device) VALUES
    ('d-sum1', 'm-sum', 'v1', 1, 'p-sum1', 0, 'truss', 4, 'INACTIVE', NULL, 0, 1, 'cpu'),
    ('d-sum2', 'm-sum', 'v2', 2, 'p-sum2', 0, 'truss', 4, 'UNHEALTHY', 'worker w1 failed: exit status 1', 2, 2, 'cuda'),
    ('d-pipe', 'm-pipe', 'v1', 1, 'p-pipe', 0, 'chain', 16, 'ACTIVE', NULL, 1, 1, 'cpu'),
    ('d-emb', 'm-emb', 'v1', 1, 'p-emb', 1, 'encoder', 8, 'ACTIVE', NULL, 1, 1, 'cpu');
INSERT INTO environment (model_id, name) VALUES ('m-sum', 'production'), ('m-sum', 'canary'), ('m-emb', 'production');
INSERT INTO environment_target (model_id, environment, deployment_id, weight) VALUES
    ('m-sum', 'production', 'd-sum2', 90), ('m-sum', 'production', 'd-sum1', 10),
    ('m-sum', 'canary', 'd-sum2', 100), ('m-emb', 'production', 'd-emb', 100);
INSERT INTO replica (worker, deployment_id, pool, host, boot, pid, state, reason, slot_count, restart_count, device,
    started_at, ready_at, seen_at) VALUES
    ('w1', 'd-sum2', 'p-sum2', 'gpu-1', 1, 101, 'FAILED', 'exit status 1', 4, 7, 'cuda:0', now() - interval '1 hour',
     NULL, now()),
    ('w2', 'd-sum2', 'p-sum2', 'gpu-1', 2, 102, 'LOADING', NULL, 4, 0, 'cuda:1', now() - interval '90 seconds', NULL,
     now()),
    ('w3', 'd-emb', 'p-emb', 'cpu-1', 3, 103, 'READY', NULL, 8, 0, 'cpu', now() - interval '1 hour',
     now() - interval '59 minutes', now()),
    ('w4', 'd-emb', 'p-emb', 'cpu-2', 4, 104, 'READY', NULL, 8, 0, 'cpu', now() - interval '1 hour',
     now() - interval '59 minutes', now() - interval '10 minutes');

INSERT INTO shard (id, epoch, owner, taken_at) VALUES
    (0, 60000000, 'broker-a', now() - interval '1 hour'), (1, 60000001, 'broker-b', now() - interval '2 hours');
INSERT INTO flush (shard, epoch, number, at, intake_floor, outcome_floor, floor_at, published_epoch, published_number)
VALUES (0, 60000000, 41, now(), 1000, 900, now(), 60000000, 40),
       (1, 60000001, 7, now() - interval '5 minutes', 500, 400, now() - interval '6 minutes', 60000001, 2);

-- The id of the n-th job, accepted so long ago.
CREATE FUNCTION pg_temp.nth(n integer, ago interval) RETURNS uuid LANGUAGE sql AS $$
    SELECT (left(replace(headrace_v1.id_at(now() - ago)::text, '-', ''), 12) || '70008000'
            || lpad(to_hex(n), 12, '0'))::uuid
$$;
-- waited, ran: of its newest attempt; NULL: not started, not over.
CREATE FUNCTION pg_temp.job(n integer, whose text, ago interval, state integer, waited interval, ran interval,
    class integer DEFAULT 0, attempts integer DEFAULT 1) RETURNS uuid LANGUAGE sql AS $$
    INSERT INTO job (id, accepted_at, received_at, start_deadline_at, state_at, started_at, seq, run_limit_ms,
        queue_limit_ms, shard, state, rank, max_attempts, attempt_count, tenant, model, deployment, environment,
        pool, input_digest, error_class, input_size, worker, key_prefix)
    SELECT pg_temp.nth(n, ago), now() - ago, now() - ago, now() - ago + interval '1 hour',
           CASE WHEN state IN (1, 2) THEN now() - ago ELSE now() - ago + coalesce(waited, '0') + coalesce(ran, '0') END,
           now() - ago + waited, n, 600000, 3600000, d.shard, state, 2, 3, attempts, m.tenant, m.id, d.id,
           'production', d.pool, sha256(n::text::bytea), class, 100 * n,
           CASE WHEN attempts > 0 THEN CASE m.tenant WHEN 'acme' THEN 'w1' ELSE 'w3' END END,
           CASE m.tenant WHEN 'acme' THEN 'hr_acme1' ELSE 'hr_glob1' END
      FROM deployment d JOIN model m ON m.id = d.model_id WHERE d.id = whose
    RETURNING id
$$;

-- Six that succeeded, after 1 to 6 s in line.
SELECT pg_temp.job(n, 'd-sum2', '50 minutes', 3, n * interval '1 second', '2 seconds') FROM generate_series(1, 6) n;
SELECT pg_temp.job(7, 'd-sum2', '10 minutes', 1, NULL, NULL, attempts => 0);
SELECT pg_temp.job(8, 'd-sum2', '2 minutes', 1, '1 second', NULL, 2);
SELECT pg_temp.job(9, 'd-sum2', '25 minutes', 2, '5 minutes', NULL);
SELECT pg_temp.job(10, 'd-emb', '1 minute', 2, '1 second', NULL);
SELECT pg_temp.job(11, 'd-sum2', '30 minutes', 4, '1 second', '2 seconds', 7, 3);
SELECT pg_temp.job(12, 'd-sum2', '40 minutes', 4, '1 second', '2 seconds', 9, 5);
SELECT pg_temp.job(13, 'd-sum2', '15 minutes', 5, NULL, NULL, 10, 0);
SELECT pg_temp.job(14, 'd-sum2', '20 minutes', 6, NULL, NULL, 11, 0);
SELECT pg_temp.job(n, 'd-emb', '45 minutes', 3, '100 milliseconds', '10 seconds') FROM generate_series(15, 16) n;
SELECT pg_temp.job(17, 'd-sum2', '44 minutes', 3, '1 second', '2 seconds');
SELECT pg_temp.job(18, 'd-sum2', '26 hours', 3, '1 second', '2 seconds');
SELECT pg_temp.job(20, 'd-pipe', '12 minutes', 2, '1 second', NULL);
SELECT pg_temp.job(21, 'd-sum2', '12 minutes', 3, '2 seconds', '2 seconds');
SELECT pg_temp.job(22, 'd-sum2', '11 minutes', 4, '2 seconds', '30 seconds', 2, 3);

-- One with a fixed id: three tries, its webhook given up.
INSERT INTO job (id, accepted_at, received_at, start_deadline_at, total_deadline_at, state_at, started_at, seq,
    run_limit_ms, queue_limit_ms, shard, state, rank, max_attempts, attempt_count, user_failures, tenant, model,
    deployment, environment, pool, input_digest, error_class, error_message, input_size, worker, webhook_url,
    idempotency_key, trace, key_prefix)
SELECT id, id_time(id), id_time(id), id_time(id) + interval '1 hour', id_time(id) + interval '2 hours',
       id_time(id) + interval '70 seconds', id_time(id) + interval '60 seconds', 1, 600000, 3600000, 0, 4, 2, 3, 3, 3,
       'acme', 'm-sum', 'd-sum2', 'production', 'p-sum2', sha256('x'), 2, 'ValueError: no text', 77, 'w1',
       'https://acme.example/hook?x=1', 'order-1', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', 'hr_acme1'
  FROM (SELECT '019ab2c4-7d51-7c11-8000-5d1f0a6c9e42'::uuid AS id) x;
INSERT INTO attempt (job_id, token, boot, dispatched_at, started_at, ended_at, round, number, error_class, batch_count,
    worker, device, error_message)
SELECT id, 257698037760000000 + n, 1, id_time(id) + n * interval '20 seconds', id_time(id) + n * interval '20 seconds',
       id_time(id) + n * interval '20 seconds' + CASE n WHEN 3 THEN interval '10 seconds' ELSE interval '0.5 seconds' END,
       1, n, CASE n WHEN 1 THEN 3 ELSE 2 END, 1, CASE n WHEN 3 THEN 'w1' ELSE 'w2' END, 'cuda:0',
       CASE n WHEN 1 THEN 'the model server answered 503' ELSE 'ValueError: no text' END
  FROM (SELECT '019ab2c4-7d51-7c11-8000-5d1f0a6c9e42'::uuid AS id) x, generate_series(1, 3) n;
INSERT INTO job_input (job_id, input) VALUES ('019ab2c4-7d51-7c11-8000-5d1f0a6c9e42', '{"text":""}');
INSERT INTO delivery (job_id, round, shard, state, try_count, last_http_status, last_error, finished_at, tenant, model,
    url, webhook_id, record)
VALUES ('019ab2c4-7d51-7c11-8000-5d1f0a6c9e42', 1, 0, 3, 2, 500, 'HTTP status 500', now(), 'acme', 'm-sum',
        'https://acme.example/hook?x=1', 'msg_1', '');
INSERT INTO delivery_try (job_id, round, number, http_status, started_at, took_us, error, answer)
SELECT '019ab2c4-7d51-7c11-8000-5d1f0a6c9e42', 1, n, CASE n WHEN 1 THEN 0 ELSE 500 END, now() - interval '1 minute',
       250000, CASE n WHEN 1 THEN 'timeout' ELSE 'HTTP status 500' END, CASE n WHEN 2 THEN 'oops' END
  FROM generate_series(1, 2) n;

-- More about some of the others.
UPDATE job SET due_at = now() + interval '5 minutes', error_message = 'ValueError: busy' WHERE seq = 8;
UPDATE job SET oom_failures = 3, error_message = 'CUDA out of memory' WHERE seq = 11;
UPDATE job SET lost_failures = 5, error_message = 'the worker was lost' WHERE seq = 12;
UPDATE job SET user_failures = 3, error_message = 'ValueError: no text' WHERE seq = 22;
UPDATE job SET total_deadline_at = now() + interval '3 minutes' WHERE seq = 9;
UPDATE job SET round = 2, replayed_at = accepted_at + interval '1 second' WHERE seq = 5;
UPDATE job SET attempt_count = 2 WHERE seq = 6;
UPDATE job SET input_blob = '20260101/x/in', input_size = 5000000 WHERE seq = 15;
UPDATE job SET webhook_url = 'https://acme.example/hook' WHERE seq = 17;
INSERT INTO job_input (job_id, input) SELECT id, '{}' FROM job WHERE seq IN (7, 8, 11, 13, 22);
INSERT INTO job_tag (job_id, tag) SELECT id, 'nightly' FROM job WHERE seq IN (1, 2, 13) AND tenant = 'acme'
    AND id >= headrace_v1.id_at(now() - interval '1 day');
INSERT INTO job_result (job_id, round, token, output_size, output, output_blob)
SELECT id, round, 1, CASE seq WHEN 16 THEN 9000000 ELSE 12 END, CASE seq WHEN 16 THEN NULL ELSE '{"text":"x"}'::bytea END,
       CASE seq WHEN 16 THEN '20260101/x/out' END
  FROM job WHERE state = 3;
INSERT INTO delivery (job_id, round, shard, state, try_count, last_http_status, last_error, finished_at, next_at, tenant,
    model, url, webhook_id, record)
SELECT id, round, 0, 3, 9, 500, 'HTTP status 500', now(), NULL, tenant, model, webhook_url, 'msg_17', '' FROM job
 WHERE seq = 17;
INSERT INTO webhook_endpoint (tenant, url, circuit, failure_count, last_http_status, last_error, retry_at) VALUES
    ('acme', 'https://acme.example/hook', 2, 12, 500, 'HTTP status 500', now() + interval '30 seconds');
INSERT INTO webhook_endpoint (tenant, url, disabled_at, disabled_by, disabled_reason, last_http_status) VALUES
    ('globex', 'https://globex.example/gone', now(), 'receiver', 'it answered 410 Gone', 410);

INSERT INTO chain_run (run_id, deployment_id, token, depth, targets) SELECT id, 'd-pipe', 1, 0, '{}' FROM job WHERE seq = 20;
INSERT INTO chain_step (run_id, step, item, round, job_id)
SELECT r.id, CASE s.seq WHEN 21 THEN 'split' ELSE 'each' END, 0, 1, s.id FROM job r, job s
 WHERE r.seq = 20 AND s.seq IN (21, 22);

INSERT INTO job_hour SELECT date_trunc('hour', now() - interval '5 hours', 'UTC'), r.* FROM (VALUES
    ('acme', 'm-sum', 'd-sum1', 3, 0, 6, 7, 12.0, 30.0), ('acme', 'm-sum', 'd-sum2', 3, 0, 2, 2, 4.0, 6.0),
    ('acme', 'm-sum', 'd-sum2', 4, 2, 1, 3, 3.0, 4.0), ('acme', 'm-sum', 'd-sum2', 5, 10, 1, 0, 600.0, 0.0),
    ('globex', 'm-emb', 'd-emb', 3, 0, 40, 40, 2.0, 400.0)) r;
INSERT INTO job_hour VALUES (date_trunc('hour', now() - interval '30 hours', 'UTC'), 'acme', 'm-sum', 'd-sum2', 3, 0, 9, 9, 1, 1);

INSERT INTO queue_delta (shard, rank, deployment, pool, waiting, running, at) VALUES
    (0, 2, 'd-sum2', 'p-sum2', 5, 0, now() - interval '1 minute'), (0, 2, 'd-sum2', 'p-sum2', -3, 1, now()),
    (0, 2, 'd-pipe', 'p-pipe', 0, 1, now()), (1, 2, 'd-emb', 'p-emb', 0, 1, now());
INSERT INTO command (shard, kind, job_id, tenant, asked_by, asked_at, priority)
SELECT 0, 'cancel', id, 'acme', 'hr_acme1', now() - interval '20 minutes', 0 FROM job WHERE seq = 14
UNION ALL SELECT 0, 'priority', id, 'acme', 'ops', now() - interval '5 minutes', 2 FROM job WHERE seq = 9
UNION ALL SELECT 1, 'cancel', id, 'globex', 'hr_glob1', now() - interval '4 minutes', 0 FROM job WHERE seq = 10;
INSERT INTO command_done (command_id, applied, epoch, number, reason)
SELECT id, kind = 'cancel', 1, 1, CASE kind WHEN 'cancel' THEN '' ELSE 'the job runs, it is IN_PROGRESS' END
  FROM command WHERE tenant = 'acme';
INSERT INTO switch (tenant, kind, value, reason, created_by) VALUES ('acme', 'tag', 'exp-7', 'it fills the disk', 'ops');
INSERT INTO secret (tenant, name, id, sealed, updated_at) VALUES
    ('acme', 'hf_token', 's1', '\x00', now() - interval '10 minutes'), ('globex', 'db', 's2', '\x00', now());
INSERT INTO schedule (tenant, name, model_id, environment, body, cron, zone, next_at, created_by) VALUES
    ('acme', 'report', 'm-sum', 'production', '{"model_input":{}}', '0 7 * * mon-fri', 'Europe/Berlin',
     now() + interval '1 day', 'hr_acme1');
INSERT INTO schedule_tick (schedule_id, tick_at, due_at, state, done_at, reason)
SELECT id, now() - n * interval '1 day', now() - n * interval '1 day', CASE n WHEN 1 THEN 'REFUSED' ELSE 'SUBMITTED' END,
       now() - n * interval '1 day', CASE n WHEN 1 THEN 'model ''m-sum'' is switched off' ELSE '' END
  FROM schedule, generate_series(1, 2) n;
INSERT INTO planned (job_id, tenant, model, deployment, environment, key_prefix, run_at, record, canceled_at) VALUES
    (gen_random_uuid(), 'acme', 'm-sum', 'd-sum2', 'production', 'hr_acme1', now() + interval '2 hours', '\x00', NULL),
    (gen_random_uuid(), 'globex', 'm-emb', 'd-emb', 'production', 'hr_glob1', now() + interval '1 hour', '\x00', now());
INSERT INTO audit (tenant, actor, action, target) VALUES
    ('acme', 'hr_acme1', 'MODEL_DEPLOYED', 'd-sum2'), ('globex', 'hr_glob1', 'MODEL_DEPLOYED', 'd-emb'),
    ('acme', 'ops', 'JOB_PRIORITY_ASKED', 'x');
ANALYZE job;
