-- SPDX-License-Identifier: Apache-2.0
-- Webhook keys: Ed25519 pairs beside the shared secrets, in the same table.
--
-- Why: a receiver that checks with a public key keeps nothing that could be stolen from it. Kinds
-- are rotated apart from each other.
-- Lock: webhook_secret, ACCESS EXCLUSIVE, for milliseconds; a row or two a tenant.
-- A million rows: nothing to rewrite, the defaults are constants.
-- Undo: DELETE FROM webhook_secret WHERE kind <> 'hmac'; ALTER TABLE webhook_secret DROP COLUMN kind,
-- DROP COLUMN public_key.

ALTER TABLE webhook_secret
    ADD COLUMN kind text NOT NULL DEFAULT 'hmac'
        CONSTRAINT webhook_secret_kind_check CHECK (kind IN ('hmac', 'ed25519')),
    ADD COLUMN public_key bytea
        CONSTRAINT webhook_secret_public_key_check
        CHECK ((kind = 'ed25519') = (public_key IS NOT NULL) AND octet_length(public_key) = 32);
