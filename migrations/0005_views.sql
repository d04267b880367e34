-- SPDX-License-Identifier: Apache-2.0
-- headrace_v1: the documented, read-only face of the ledger, and the role that may read it.
--
-- Why: tables change with the code, these views do not. A column is added at the end of a view or
-- not at all; another meaning is another schema, headrace_v2.
-- Lock: none that anybody waits for, all objects are new.
-- A million rows: nothing to rewrite.
-- Undo: DROP SCHEMA headrace_v1 CASCADE; DROP ROLE headrace_reader.

CREATE SCHEMA headrace_v1;
COMMENT ON SCHEMA headrace_v1 IS 'Read-only views of Headrace, version 1. Columns are only ever added.';

-- Names of the numbers in schema/job_states.def and schema/error_classes.def; a test compares. Bodies
-- are expressions, bound when they are made: readers of the views may not look names up in `headrace`.
CREATE FUNCTION state_name(state smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE state WHEN 1 THEN 'QUEUED' WHEN 2 THEN 'IN_PROGRESS' WHEN 3 THEN 'SUCCEEDED'
        WHEN 4 THEN 'FAILED' WHEN 5 THEN 'EXPIRED' WHEN 6 THEN 'CANCELED' END;

CREATE FUNCTION error_class_name(class smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE class WHEN 1 THEN 'bad_input' WHEN 2 THEN 'model_error' WHEN 3 THEN 'model_unavailable'
        WHEN 4 THEN 'model_timeout' WHEN 5 THEN 'model_not_ready' WHEN 6 THEN 'model_missing'
        WHEN 7 THEN 'oom' WHEN 8 THEN 'device_fault' WHEN 9 THEN 'lost_worker' WHEN 10 THEN 'expired'
        WHEN 11 THEN 'canceled' WHEN 12 THEN 'handed_back' WHEN 13 THEN 'unstorable' END;

CREATE FUNCTION error_class_wire(class smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE class WHEN 1 THEN 'MODEL_INVALID_INPUT' WHEN 2 THEN 'MODEL_PREDICT_ERROR'
        WHEN 3 THEN 'MODEL_UNAVAILABLE' WHEN 4 THEN 'MODEL_PREDICT_TIMEOUT' WHEN 5 THEN 'MODEL_NOT_READY'
        WHEN 6 THEN 'MODEL_DOES_NOT_EXIST' WHEN 7 THEN 'MODEL_PREDICT_ERROR' WHEN 10 THEN 'EXPIRED'
        WHEN 11 THEN 'CANCELED' WHEN 8 THEN 'INTERNAL_SERVER_ERROR' WHEN 9 THEN 'INTERNAL_SERVER_ERROR'
        WHEN 12 THEN 'INTERNAL_SERVER_ERROR' WHEN 13 THEN 'INTERNAL_SERVER_ERROR' END;

CREATE FUNCTION delivery_state_name(state smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE state WHEN 1 THEN 'PENDING' WHEN 2 THEN 'SUCCEEDED' WHEN 3 THEN 'FAILED'
        WHEN 4 THEN 'CANCELED' END;

CREATE FUNCTION rank_name(rank smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE rank WHEN 0 THEN 'sync' ELSE (rank - 1)::text END;

-- What webhook_status says: no address, or the delivery's state, or what is to be expected of it.
CREATE FUNCTION webhook_status(url text, job_state smallint, delivery_state smallint) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN url IS NULL THEN 'NO_WEBHOOK_PROVIDED'
        WHEN delivery_state IS NOT NULL THEN delivery_state_name(delivery_state)
        WHEN job_state = 6 THEN 'CANCELED' ELSE 'PENDING' END;

-- Bytes as text; null when they are no UTF-8, so that one odd output cannot fail a whole query.
CREATE FUNCTION text_of(bytes bytea) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    RETURN convert_from(bytes, 'UTF8');
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END
$$;

-- Ids that were made since a time: `WHERE id >= headrace_v1.id_at(now() - interval '1 hour')` reads
-- only the days that it needs.
CREATE FUNCTION headrace_v1.id_at(at timestamptz) RETURNS uuid LANGUAGE sql STABLE STRICT PARALLEL SAFE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid
$$;
COMMENT ON FUNCTION headrace_v1.id_at(timestamptz) IS
    'The lowest id of that time. "id >= id_at(now() - interval ''1 hour'')" is fast, the same with accepted_at reads every day.';

CREATE VIEW headrace_v1.jobs AS
SELECT j.id,
       j.tenant,
       j.model AS model_id,
       m.name AS model_name,
       j.deployment AS deployment_id,
       j.environment,
       j.pool,
       CASE WHEN j.state = 3 AND d.state = 3 THEN 'WEBHOOK_FAILED' ELSE state_name(j.state) END AS status,
       webhook_status(j.webhook_url, j.state, d.state) AS webhook_status,
       rank_name(j.rank) AS class,
       j.accepted_at,
       j.started_at,
       j.state_at AS status_at,
       CASE WHEN j.state IN (1, 2) THEN NULL ELSE j.state_at END AS finished_at,
       extract(epoch FROM coalesce(j.started_at, CASE WHEN j.state IN (1, 2) THEN now() ELSE j.state_at END)
               - j.accepted_at)::double precision AS wait_seconds,
       CASE WHEN j.started_at IS NOT NULL THEN
           extract(epoch FROM CASE WHEN j.state IN (1, 2) THEN now() ELSE j.state_at END - j.started_at)::double precision
       END AS run_seconds,
       j.attempt_count AS attempts,
       j.max_attempts,
       j.due_at AS retry_at,
       j.round,
       error_class_wire(j.error_class) AS error_code,
       error_class_name(j.error_class) AS error_class,
       j.error_message,
       j.input_size,
       encode(j.input_digest, 'hex') AS input_digest,
       j.input_blob,
       j.webhook_url,
       j.idempotency_key,
       j.start_deadline_at,
       j.total_deadline_at,
       j.worker,
       j.shard,
       split_part(j.trace, '-', 2) AS trace_id,
       j.key_prefix AS api_key_prefix
  FROM job j
  LEFT JOIN model m ON m.id = j.model
  LEFT JOIN delivery d ON d.job_id = j.id AND d.round = j.round AND d.endpoint = 'job';
COMMENT ON VIEW headrace_v1.jobs IS 'Every job that is in the ledger, one row each. Finished ones go with their day.';
COMMENT ON COLUMN headrace_v1.jobs.id IS 'Id of the job, a UUIDv7: sorting by it is sorting by time.';
COMMENT ON COLUMN headrace_v1.jobs.tenant IS 'Who pays.';
COMMENT ON COLUMN headrace_v1.jobs.model_id IS 'Model that the request named.';
COMMENT ON COLUMN headrace_v1.jobs.model_name IS 'Name of that model now.';
COMMENT ON COLUMN headrace_v1.jobs.deployment_id IS 'Deployment that the request was resolved to when it was accepted.';
COMMENT ON COLUMN headrace_v1.jobs.environment IS 'Environment that the request named; null when it named a deployment.';
COMMENT ON COLUMN headrace_v1.jobs.pool IS 'Pool of workers that runs it.';
COMMENT ON COLUMN headrace_v1.jobs.status IS 'QUEUED, IN_PROGRESS, SUCCEEDED, FAILED, EXPIRED, CANCELED, or WEBHOOK_FAILED: it succeeded, its webhook was given up.';
COMMENT ON COLUMN headrace_v1.jobs.webhook_status IS 'NO_WEBHOOK_PROVIDED, PENDING, SUCCEEDED, FAILED or CANCELED.';
COMMENT ON COLUMN headrace_v1.jobs.class IS 'Order of service: sync, then priority 0, 1, 2.';
COMMENT ON COLUMN headrace_v1.jobs.accepted_at IS 'When Kafka took the request; deadlines count from here.';
COMMENT ON COLUMN headrace_v1.jobs.started_at IS 'When its newest attempt started; null when none did.';
COMMENT ON COLUMN headrace_v1.jobs.status_at IS 'When its state was entered.';
COMMENT ON COLUMN headrace_v1.jobs.finished_at IS 'When it became final; null before.';
COMMENT ON COLUMN headrace_v1.jobs.wait_seconds IS 'From acceptance to the start of its newest attempt, or to its end, or to now.';
COMMENT ON COLUMN headrace_v1.jobs.run_seconds IS 'From the start of its newest attempt to its end, or to now.';
COMMENT ON COLUMN headrace_v1.jobs.attempts IS 'Attempts so far, the running one included.';
COMMENT ON COLUMN headrace_v1.jobs.max_attempts IS 'Attempts that the request allows for errors of the model.';
COMMENT ON COLUMN headrace_v1.jobs.retry_at IS 'A waiting retry is not tried before.';
COMMENT ON COLUMN headrace_v1.jobs.round IS '1, and one more at each replay.';
COMMENT ON COLUMN headrace_v1.jobs.error_code IS 'Code that clients see; of the last failed attempt while it is not final.';
COMMENT ON COLUMN headrace_v1.jobs.error_class IS 'Class that decided what followed: bad_input, model_error, oom, lost_worker …';
COMMENT ON COLUMN headrace_v1.jobs.error_message IS 'What the model or the platform said.';
COMMENT ON COLUMN headrace_v1.jobs.input_size IS 'Bytes of the input.';
COMMENT ON COLUMN headrace_v1.jobs.input_digest IS 'SHA-256 of the input, in hex.';
COMMENT ON COLUMN headrace_v1.jobs.input_blob IS 'Key of the input in the blob store; null when it is inline.';
COMMENT ON COLUMN headrace_v1.jobs.webhook_url IS 'Where the result is delivered.';
COMMENT ON COLUMN headrace_v1.jobs.idempotency_key IS 'Idempotency-Key of the request.';
COMMENT ON COLUMN headrace_v1.jobs.start_deadline_at IS 'Not started by then: EXPIRED.';
COMMENT ON COLUMN headrace_v1.jobs.total_deadline_at IS 'Not finished by then: EXPIRED; null: none.';
COMMENT ON COLUMN headrace_v1.jobs.worker IS 'Worker of its newest attempt.';
COMMENT ON COLUMN headrace_v1.jobs.shard IS 'Shard whose owner decides about it.';
COMMENT ON COLUMN headrace_v1.jobs.trace_id IS 'Trace id of its W3C traceparent.';
COMMENT ON COLUMN headrace_v1.jobs.api_key_prefix IS 'Prefix of the API key that submitted it.';

CREATE VIEW headrace_v1.results AS
SELECT r.job_id,
       r.round,
       r.output_size,
       text_of(r.output) AS output,
       r.output_blob
  FROM job_result r;
COMMENT ON VIEW headrace_v1.results IS 'Outputs of jobs that succeeded.';
COMMENT ON COLUMN headrace_v1.results.job_id IS 'The job.';
COMMENT ON COLUMN headrace_v1.results.round IS 'Round of the job that it belongs to.';
COMMENT ON COLUMN headrace_v1.results.output_size IS 'Bytes of the output.';
COMMENT ON COLUMN headrace_v1.results.output IS 'The output, as JSON text; null when it is in the blob store.';
COMMENT ON COLUMN headrace_v1.results.output_blob IS 'Key of the output in the blob store; null when it is inline.';

CREATE VIEW headrace_v1.attempts AS
SELECT a.job_id,
       a.round,
       a.number,
       CASE WHEN a.error_class = 0 THEN 'SUCCEEDED' ELSE 'FAILED' END AS status,
       a.worker,
       a.device,
       a.dispatched_at,
       a.started_at,
       a.ended_at,
       extract(epoch FROM a.ended_at - a.started_at)::double precision AS run_seconds,
       a.batch_count AS batch_size,
       error_class_wire(a.error_class) AS error_code,
       error_class_name(a.error_class) AS error_class,
       a.error_message,
       to_hex(a.token) AS token
  FROM attempt a
UNION ALL
SELECT j.id, j.round, j.attempt_count, 'RUNNING', j.worker, NULL, NULL, j.started_at, NULL,
       extract(epoch FROM now() - j.started_at)::double precision, NULL, NULL, NULL, NULL, to_hex(j.token)
  FROM job j
 WHERE j.state = 2;
COMMENT ON VIEW headrace_v1.attempts IS 'Every try of every job, the running ones included.';
COMMENT ON COLUMN headrace_v1.attempts.job_id IS 'The job.';
COMMENT ON COLUMN headrace_v1.attempts.round IS 'Round of the job that it belongs to.';
COMMENT ON COLUMN headrace_v1.attempts.number IS 'Number of the attempt, from 1.';
COMMENT ON COLUMN headrace_v1.attempts.status IS 'RUNNING, SUCCEEDED or FAILED.';
COMMENT ON COLUMN headrace_v1.attempts.worker IS 'Worker that ran it.';
COMMENT ON COLUMN headrace_v1.attempts.device IS 'Device of that worker.';
COMMENT ON COLUMN headrace_v1.attempts.dispatched_at IS 'When it was sent to the worker.';
COMMENT ON COLUMN headrace_v1.attempts.started_at IS 'When the worker started it.';
COMMENT ON COLUMN headrace_v1.attempts.ended_at IS 'When it ended or was given up.';
COMMENT ON COLUMN headrace_v1.attempts.run_seconds IS 'How long it ran.';
COMMENT ON COLUMN headrace_v1.attempts.batch_size IS 'Jobs that shared the call of the engine; 0: not known.';
COMMENT ON COLUMN headrace_v1.attempts.error_code IS 'Code that clients see; null when it succeeded.';
COMMENT ON COLUMN headrace_v1.attempts.error_class IS 'Class that decided what followed.';
COMMENT ON COLUMN headrace_v1.attempts.error_message IS 'What the model or the platform said.';
COMMENT ON COLUMN headrace_v1.attempts.token IS 'Its fence, in hex: epoch of the shard, then a number.';

CREATE VIEW headrace_v1.deliveries AS
SELECT d.job_id,
       d.round,
       d.endpoint,
       d.tenant,
       d.model AS model_id,
       d.url,
       delivery_state_name(d.state) AS status,
       d.try_count AS tries,
       d.last_http_status,
       d.last_error,
       d.next_at AS next_try_at,
       d.created_at,
       d.finished_at,
       d.webhook_id
  FROM delivery d;
COMMENT ON VIEW headrace_v1.deliveries IS 'Webhook messages: one a job, round and endpoint.';
COMMENT ON COLUMN headrace_v1.deliveries.job_id IS 'The job whose end is told.';
COMMENT ON COLUMN headrace_v1.deliveries.round IS 'Round of the job.';
COMMENT ON COLUMN headrace_v1.deliveries.endpoint IS '"job": the address that the request named.';
COMMENT ON COLUMN headrace_v1.deliveries.tenant IS 'Who pays.';
COMMENT ON COLUMN headrace_v1.deliveries.model_id IS 'Model of the job.';
COMMENT ON COLUMN headrace_v1.deliveries.url IS 'Where it is sent.';
COMMENT ON COLUMN headrace_v1.deliveries.status IS 'PENDING, SUCCEEDED, FAILED (given up) or CANCELED.';
COMMENT ON COLUMN headrace_v1.deliveries.tries IS 'POSTs so far.';
COMMENT ON COLUMN headrace_v1.deliveries.last_http_status IS 'What the server answered last; 0: nothing.';
COMMENT ON COLUMN headrace_v1.deliveries.last_error IS 'Why the last try failed.';
COMMENT ON COLUMN headrace_v1.deliveries.next_try_at IS 'When it is tried again.';
COMMENT ON COLUMN headrace_v1.deliveries.created_at IS 'When the sender learned of it.';
COMMENT ON COLUMN headrace_v1.deliveries.finished_at IS 'When it was delivered or given up.';
COMMENT ON COLUMN headrace_v1.deliveries.webhook_id IS 'The webhook-id header: the same on every try.';

CREATE VIEW headrace_v1.delivery_tries AS
SELECT t.job_id,
       t.round,
       t.endpoint,
       t.number,
       t.started_at,
       t.took_us / 1e6::double precision AS seconds,
       t.http_status,
       t.error,
       t.address,
       t.answer
  FROM delivery_try t;
COMMENT ON VIEW headrace_v1.delivery_tries IS 'Every POST of every webhook message.';
COMMENT ON COLUMN headrace_v1.delivery_tries.job_id IS 'The job.';
COMMENT ON COLUMN headrace_v1.delivery_tries.round IS 'Round of the job.';
COMMENT ON COLUMN headrace_v1.delivery_tries.endpoint IS 'Endpoint of the delivery.';
COMMENT ON COLUMN headrace_v1.delivery_tries.number IS 'Number of the try, from 1.';
COMMENT ON COLUMN headrace_v1.delivery_tries.started_at IS 'When it was sent.';
COMMENT ON COLUMN headrace_v1.delivery_tries.seconds IS 'How long the answer took.';
COMMENT ON COLUMN headrace_v1.delivery_tries.http_status IS 'What the server answered; 0: nothing.';
COMMENT ON COLUMN headrace_v1.delivery_tries.error IS 'Why it failed.';
COMMENT ON COLUMN headrace_v1.delivery_tries.address IS 'Address that was connected to.';
COMMENT ON COLUMN headrace_v1.delivery_tries.answer IS 'Beginning of the body of the answer.';

CREATE VIEW headrace_v1.queue_depth AS
SELECT q.pool,
       q.deployment AS deployment_id,
       rank_name(q.rank) AS class,
       sum(q.waiting)::bigint AS waiting,
       sum(q.running)::bigint AS running
  FROM queue_delta q
 GROUP BY q.pool, q.deployment, q.rank
HAVING sum(q.waiting) <> 0 OR sum(q.running) <> 0;
COMMENT ON VIEW headrace_v1.queue_depth IS 'Jobs that wait and run, by pool, deployment and class: a sum of changes, nothing is counted. Jobs of the last 100 ms may be missing.';
COMMENT ON COLUMN headrace_v1.queue_depth.pool IS 'Pool of workers.';
COMMENT ON COLUMN headrace_v1.queue_depth.deployment_id IS 'Deployment.';
COMMENT ON COLUMN headrace_v1.queue_depth.class IS 'Order of service: sync, then priority 0, 1, 2.';
COMMENT ON COLUMN headrace_v1.queue_depth.waiting IS 'Jobs that wait, for a slot or for a retry.';
COMMENT ON COLUMN headrace_v1.queue_depth.running IS 'Jobs with an attempt at a worker.';

CREATE VIEW headrace_v1.models AS
SELECT m.id,
       m.tenant,
       m.name,
       (SELECT count(*) FROM deployment d WHERE d.model_id = m.id AND d.deleted_at IS NULL) AS deployments,
       (SELECT string_agg(t.deployment_id, ', ' ORDER BY t.weight DESC, t.deployment_id) FROM environment_target t
         WHERE t.model_id = m.id AND t.environment = 'production') AS production_deployment_id,
       m.created_at
  FROM model m
 WHERE m.deleted_at IS NULL;
COMMENT ON VIEW headrace_v1.models IS 'Models that are not deleted.';
COMMENT ON COLUMN headrace_v1.models.id IS 'Id of the model.';
COMMENT ON COLUMN headrace_v1.models.tenant IS 'Who owns it.';
COMMENT ON COLUMN headrace_v1.models.name IS 'Its name, unique for the tenant.';
COMMENT ON COLUMN headrace_v1.models.deployments IS 'How many deployments it has.';
COMMENT ON COLUMN headrace_v1.models.production_deployment_id IS 'Where its environment production sends requests.';
COMMENT ON COLUMN headrace_v1.models.created_at IS 'When it was made.';

CREATE VIEW headrace_v1.deployments AS
SELECT d.id,
       d.model_id,
       m.name AS model_name,
       m.tenant,
       d.name,
       d.status,
       d.status_reason,
       d.status_at,
       (SELECT string_agg(t.environment, ', ' ORDER BY t.environment) FROM environment_target t
         WHERE t.deployment_id = d.id) AS environments,
       d.engine,
       d.device,
       d.slot_count AS slots,
       d.pool,
       d.shard,
       d.replicas_min,
       d.replicas_max,
       d.replicas_wanted,
       (SELECT count(*) FROM replica r WHERE r.deployment_id = d.id AND r.state = 'READY') AS replicas_ready,
       encode(d.archive_digest, 'hex') AS archive_digest,
       d.created_at
  FROM deployment d
  JOIN model m ON m.id = d.model_id
 WHERE d.deleted_at IS NULL;
COMMENT ON VIEW headrace_v1.deployments IS 'Deployments that are not deleted.';
COMMENT ON COLUMN headrace_v1.deployments.id IS 'Id of the deployment.';
COMMENT ON COLUMN headrace_v1.deployments.model_id IS 'Its model.';
COMMENT ON COLUMN headrace_v1.deployments.model_name IS 'Name of its model.';
COMMENT ON COLUMN headrace_v1.deployments.tenant IS 'Who owns it.';
COMMENT ON COLUMN headrace_v1.deployments.name IS 'Its name, unique for the model.';
COMMENT ON COLUMN headrace_v1.deployments.status IS 'ACTIVE when it serves; the others say what is missing.';
COMMENT ON COLUMN headrace_v1.deployments.status_reason IS 'Why, when something is wrong.';
COMMENT ON COLUMN headrace_v1.deployments.status_at IS 'When the status was entered.';
COMMENT ON COLUMN headrace_v1.deployments.environments IS 'Environments that point to it.';
COMMENT ON COLUMN headrace_v1.deployments.engine IS 'What runs it.';
COMMENT ON COLUMN headrace_v1.deployments.device IS 'Device that it asks for.';
COMMENT ON COLUMN headrace_v1.deployments.slots IS 'Jobs that a worker runs at once.';
COMMENT ON COLUMN headrace_v1.deployments.pool IS 'Its pool of workers.';
COMMENT ON COLUMN headrace_v1.deployments.shard IS 'Its home shard.';
COMMENT ON COLUMN headrace_v1.deployments.replicas_min IS 'Fewest workers.';
COMMENT ON COLUMN headrace_v1.deployments.replicas_max IS 'Most workers.';
COMMENT ON COLUMN headrace_v1.deployments.replicas_wanted IS 'Workers that should run now.';
COMMENT ON COLUMN headrace_v1.deployments.replicas_ready IS 'Workers that take jobs.';
COMMENT ON COLUMN headrace_v1.deployments.archive_digest IS 'SHA-256 of what was pushed, in hex.';
COMMENT ON COLUMN headrace_v1.deployments.created_at IS 'When it was made.';

CREATE VIEW headrace_v1.environments AS
SELECT e.model_id,
       m.name AS model_name,
       e.name,
       t.deployment_id,
       t.weight,
       e.created_at
  FROM environment e
  JOIN model m ON m.id = e.model_id
  LEFT JOIN environment_target t ON t.model_id = e.model_id AND t.environment = e.name
 WHERE m.deleted_at IS NULL;
COMMENT ON VIEW headrace_v1.environments IS 'Environments, one row for each deployment that they point to.';
COMMENT ON COLUMN headrace_v1.environments.model_id IS 'The model.';
COMMENT ON COLUMN headrace_v1.environments.model_name IS 'Name of the model.';
COMMENT ON COLUMN headrace_v1.environments.name IS 'Name of the environment.';
COMMENT ON COLUMN headrace_v1.environments.deployment_id IS 'Deployment that it points to; null: none.';
COMMENT ON COLUMN headrace_v1.environments.weight IS 'Share of its requests, of the sum of the weights.';
COMMENT ON COLUMN headrace_v1.environments.created_at IS 'When it was made.';

CREATE VIEW headrace_v1.workers AS
SELECT r.worker,
       r.deployment_id,
       r.pool,
       r.host,
       r.pid,
       r.state AS status,
       r.reason,
       r.slot_count AS slots,
       r.device,
       r.restart_count AS restarts,
       r.started_at,
       r.ready_at,
       r.seen_at,
       to_hex(r.boot) AS boot,
       r.log_path
  FROM replica r;
COMMENT ON VIEW headrace_v1.workers IS 'Workers as their agents last saw them.';
COMMENT ON COLUMN headrace_v1.workers.worker IS 'Name of the worker.';
COMMENT ON COLUMN headrace_v1.workers.deployment_id IS 'Deployment that it serves.';
COMMENT ON COLUMN headrace_v1.workers.pool IS 'Its pool.';
COMMENT ON COLUMN headrace_v1.workers.host IS 'Machine that it runs on.';
COMMENT ON COLUMN headrace_v1.workers.pid IS 'Its process.';
COMMENT ON COLUMN headrace_v1.workers.status IS 'STARTING, LOADING, READY, DRAINING, STOPPED or FAILED.';
COMMENT ON COLUMN headrace_v1.workers.reason IS 'Why it stopped or failed.';
COMMENT ON COLUMN headrace_v1.workers.slots IS 'Jobs that it runs at once.';
COMMENT ON COLUMN headrace_v1.workers.device IS 'Its device.';
COMMENT ON COLUMN headrace_v1.workers.restarts IS 'How often it was started again.';
COMMENT ON COLUMN headrace_v1.workers.started_at IS 'When its process started.';
COMMENT ON COLUMN headrace_v1.workers.ready_at IS 'When it first took jobs.';
COMMENT ON COLUMN headrace_v1.workers.seen_at IS 'When the agent last wrote this row.';
COMMENT ON COLUMN headrace_v1.workers.boot IS 'Id of this start of the worker, in hex.';
COMMENT ON COLUMN headrace_v1.workers.log_path IS 'Its log on that machine.';

CREATE VIEW headrace_v1.shards AS
SELECT s.id,
       s.epoch,
       s.owner,
       s.taken_at,
       f.at AS flushed_at,
       f.floor_at AS read_up_to,
       f.intake_floor,
       f.outcome_floor,
       f.number - CASE WHEN f.published_epoch = f.epoch THEN f.published_number ELSE 0 END AS unpublished_flushes
  FROM shard s
  LEFT JOIN LATERAL (SELECT * FROM flush n WHERE n.shard = s.id
                      ORDER BY n.epoch DESC, n.number DESC LIMIT 1) f ON true;
COMMENT ON VIEW headrace_v1.shards IS 'Shards, their owners, and how far those have come.';
COMMENT ON COLUMN headrace_v1.shards.id IS 'Number of the shard: its partition of intake and outcome.';
COMMENT ON COLUMN headrace_v1.shards.epoch IS 'Epoch of its owner: rises with each takeover.';
COMMENT ON COLUMN headrace_v1.shards.owner IS 'Who took it over last.';
COMMENT ON COLUMN headrace_v1.shards.taken_at IS 'When.';
COMMENT ON COLUMN headrace_v1.shards.flushed_at IS 'When the ledger was last written.';
COMMENT ON COLUMN headrace_v1.shards.read_up_to IS 'Everything that was accepted before is in the ledger.';
COMMENT ON COLUMN headrace_v1.shards.intake_floor IS 'Lowest offset of intake whose effect may not be in the ledger.';
COMMENT ON COLUMN headrace_v1.shards.outcome_floor IS 'Lowest offset of outcome whose effect may not be in the ledger.';
COMMENT ON COLUMN headrace_v1.shards.unpublished_flushes IS 'Flushes whose results may not be published yet; a few are normal.';

CREATE VIEW headrace_v1.audit AS
SELECT a.id,
       a.at,
       a.tenant,
       a.actor,
       a.action,
       a.target,
       a.details
  FROM headrace.audit a;
COMMENT ON VIEW headrace_v1.audit IS 'Who changed what.';
COMMENT ON COLUMN headrace_v1.audit.id IS 'Number of the event.';
COMMENT ON COLUMN headrace_v1.audit.at IS 'When.';
COMMENT ON COLUMN headrace_v1.audit.tenant IS 'Whose thing was changed.';
COMMENT ON COLUMN headrace_v1.audit.actor IS 'Prefix of the API key, or the role.';
COMMENT ON COLUMN headrace_v1.audit.action IS 'What was done.';
COMMENT ON COLUMN headrace_v1.audit.target IS 'To what.';
COMMENT ON COLUMN headrace_v1.audit.details IS 'More about it.';

-- The role that `headrace sql` switches to. Roles belong to the whole server, so it may be there
-- already; who may not create roles gets the views all the same.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'headrace_reader') THEN
        BEGIN
            CREATE ROLE headrace_reader NOLOGIN;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE NOTICE 'role headrace_reader has to be created by an administrator';
        END;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'headrace_reader') THEN
        IF NOT pg_has_role(current_user, 'headrace_reader', 'MEMBER') THEN
            GRANT headrace_reader TO CURRENT_USER;
        END IF;
        GRANT USAGE ON SCHEMA headrace_v1 TO headrace_reader;
        GRANT SELECT ON ALL TABLES IN SCHEMA headrace_v1 TO headrace_reader;
        ALTER DEFAULT PRIVILEGES IN SCHEMA headrace_v1 GRANT SELECT ON TABLES TO headrace_reader;
    END IF;
END
$$;
