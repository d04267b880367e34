-- SPDX-License-Identifier: Apache-2.0
-- Training, for its routes: who may name an archive, what a deployment was made of, and what people see.
--
-- Why: a job is checked in one statement against what it names (projects, jobs, archives, secrets), so that
-- what is missing is said when it is asked for and not when it would run.
-- Lock: none of what is there.
-- A million rows: nothing to rewrite.
-- Undo: DROP the tables, functions and views named here.

-- Workspaces that a tenant has sent: knowing the digest of somebody else's is not enough to run it.
CREATE TABLE training_archive (
    tenant text NOT NULL REFERENCES tenant,
    digest bytea NOT NULL REFERENCES archive,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, digest)
);

-- Checkpoints that a deployment was made of.
CREATE TABLE training_lineage (
    deployment_id text NOT NULL REFERENCES deployment,
    job_id uuid NOT NULL,
    checkpoint text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (deployment_id, job_id, checkpoint)
);
CREATE INDEX training_lineage_job ON training_lineage (job_id);

-- The project of that name, made when there is none: with a model that nobody calls, and its one deployment.
CREATE FUNCTION training_project_put(p_tenant text, p_name text, p_id text, p_deployment text, p_shard integer, p_by text)
    RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    found text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('training_project ' || p_tenant), hashtext(p_name));
    UPDATE training_project SET updated_at = now() WHERE tenant = p_tenant AND name = p_name AND deleted_at IS NULL
    RETURNING id INTO found;
    IF FOUND THEN
        RETURN found;
    END IF;
    INSERT INTO model (id, tenant, name, deployment_count) VALUES (p_id, p_tenant, p_id, 1);
    INSERT INTO deployment (id, model_id, name, number, pool, shard, engine, slot_count, run_limit_ms, replicas_min,
                            replicas_max, replicas_wanted, status)
    VALUES (p_deployment, p_id, 'training', 1, 'training', p_shard::smallint, 'training', 1, 366 * 86400000::bigint, 0, 0, 0,
            'ACTIVE');
    INSERT INTO training_project (id, tenant, name) VALUES (p_id, p_tenant, p_name);
    INSERT INTO audit (tenant, actor, action, target) VALUES (p_tenant, p_by, 'TRAINING_PROJECT_CREATED', p_id);
    RETURN p_id;
END
$$;

-- A spec whose names are there and the tenant's, with projects by id; or {"problem": what is not there}.
CREATE FUNCTION training_resolve(p_tenant text, p_spec jsonb) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    wanted jsonb;
    resolved jsonb := '[]';
    project text;
    missing text;
BEGIN
    IF coalesce(p_spec->>'archive', '') <> '' AND NOT EXISTS
        (SELECT FROM training_archive WHERE tenant = p_tenant AND digest = decode(p_spec->>'archive', 'hex')) THEN
        RETURN jsonb_build_object('problem', format('workspace.archive: %s was not sent', p_spec->>'archive'));
    END IF;
    SELECT v.value->>'name' INTO missing FROM jsonb_each(coalesce(p_spec->'environment_variables', '{}')) v
     WHERE jsonb_typeof(v.value) = 'object'
       AND NOT EXISTS (SELECT FROM secret s WHERE s.tenant = p_tenant AND s.name = v.value->>'name')
     ORDER BY v.key LIMIT 1;
    IF FOUND THEN
        RETURN jsonb_build_object('problem', format('runtime.environment_variables: there is no secret ''%s'' (headrace secrets set)', missing));
    END IF;
    IF NOT coalesce((p_spec->'load_checkpoint'->>'enabled')::boolean, false) THEN
        RETURN p_spec;
    END IF;
    FOR wanted IN SELECT jsonb_array_elements(p_spec->'load_checkpoint'->'checkpoints') LOOP
        IF wanted->>'project_name' IS NOT NULL THEN
            SELECT p.id INTO project FROM training_project p
             WHERE p.tenant = p_tenant AND p.name = wanted->>'project_name' AND p.deleted_at IS NULL;
            IF NOT FOUND THEN
                RETURN jsonb_build_object('problem', format('runtime.load_checkpoint_config: there is no project ''%s''', wanted->>'project_name'));
            END IF;
            wanted := wanted || jsonb_build_object('project_id', project);
        END IF;
        IF wanted->>'job_id' IS NOT NULL AND NOT EXISTS
            (SELECT FROM training_job t WHERE t.job_id = (wanted->>'job_id')::uuid AND t.tenant = p_tenant) THEN
            RETURN jsonb_build_object('problem', format('runtime.load_checkpoint_config: there is no training job %s', wanted->>'job_id'));
        ELSIF wanted->>'checkpoint_name' IS NOT NULL AND NOT EXISTS
            (SELECT FROM training_checkpoint c WHERE c.job_id = (wanted->>'job_id')::uuid
                AND c.name = wanted->>'checkpoint_name' AND c.state = 'COMPLETE') THEN
            RETURN jsonb_build_object('problem', format('runtime.load_checkpoint_config: job %s has no complete checkpoint ''%s''', wanted->>'job_id',
                wanted->>'checkpoint_name'));
        END IF;
        resolved := resolved || wanted;
    END LOOP;
    RETURN jsonb_set(p_spec, '{load_checkpoint,checkpoints}', resolved);
END
$$;

-- Why a job waits for trainers that are not there, whatever else runs; null: it will run when there is room.
CREATE FUNCTION training_outlook(p_job uuid) RETURNS text LANGUAGE sql STABLE AS $$
    WITH wanted AS (SELECT * FROM training_job WHERE job_id = p_job AND status = 'PENDING'),
    alive AS (SELECT * FROM training_trainer WHERE seen_at > now() - interval '10 s' AND NOT draining),
    fit AS (SELECT count(*) AS n FROM alive a, wanted t
             WHERE (t.gpu_count = 0 OR (a.accelerator = t.accelerator AND a.gpu_count >= t.gpu_count))
               AND a.cpu_count >= t.cpu_count AND a.memory_bytes >= t.memory_bytes),
    there AS (SELECT string_agg(k.n || ' with ' || k.has, '; ' ORDER BY k.has) AS text
                FROM (SELECT count(*) AS n, CASE WHEN a.gpu_count > 0 THEN a.gpu_count || ' ' || a.accelerator || ', '
                                                 ELSE '' END
                             || a.cpu_count || ' CPUs, ' || pg_size_pretty(a.memory_bytes) AS has
                        FROM alive a GROUP BY 2) k)
    SELECT format('%s trainers with %s%s CPUs, %s are needed and %s there; trainers that are there: %s. It waits until more come.',
                  t.node_count, CASE WHEN t.gpu_count > 0 THEN t.gpu_count || ' ' || t.accelerator || ', ' ELSE '' END,
                  t.cpu_count, pg_size_pretty(t.memory_bytes),
                  CASE WHEN fit.n = 1 THEN '1 is' ELSE fit.n || ' are' END, coalesce(there.text, 'none'))
      FROM wanted t, fit, there WHERE fit.n < t.node_count
$$;

-- Jobs that run first when there is room for all; null: it does not wait.
CREATE FUNCTION training_position(p_job uuid) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT 1 + (SELECT count(*) FROM training_job o WHERE o.status = 'PENDING' AND o.job_id <> t.job_id
                   AND (o.priority > t.priority OR (o.priority = t.priority AND (o.created_at, o.job_id) < (t.created_at, t.job_id))))
      FROM training_job t WHERE t.job_id = p_job AND t.status = 'PENDING'
$$;

-- A deployment is made of a checkpoint of the tenant's.
CREATE FUNCTION training_lineage_put(p_tenant text, p_deployment text, p_job uuid, p_checkpoint text) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM training_checkpoint c JOIN training_job t ON t.job_id = c.job_id
                    WHERE c.job_id = p_job AND c.name = p_checkpoint AND c.state = 'COMPLETE' AND t.tenant = p_tenant) THEN
        RAISE EXCEPTION 'training job % has no complete checkpoint ''%''', p_job, p_checkpoint USING ERRCODE = '23503';
    END IF;
    INSERT INTO training_lineage (deployment_id, job_id, checkpoint) VALUES (p_deployment, p_job, p_checkpoint)
    ON CONFLICT DO NOTHING;
END
$$;


CREATE VIEW headrace_v1.training_projects AS
SELECT p.id AS project_id,
       p.tenant,
       p.name,
       p.checkpoint_keep,
       n.jobs,
       n.jobs_open,
       p.created_at,
       p.updated_at
  FROM headrace.training_project p
 CROSS JOIN LATERAL (SELECT count(*) AS jobs, count(*) FILTER (WHERE t.ended_at IS NULL) AS jobs_open
                       FROM headrace.training_job t WHERE t.project_id = p.id) n
 WHERE p.deleted_at IS NULL;
COMMENT ON VIEW headrace_v1.training_projects IS 'Projects: training jobs of one purpose, with their caches and checkpoints.';
COMMENT ON COLUMN headrace_v1.training_projects.project_id IS 'Id of the project.';
COMMENT ON COLUMN headrace_v1.training_projects.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.training_projects.name IS 'Its name, unique among those of the tenant.';
COMMENT ON COLUMN headrace_v1.training_projects.checkpoint_keep IS 'Newest checkpoints of each job that are kept; 0: all.';
COMMENT ON COLUMN headrace_v1.training_projects.jobs IS 'Its jobs.';
COMMENT ON COLUMN headrace_v1.training_projects.jobs_open IS 'Those of them that have not ended.';
COMMENT ON COLUMN headrace_v1.training_projects.created_at IS 'When it was made.';
COMMENT ON COLUMN headrace_v1.training_projects.updated_at IS 'When it was named by a push last.';

CREATE VIEW headrace_v1.training_jobs AS
SELECT t.job_id,
       t.project_id,
       p.name AS project,
       t.tenant,
       nullif(t.name, '') AS name,
       t.status,
       t.status_at,
       t.priority,
       headrace.training_position(t.job_id) AS queue_position,
       headrace.training_outlook(t.job_id) AS outlook,
       t.node_count,
       nullif(t.accelerator, '') AS accelerator,
       t.gpu_count,
       t.cpu_count,
       t.memory_bytes,
       t.created_at,
       t.created_by,
       t.started_at,
       t.ended_at,
       t.placement AS placements,
       t.retry_count AS retries,
       t.lost_count AS losses,
       t.preempted_count AS preemptions,
       t.failed_count AS failures,
       t.cause,
       t.exit_code,
       t.signal,
       t.error_message,
       t.stop_by AS stopped_by,
       encode(t.archive_digest, 'hex') AS archive_digest,
       t.spec,
       c.complete AS checkpoints,
       CASE WHEN c.syncing > 0 THEN 'SYNCING' WHEN c.complete > 0 THEN 'COMPLETED' END AS checkpoint_sync
  FROM headrace.training_job t
  JOIN headrace.training_project p ON p.id = t.project_id
 CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE x.state = 'COMPLETE') AS complete,
                            count(*) FILTER (WHERE x.state = 'SYNCING') AS syncing
                       FROM headrace.training_checkpoint x WHERE x.job_id = t.job_id) c;
COMMENT ON VIEW headrace_v1.training_jobs IS 'Training jobs. Each is a job of the ledger, too.';
COMMENT ON COLUMN headrace_v1.training_jobs.job_id IS 'Id of the job.';
COMMENT ON COLUMN headrace_v1.training_jobs.project_id IS 'Its project.';
COMMENT ON COLUMN headrace_v1.training_jobs.project IS 'Name of that.';
COMMENT ON COLUMN headrace_v1.training_jobs.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.training_jobs.name IS 'Its name; null: it has none.';
COMMENT ON COLUMN headrace_v1.training_jobs.status IS 'PENDING, CREATED, DEPLOYING, RUNNING, COMPLETED, FAILED, DEPLOY_FAILED or STOPPED; on the wire with TRAINING_JOB_ in front.';
COMMENT ON COLUMN headrace_v1.training_jobs.status_at IS 'Since when.';
COMMENT ON COLUMN headrace_v1.training_jobs.priority IS 'Higher runs first.';
COMMENT ON COLUMN headrace_v1.training_jobs.queue_position IS '1: it runs next; null: it does not wait.';
COMMENT ON COLUMN headrace_v1.training_jobs.outlook IS 'Why it waits for trainers that are not there; null: it does not.';
COMMENT ON COLUMN headrace_v1.training_jobs.node_count IS 'Nodes.';
COMMENT ON COLUMN headrace_v1.training_jobs.accelerator IS 'Type of its GPUs; null: none.';
COMMENT ON COLUMN headrace_v1.training_jobs.gpu_count IS 'GPUs of each node.';
COMMENT ON COLUMN headrace_v1.training_jobs.cpu_count IS 'CPUs of each node.';
COMMENT ON COLUMN headrace_v1.training_jobs.memory_bytes IS 'Memory of each node.';
COMMENT ON COLUMN headrace_v1.training_jobs.created_at IS 'When it was accepted.';
COMMENT ON COLUMN headrace_v1.training_jobs.created_by IS 'Prefix of the key that it came with.';
COMMENT ON COLUMN headrace_v1.training_jobs.started_at IS 'When its commands ran first.';
COMMENT ON COLUMN headrace_v1.training_jobs.ended_at IS 'When it ended; null before.';
COMMENT ON COLUMN headrace_v1.training_jobs.placements IS 'How often it was placed on trainers.';
COMMENT ON COLUMN headrace_v1.training_jobs.retries IS 'Placements that had begun and did not end it: BT_RETRY_COUNT.';
COMMENT ON COLUMN headrace_v1.training_jobs.losses IS 'Placements that were lost since the last complete checkpoint.';
COMMENT ON COLUMN headrace_v1.training_jobs.preemptions IS 'Placements that a job of higher priority has ended.';
COMMENT ON COLUMN headrace_v1.training_jobs.failures IS 'Placements that failed by its own fault.';
COMMENT ON COLUMN headrace_v1.training_jobs.cause IS 'Why it ended: exit, signal, out_of_memory, time_limit, disk_quota, command_not_found, stopped, lost, workspace, restore or secret.';
COMMENT ON COLUMN headrace_v1.training_jobs.exit_code IS 'Of its command, where that ended it.';
COMMENT ON COLUMN headrace_v1.training_jobs.signal IS 'Signal that ended it.';
COMMENT ON COLUMN headrace_v1.training_jobs.error_message IS 'In words.';
COMMENT ON COLUMN headrace_v1.training_jobs.stopped_by IS 'Prefix of the key that asked for its stop.';
COMMENT ON COLUMN headrace_v1.training_jobs.archive_digest IS 'SHA-256 of its workspace, in hex; null: it has none.';
COMMENT ON COLUMN headrace_v1.training_jobs.spec IS 'What was asked for.';
COMMENT ON COLUMN headrace_v1.training_jobs.checkpoints IS 'Complete checkpoints.';
COMMENT ON COLUMN headrace_v1.training_jobs.checkpoint_sync IS 'SYNCING while any is uploaded; null: it has none.';

CREATE VIEW headrace_v1.training_nodes AS
SELECT n.job_id,
       t.tenant,
       n.placement,
       n.rank,
       n.trainer,
       n.state,
       n.placed_at,
       n.ready_at,
       n.started_at,
       n.ended_at,
       n.cause,
       n.exit_code,
       n.signal,
       n.message
  FROM headrace.training_node n
  JOIN headrace.training_job t ON t.job_id = n.job_id;
COMMENT ON VIEW headrace_v1.training_nodes IS 'Nodes of placements of training jobs: what ran on which trainer.';
COMMENT ON COLUMN headrace_v1.training_nodes.job_id IS 'The job.';
COMMENT ON COLUMN headrace_v1.training_nodes.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.training_nodes.placement IS 'Which placing of the job, from 1.';
COMMENT ON COLUMN headrace_v1.training_nodes.rank IS 'Number of the node, from 0: BT_NODE_RANK.';
COMMENT ON COLUMN headrace_v1.training_nodes.trainer IS 'Trainer that it is placed on.';
COMMENT ON COLUMN headrace_v1.training_nodes.state IS 'PLACED, TAKEN, READY, RUNNING or ENDED.';
COMMENT ON COLUMN headrace_v1.training_nodes.placed_at IS 'When it was placed.';
COMMENT ON COLUMN headrace_v1.training_nodes.ready_at IS 'When workspace and checkpoint were there.';
COMMENT ON COLUMN headrace_v1.training_nodes.started_at IS 'When its commands ran.';
COMMENT ON COLUMN headrace_v1.training_nodes.ended_at IS 'When it ended.';
COMMENT ON COLUMN headrace_v1.training_nodes.cause IS 'Why: as of training_jobs, and preempted, gang or drained.';
COMMENT ON COLUMN headrace_v1.training_nodes.exit_code IS 'Of its command.';
COMMENT ON COLUMN headrace_v1.training_nodes.signal IS 'That ended it.';
COMMENT ON COLUMN headrace_v1.training_nodes.message IS 'In words.';

CREATE VIEW headrace_v1.training_events AS
SELECT e.job_id,
       t.tenant,
       e.id AS number,
       e.at,
       e.placement,
       e.status,
       e.message,
       e.exit_code
  FROM headrace.training_event e
  JOIN headrace.training_job t ON t.job_id = e.job_id;
COMMENT ON VIEW headrace_v1.training_events IS 'What became of training jobs, in order.';
COMMENT ON COLUMN headrace_v1.training_events.job_id IS 'The job.';
COMMENT ON COLUMN headrace_v1.training_events.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.training_events.number IS 'Order of events.';
COMMENT ON COLUMN headrace_v1.training_events.at IS 'When.';
COMMENT ON COLUMN headrace_v1.training_events.placement IS 'In which placement.';
COMMENT ON COLUMN headrace_v1.training_events.status IS 'What it became: as of training_jobs.';
COMMENT ON COLUMN headrace_v1.training_events.message IS 'Why, where there is something to say.';
COMMENT ON COLUMN headrace_v1.training_events.exit_code IS 'Of its command.';

CREATE VIEW headrace_v1.training_checkpoints AS
SELECT c.job_id,
       t.project_id,
       t.tenant,
       c.rank,
       c.name,
       c.state,
       c.type,
       c.base_model,
       c.size_bytes,
       c.file_count,
       c.uploaded_bytes,
       c.placement,
       c.created_at,
       c.completed_at
  FROM headrace.training_checkpoint c
  JOIN headrace.training_job t ON t.job_id = c.job_id;
COMMENT ON VIEW headrace_v1.training_checkpoints IS 'Checkpoints of training jobs: of each node its part.';
COMMENT ON COLUMN headrace_v1.training_checkpoints.job_id IS 'The job.';
COMMENT ON COLUMN headrace_v1.training_checkpoints.project_id IS 'Its project.';
COMMENT ON COLUMN headrace_v1.training_checkpoints.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.training_checkpoints.rank IS 'Node that wrote it.';
COMMENT ON COLUMN headrace_v1.training_checkpoints.name IS 'Its name: that of the folder.';
COMMENT ON COLUMN headrace_v1.training_checkpoints.state IS 'SYNCING, COMPLETE or DELETED.';
COMMENT ON COLUMN headrace_v1.training_checkpoints.type IS 'full or lora.';
COMMENT ON COLUMN headrace_v1.training_checkpoints.base_model IS 'Of an adapter: what it belongs to.';
COMMENT ON COLUMN headrace_v1.training_checkpoints.size_bytes IS 'Bytes of its files.';
COMMENT ON COLUMN headrace_v1.training_checkpoints.file_count IS 'Its files.';
COMMENT ON COLUMN headrace_v1.training_checkpoints.uploaded_bytes IS 'Of those bytes: not in the store before.';
COMMENT ON COLUMN headrace_v1.training_checkpoints.placement IS 'Placement that wrote it.';
COMMENT ON COLUMN headrace_v1.training_checkpoints.created_at IS 'When it was seen first.';
COMMENT ON COLUMN headrace_v1.training_checkpoints.completed_at IS 'When all of it was stored.';

CREATE VIEW headrace_v1.training_checkpoint_files AS
SELECT c.job_id,
       t.tenant,
       c.rank,
       c.name AS checkpoint,
       f.value ->> 'path' AS path,
       (f.value ->> 'size')::bigint AS size_bytes,
       f.value ->> 'digest' AS digest
  FROM headrace.training_checkpoint c
  JOIN headrace.training_job t ON t.job_id = c.job_id
 CROSS JOIN LATERAL jsonb_array_elements(c.files) f
 WHERE c.state = 'COMPLETE';
COMMENT ON VIEW headrace_v1.training_checkpoint_files IS 'Files of complete checkpoints.';
COMMENT ON COLUMN headrace_v1.training_checkpoint_files.job_id IS 'The job.';
COMMENT ON COLUMN headrace_v1.training_checkpoint_files.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.training_checkpoint_files.rank IS 'Node that wrote it.';
COMMENT ON COLUMN headrace_v1.training_checkpoint_files.checkpoint IS 'Name of the checkpoint.';
COMMENT ON COLUMN headrace_v1.training_checkpoint_files.path IS 'Its path below the checkpoint.';
COMMENT ON COLUMN headrace_v1.training_checkpoint_files.size_bytes IS 'Its bytes.';
COMMENT ON COLUMN headrace_v1.training_checkpoint_files.digest IS 'SHA-256 of them, in hex.';

CREATE VIEW headrace_v1.training_logs AS
SELECT l.job_id,
       t.tenant,
       l.rank,
       l.number + x.n - 1 AS line,
       l.placement,
       l.at,
       x.message
  FROM headrace.training_log l
  JOIN headrace.training_job t ON t.job_id = l.job_id
 CROSS JOIN LATERAL unnest(string_to_array(left(l.text, -1), E'\n')) WITH ORDINALITY x (message, n);
COMMENT ON VIEW headrace_v1.training_logs IS 'Lines that training jobs have printed.';
COMMENT ON COLUMN headrace_v1.training_logs.job_id IS 'The job.';
COMMENT ON COLUMN headrace_v1.training_logs.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.training_logs.rank IS 'Node that printed it.';
COMMENT ON COLUMN headrace_v1.training_logs.line IS 'Its number among those of the node, from 1, over all placements.';
COMMENT ON COLUMN headrace_v1.training_logs.placement IS 'Placement that printed it.';
COMMENT ON COLUMN headrace_v1.training_logs.at IS 'When the first line of its chunk was read.';
COMMENT ON COLUMN headrace_v1.training_logs.message IS 'The line.';

CREATE VIEW headrace_v1.training_metrics AS
SELECT m.job_id,
       t.tenant,
       m.rank,
       m.name,
       m.at,
       m.step,
       m.value
  FROM headrace.training_metric m
  JOIN headrace.training_job t ON t.job_id = m.job_id;
COMMENT ON VIEW headrace_v1.training_metrics IS 'Figures of training jobs: what they used, and their own.';
COMMENT ON COLUMN headrace_v1.training_metrics.job_id IS 'The job.';
COMMENT ON COLUMN headrace_v1.training_metrics.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.training_metrics.rank IS 'Node.';
COMMENT ON COLUMN headrace_v1.training_metrics.name IS 'cpu (cores), memory_bytes, disk_bytes, gpu.<i>.utilization, gpu.<i>.memory_bytes, or user.<name>.';
COMMENT ON COLUMN headrace_v1.training_metrics.at IS 'When.';
COMMENT ON COLUMN headrace_v1.training_metrics.step IS 'Step that its script named with it; null: none.';
COMMENT ON COLUMN headrace_v1.training_metrics.value IS 'The figure.';

CREATE VIEW headrace_v1.training_trainers AS
SELECT r.name AS trainer,
       r.machine,
       r.address,
       r.seen_at > now() - interval '10 s' AS alive,
       r.draining,
       nullif(r.accelerator, '') AS accelerator,
       r.gpu_count,
       r.cpu_count,
       r.memory_bytes,
       u.gpus AS gpus_used,
       u.cpus AS cpus_used,
       u.memory AS memory_bytes_used,
       r.started_at,
       r.seen_at
  FROM headrace.training_trainer r
 CROSS JOIN LATERAL (SELECT coalesce(sum(t.gpu_count), 0) AS gpus, coalesce(sum(t.cpu_count), 0) AS cpus,
                            coalesce(sum(t.memory_bytes), 0)::bigint AS memory
                       FROM headrace.training_node n JOIN headrace.training_job t ON t.job_id = n.job_id
                      WHERE n.trainer = r.name AND n.state <> 'ENDED') u;
COMMENT ON VIEW headrace_v1.training_trainers IS 'Trainers: machines that run training jobs.';
COMMENT ON COLUMN headrace_v1.training_trainers.trainer IS 'Its name.';
COMMENT ON COLUMN headrace_v1.training_trainers.machine IS 'Name of the machine.';
COMMENT ON COLUMN headrace_v1.training_trainers.address IS 'Where nodes of a gang find it.';
COMMENT ON COLUMN headrace_v1.training_trainers.alive IS 'It was seen in the last 10 seconds.';
COMMENT ON COLUMN headrace_v1.training_trainers.draining IS 'It takes nothing new.';
COMMENT ON COLUMN headrace_v1.training_trainers.accelerator IS 'Type of its GPUs; null: none.';
COMMENT ON COLUMN headrace_v1.training_trainers.gpu_count IS 'Its GPUs.';
COMMENT ON COLUMN headrace_v1.training_trainers.cpu_count IS 'Its CPUs.';
COMMENT ON COLUMN headrace_v1.training_trainers.memory_bytes IS 'Its memory.';
COMMENT ON COLUMN headrace_v1.training_trainers.gpus_used IS 'GPUs that jobs have now.';
COMMENT ON COLUMN headrace_v1.training_trainers.cpus_used IS 'CPUs that jobs have now.';
COMMENT ON COLUMN headrace_v1.training_trainers.memory_bytes_used IS 'Memory that jobs were promised.';
COMMENT ON COLUMN headrace_v1.training_trainers.started_at IS 'When it started.';
COMMENT ON COLUMN headrace_v1.training_trainers.seen_at IS 'When it was seen last.';

CREATE VIEW headrace_v1.training_lineage AS
SELECT x.deployment_id,
       m.tenant,
       m.name AS model,
       x.job_id AS training_job_id,
       p.name AS project,
       x.checkpoint,
       c.bytes AS checkpoint_bytes,
       c.at AS checkpoint_at,
       encode(t.archive_digest, 'hex') AS code_digest,
       t.spec ->> 'base_image' AS base_image,
       t.spec -> 'start_commands' AS start_commands,
       CASE WHEN (t.spec #>> '{load_checkpoint,enabled}')::boolean THEN t.spec #> '{load_checkpoint,checkpoints}' END AS loaded,
       x.created_at AS deployed_at
  FROM headrace.training_lineage x
  JOIN headrace.deployment d ON d.id = x.deployment_id
  JOIN headrace.model m ON m.id = d.model_id
  LEFT JOIN headrace.training_job t ON t.job_id = x.job_id
  LEFT JOIN headrace.training_project p ON p.id = t.project_id
 CROSS JOIN LATERAL (SELECT sum(k.size_bytes)::bigint AS bytes, max(k.completed_at) AS at FROM headrace.training_checkpoint k
                      WHERE k.job_id = x.job_id AND k.name = x.checkpoint AND k.state = 'COMPLETE') c;
COMMENT ON VIEW headrace_v1.training_lineage IS 'Deployments that were made of checkpoints: which job, which code, which data.';
COMMENT ON COLUMN headrace_v1.training_lineage.deployment_id IS 'The deployment.';
COMMENT ON COLUMN headrace_v1.training_lineage.tenant IS 'Whose it is.';
COMMENT ON COLUMN headrace_v1.training_lineage.model IS 'Name of its model.';
COMMENT ON COLUMN headrace_v1.training_lineage.training_job_id IS 'Job whose checkpoint it has.';
COMMENT ON COLUMN headrace_v1.training_lineage.project IS 'Project of that job.';
COMMENT ON COLUMN headrace_v1.training_lineage.checkpoint IS 'Name of the checkpoint.';
COMMENT ON COLUMN headrace_v1.training_lineage.checkpoint_bytes IS 'Bytes of it, of all nodes.';
COMMENT ON COLUMN headrace_v1.training_lineage.checkpoint_at IS 'When the last node had stored its part.';
COMMENT ON COLUMN headrace_v1.training_lineage.code_digest IS 'SHA-256 of the workspace that the job ran in.';
COMMENT ON COLUMN headrace_v1.training_lineage.base_image IS 'Image that it named.';
COMMENT ON COLUMN headrace_v1.training_lineage.start_commands IS 'Commands that it ran.';
COMMENT ON COLUMN headrace_v1.training_lineage.loaded IS 'Checkpoints that it went on from; null: none.';
COMMENT ON COLUMN headrace_v1.training_lineage.deployed_at IS 'When the deployment was made.';

SELECT tenant_views();
