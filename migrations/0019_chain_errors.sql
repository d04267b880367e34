-- SPDX-License-Identifier: Apache-2.0
-- Error classes of runs of chains.
--
-- Why: a run whose step failed was said to have had a bad input, and a run that lost its coordinator
-- five times was given up, however far it had come in between. A loss costs nothing now; a run in
-- which nothing moves between five of them is stuck.
-- Lock: two CHECKs are replaced under ACCESS EXCLUSIVE of job and attempt for as long as it takes to
-- read them once; the rest replaces functions.
-- A million rows: 0.2 s for the two CHECKs.
-- Undo: the CHECKs and functions as in 0014.

ALTER TABLE job DROP CONSTRAINT job_error_class_check;
ALTER TABLE job ADD CONSTRAINT job_error_class_check
    CHECK (error_class IN (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17));
ALTER TABLE attempt DROP CONSTRAINT attempt_error_class_check;
ALTER TABLE attempt ADD CONSTRAINT attempt_error_class_check
    CHECK (error_class IN (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17));

CREATE OR REPLACE FUNCTION error_class_name(class smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE class WHEN 1 THEN 'bad_input' WHEN 2 THEN 'model_error' WHEN 3 THEN 'model_unavailable'
        WHEN 4 THEN 'model_timeout' WHEN 5 THEN 'model_not_ready' WHEN 6 THEN 'model_missing'
        WHEN 7 THEN 'oom' WHEN 8 THEN 'device_fault' WHEN 9 THEN 'lost_worker' WHEN 10 THEN 'expired'
        WHEN 11 THEN 'canceled' WHEN 12 THEN 'handed_back' WHEN 13 THEN 'unstorable'
        WHEN 14 THEN 'input_lost' WHEN 15 THEN 'step_failed' WHEN 16 THEN 'lost_coordinator'
        WHEN 17 THEN 'run_stuck' END;

CREATE OR REPLACE FUNCTION error_class_wire(class smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE class WHEN 1 THEN 'MODEL_INVALID_INPUT' WHEN 2 THEN 'MODEL_PREDICT_ERROR'
        WHEN 3 THEN 'MODEL_UNAVAILABLE' WHEN 4 THEN 'MODEL_PREDICT_TIMEOUT' WHEN 5 THEN 'MODEL_NOT_READY'
        WHEN 6 THEN 'MODEL_DOES_NOT_EXIST' WHEN 7 THEN 'MODEL_PREDICT_ERROR' WHEN 10 THEN 'EXPIRED'
        WHEN 11 THEN 'CANCELED' WHEN 8 THEN 'INTERNAL_SERVER_ERROR' WHEN 9 THEN 'INTERNAL_SERVER_ERROR'
        WHEN 12 THEN 'INTERNAL_SERVER_ERROR' WHEN 13 THEN 'INTERNAL_SERVER_ERROR'
        WHEN 14 THEN 'INTERNAL_SERVER_ERROR' WHEN 15 THEN 'CHAIN_STEP_FAILED'
        WHEN 16 THEN 'INTERNAL_SERVER_ERROR' WHEN 17 THEN 'INTERNAL_SERVER_ERROR' END;

-- As error_class_reason() in schema/job.c says; a test compares.
CREATE OR REPLACE FUNCTION fail_reason(class smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN class IN (2, 3, 4, 5) THEN 'attempts_used' WHEN class = 7 THEN 'out_of_memory'
        WHEN class IN (8, 9, 17) THEN 'poison' WHEN class IN (1, 6, 13, 14, 15) THEN error_class_name(class) END;
COMMENT ON COLUMN headrace_v1.dead_jobs.reason IS 'attempts_used, out_of_memory, poison (it cost five workers or engine hosts), bad_input, model_missing, unstorable, step_failed (of a run of a chain), expired or input_lost (the blob of its input is missing or not what was submitted).';
