-- SPDX-License-Identifier: Apache-2.0
-- Files of checkpoints: removed when nothing names them, and given up when they cannot be read.
--
-- Why: a blob that is removed while somebody stores the same content again must not take the new copy along. Each time that
-- a content comes anew its blob gets a number of its own, which is in its key; a row that is being removed is not found by
-- whoever stores, so a remover that comes late removes what nobody will ever name.
-- Lock: training_file and training_checkpoint, ACCESS EXCLUSIVE while the key of the one and the index of the other are made.
-- A million rows: some seconds.
-- Undo: DROP what is added here; the functions as in 0030.

CREATE SEQUENCE training_file_number;

ALTER TABLE training_file ADD COLUMN number bigint NOT NULL DEFAULT 0; -- in the key of its blob; 0: not in it
ALTER TABLE training_file ADD COLUMN stored boolean NOT NULL DEFAULT true; -- false: wanted, or its blob could not be read
ALTER TABLE training_file ADD COLUMN dropping_at timestamptz; -- its blob is being removed; nothing may name it
ALTER TABLE training_file DROP CONSTRAINT training_file_pkey;
ALTER TABLE training_file ADD PRIMARY KEY (project_id, digest, number);
CREATE UNIQUE INDEX training_file_digest ON training_file (project_id, digest) WHERE dropping_at IS NULL;
CREATE INDEX training_file_used ON training_file (used_at);
ALTER TABLE training_checkpoint ADD COLUMN lost_why text; -- it was complete, and a file of it could not be read
CREATE INDEX training_checkpoint_files ON training_checkpoint USING gin (files jsonb_path_ops);

-- Key of the blob of a file of a manifest.
CREATE FUNCTION training_blob(p_project text, p_file jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT 'training/' || p_project || '/' || (p_file->>'digest') || coalesce('-' || nullif(p_file->>'number', '0'), '')
$$;

-- Somebody is about to save these: the number of each blob, and whether it is there already. They stay from now on for
-- as long as unnamed files do.
CREATE FUNCTION training_files_want(p_project text, p_digests bytea[], p_sizes bigint[])
    RETURNS TABLE (digest bytea, number bigint, stored boolean) LANGUAGE sql AS $$
    INSERT INTO training_file AS f (project_id, digest, size_bytes, number, stored)
    SELECT p_project, w.digest, w.size, nextval('training_file_number'), false
      FROM (SELECT DISTINCT ON (u.digest) u.digest, u.size FROM unnest(p_digests, p_sizes) u (digest, size)) w
     ORDER BY w.digest
    ON CONFLICT (project_id, digest) WHERE dropping_at IS NULL DO UPDATE SET used_at = now()
    RETURNING f.digest, f.number, f.stored
$$;

-- All of its files are in the store: from here on it is a checkpoint. Names of older ones that the
-- policy lets go are returned.
CREATE OR REPLACE FUNCTION training_checkpoint_commit(
    p_job uuid, p_placement integer, p_rank integer, p_boot bigint, p_name text, p_files jsonb, p_size bigint,
    p_uploaded bigint, p_type text, p_base_model text, p_lora jsonb, p_keep integer)
    RETURNS TABLE (deleted text) LANGUAGE plpgsql AS $$
DECLARE
    missing text;
BEGIN
    PERFORM training_fence(p_job, p_placement, p_rank, p_boot);
    INSERT INTO training_file (project_id, digest, size_bytes) -- of trainers that know no numbers
    SELECT t.project_id, decode(e->>'digest', 'hex'), (e->>'size')::bigint
      FROM jsonb_array_elements(p_files) e, training_job t WHERE t.job_id = p_job AND NOT e ? 'number'
    ON CONFLICT DO NOTHING;
    PERFORM FROM training_file f JOIN training_job t ON t.project_id = f.project_id AND t.job_id = p_job
      WHERE f.digest IN (SELECT decode(e->>'digest', 'hex') FROM jsonb_array_elements(p_files) e)
      ORDER BY f.digest, f.number FOR UPDATE OF f;
    SELECT e->>'path' INTO missing FROM jsonb_array_elements(p_files) e JOIN training_job t ON t.job_id = p_job
     WHERE NOT EXISTS (SELECT FROM training_file f WHERE f.project_id = t.project_id
                          AND f.digest = decode(e->>'digest', 'hex')
                          AND f.number = coalesce((e->>'number')::bigint, 0) AND f.dropping_at IS NULL)
     LIMIT 1;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'the stored copy of % was removed meanwhile', missing USING ERRCODE = '40001';
    END IF;
    UPDATE training_file f SET used_at = now(), stored = true
      FROM training_job t, jsonb_array_elements(p_files) e
     WHERE t.job_id = p_job AND f.project_id = t.project_id AND f.digest = decode(e->>'digest', 'hex')
       AND f.number = coalesce((e->>'number')::bigint, 0);
    INSERT INTO training_checkpoint AS c (job_id, rank, name, placement, state, type, base_model, lora, size_bytes, file_count,
                                          uploaded_bytes, files, completed_at)
    VALUES (p_job, p_rank, p_name, p_placement, 'COMPLETE', p_type, p_base_model, p_lora, p_size,
            jsonb_array_length(p_files), p_uploaded, p_files, clock_timestamp())
    ON CONFLICT (job_id, rank, name) DO UPDATE SET placement = excluded.placement, state = 'COMPLETE', type = excluded.type,
        base_model = excluded.base_model, lora = excluded.lora, size_bytes = excluded.size_bytes,
        file_count = excluded.file_count, uploaded_bytes = c.uploaded_bytes + excluded.uploaded_bytes, files = excluded.files,
        completed_at = excluded.completed_at, lost_why = NULL;
    UPDATE training_job SET lost_count = 0 WHERE job_id = p_job AND lost_count > 0;
    PERFORM pg_notify('headrace_training', p_job::text);
    RETURN QUERY
        UPDATE training_checkpoint c SET state = 'DELETED', files = NULL
         WHERE p_keep > 0 AND c.job_id = p_job AND c.rank = p_rank AND c.name IN
               (SELECT k.name FROM training_checkpoint k
                 WHERE k.job_id = p_job AND k.rank = p_rank AND k.state = 'COMPLETE'
                 ORDER BY k.completed_at DESC OFFSET greatest(p_keep, 1))
        RETURNING c.name;
END
$$;

-- A file of a complete checkpoint cannot be read: the checkpoint is none any more, and who saves the same content again
-- stores it again.
CREATE FUNCTION training_checkpoint_lose(p_job uuid, p_placement integer, p_rank integer, p_boot bigint, p_source uuid,
                                         p_name text, p_file jsonb, p_why text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM training_fence(p_job, p_placement, p_rank, p_boot);
    UPDATE training_file f SET stored = false FROM training_job t
     WHERE t.job_id = p_source AND f.project_id = t.project_id AND f.digest = decode(p_file->>'digest', 'hex')
       AND f.number = coalesce((p_file->>'number')::bigint, 0) AND f.dropping_at IS NULL;
    UPDATE training_checkpoint SET state = 'DELETED', files = NULL, lost_why = p_why
     WHERE job_id = p_source AND name = p_name AND state <> 'DELETED';
    IF FOUND THEN
        PERFORM training_tell(p_job, 'CHECKPOINT_LOST', format('checkpoint %s: %s', p_name, p_why));
    END IF;
END
$$;

-- The newest complete checkpoint of a job; an error when it had any and none of them can be read.
CREATE FUNCTION training_newest_sound(p_job uuid) RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE
    newest text := training_newest(p_job);
    lost record;
BEGIN
    IF newest IS NULL THEN
        SELECT c.name, c.lost_why INTO lost FROM training_checkpoint c
         WHERE c.job_id = p_job AND c.lost_why IS NOT NULL ORDER BY c.completed_at DESC LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'no checkpoint of job % can be read; the newest one, %: %', p_job, lost.name, lost.lost_why
                USING ERRCODE = '23503';
        END IF;
    END IF;
    RETURN newest;
END
$$;

-- Where a job goes on: the newest checkpoint that every rank that has any has completed; of its own, else
-- of those that its spec names. What is named and not there any more is an error.
CREATE OR REPLACE FUNCTION training_resume(p_job uuid) RETURNS TABLE (job_id uuid, rank integer, name text, files jsonb)
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    t record;
    load jsonb;
    wanted jsonb;
    source uuid;
    newest text;
BEGIN
    SELECT * INTO t FROM training_job WHERE training_job.job_id = p_job;
    newest := training_newest_sound(p_job);
    IF newest IS NOT NULL THEN
        RETURN QUERY SELECT c.job_id, c.rank, c.name, c.files FROM training_checkpoint c
                      WHERE c.job_id = p_job AND c.name = newest AND c.state = 'COMPLETE';
        RETURN;
    END IF;
    load := t.spec->'load_checkpoint';
    IF load IS NULL OR NOT coalesce((load->>'enabled')::boolean, false) THEN
        RETURN;
    END IF;
    FOR wanted IN SELECT jsonb_array_elements(coalesce(load->'checkpoints', '[{"typ": "baseten_latest_checkpoint"}]')) LOOP
        IF wanted->>'job_id' IS NOT NULL THEN
            SELECT x.job_id INTO source FROM training_job x WHERE x.job_id = (wanted->>'job_id')::uuid AND x.tenant = t.tenant;
            IF source IS NULL THEN
                RAISE EXCEPTION 'training job %, whose checkpoint it is to go on with, is not there any more', wanted->>'job_id'
                    USING ERRCODE = '23503';
            END IF;
        ELSE
            SELECT x.job_id INTO source FROM training_job x
              JOIN training_checkpoint c ON c.job_id = x.job_id AND c.state = 'COMPLETE'
             WHERE x.tenant = t.tenant AND x.project_id = coalesce(wanted->>'project_id', t.project_id) AND x.job_id <> p_job
             ORDER BY c.completed_at DESC LIMIT 1;
        END IF;
        RETURN QUERY SELECT c.job_id, c.rank, c.name, c.files FROM training_checkpoint c
                      WHERE c.job_id = source AND c.state = 'COMPLETE'
                        AND c.name = coalesce(wanted->>'checkpoint_name', training_newest_sound(source));
        IF NOT FOUND AND wanted->>'checkpoint_name' IS NOT NULL THEN
            RAISE EXCEPTION 'job % has no complete checkpoint % any more', wanted->>'job_id', wanted->>'checkpoint_name'
                USING ERRCODE = '23503';
        END IF;
    END LOOP;
END
$$;

-- Files that no checkpoint has named for as long: from here on nothing may name them, and their blobs are the caller's to
-- remove. With them come those whose remover has not said for ten minutes that it is done. What is named is looked at
-- again after the same time.
DROP FUNCTION training_files_drop(interval, integer);
CREATE FUNCTION training_files_drop(p_keep interval, p_limit integer)
    RETURNS TABLE (blob text, project_id text, digest bytea, number bigint, size_bytes bigint) LANGUAGE sql AS $$
    WITH old AS (
        SELECT f.project_id, f.digest, f.number FROM training_file f
         WHERE f.used_at < now() - p_keep AND (f.dropping_at IS NULL OR f.dropping_at < now() - interval '10 minutes')
         ORDER BY f.used_at LIMIT p_limit FOR UPDATE SKIP LOCKED),
    judged AS (
        SELECT o.*, EXISTS (SELECT FROM training_checkpoint c JOIN training_job t ON t.job_id = c.job_id
                             WHERE t.project_id = o.project_id AND c.files @>
                                   jsonb_build_array(jsonb_build_object('digest', encode(o.digest, 'hex')) ||
                                       CASE WHEN o.number = 0 THEN '{}' ELSE jsonb_build_object('number', o.number) END)) AS named
          FROM old o),
    looked AS (
        UPDATE training_file f SET used_at = CASE WHEN j.named THEN now() ELSE f.used_at END,
                                   dropping_at = CASE WHEN j.named THEN NULL ELSE now() END
          FROM judged j WHERE f.project_id = j.project_id AND f.digest = j.digest AND f.number = j.number
        RETURNING f.project_id, f.digest, f.number, f.size_bytes, f.dropping_at)
    SELECT training_blob(l.project_id, jsonb_build_object('digest', encode(l.digest, 'hex'), 'number', l.number)),
           l.project_id, l.digest, l.number, l.size_bytes
      FROM looked l WHERE l.dropping_at IS NOT NULL
$$;

-- Their blobs are gone.
CREATE FUNCTION training_files_dropped(p_projects text[], p_digests bytea[], p_numbers bigint[]) RETURNS void LANGUAGE sql AS $$
    DELETE FROM training_file f USING unnest(p_projects, p_digests, p_numbers) AS w (project_id, digest, number)
     WHERE f.project_id = w.project_id AND f.digest = w.digest AND f.number = w.number AND f.dropping_at IS NOT NULL
$$;

COMMENT ON COLUMN headrace_v1.training_jobs.cause IS 'Why it ended: exit, signal, out_of_memory, time_limit, disk_quota, command_not_found, stopped, lost, store, workspace, restore or secret.';
COMMENT ON COLUMN headrace_v1.training_checkpoints.state IS 'SYNCING, COMPLETE or DELETED; DELETED, too, when a file of it could not be read any more.';

-- A gang goes on from a checkpoint whose parts are of one placement. Ranks save at their own pace: when one of them had
-- saved a name before a loss and another one saved it after, the two parts were of different runs, and together a model
-- that nobody had trained.

-- What is complete stays that of the placement that completed it, until another one has completed it anew.
CREATE OR REPLACE FUNCTION training_checkpoint_begin(p_job uuid, p_placement integer, p_rank integer, p_boot bigint, p_name text)
    RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM training_fence(p_job, p_placement, p_rank, p_boot);
    INSERT INTO training_checkpoint AS c (job_id, rank, name, placement) VALUES (p_job, p_rank, p_name, p_placement)
    ON CONFLICT (job_id, rank, name) DO UPDATE
        SET placement = CASE WHEN c.state = 'COMPLETE' THEN c.placement ELSE excluded.placement END,
            state = CASE WHEN c.state = 'DELETED' THEN 'SYNCING' ELSE c.state END;
END
$$;

CREATE OR REPLACE FUNCTION training_newest(p_job uuid) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT name FROM training_checkpoint WHERE job_id = p_job AND state <> 'DELETED'
     GROUP BY name
    HAVING bool_and(state = 'COMPLETE') AND count(DISTINCT placement) = 1
       AND count(*) = (SELECT count(DISTINCT rank) FROM training_checkpoint WHERE job_id = p_job AND state <> 'DELETED')
     ORDER BY max(completed_at) DESC LIMIT 1
$$;
