-- SPDX-License-Identifier: Apache-2.0
-- A token that answers one approval, once, for whoever has it and no API key.
--
-- Why: who decides is often a person behind a link in a message, or another system; neither should hold a key that
-- opens all models. Kept are a public prefix, by which it is found, and the SHA-256 of the whole.
-- Lock: chain_wait, for adding columns without a default.
-- A million rows: nothing to rewrite; the index is on rows with a token, of which there are none.
-- Undo: drop the index and the columns.

ALTER TABLE chain_wait
    ADD COLUMN token_prefix text,
    ADD COLUMN token_digest bytea CHECK (length(token_digest) = 32),
    ADD COLUMN token_round smallint; -- of the run, as it was made; a round that asks anew needs another one
CREATE UNIQUE INDEX chain_wait_token ON chain_wait (token_prefix) WHERE token_prefix IS NOT NULL;

COMMENT ON COLUMN headrace_v1.chain_waits.decided_by IS
    'Who decided: the prefix of an API key, or `token` and the prefix of a token of the approval.';
