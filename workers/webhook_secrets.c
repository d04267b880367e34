/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/webhook_secrets.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "base/clock.h"
#include "workers/webhook_store.h"

#define SECRETS_FRESH_MS 5000
#define TENANTS_MAX 10000 /* beyond it the cache starts anew */
#define CONTEXT_SIZE 128
#define SEALED_TEXT_SIZE_MAX 128 /* a private key, the longer of the two */

struct tenant_entry {
    char *tenant; /* key */
    struct webhook_secrets secrets;
    uint64_t read_ms; /* 0: never */
    bool asked;
    struct webhook_secret_cache *cache;
    UT_hash_handle hh;
};

struct webhook_secret_cache {
    struct pg *pg;
    const struct seal_key *key;
    struct tenant_entry *entries;
    void (*ready)(void *opaque, const struct err *err);
    void *opaque;
};

struct webhook_secret_cache *webhook_secret_cache_new(struct pg *pg, const struct seal_key *key)
{
    struct webhook_secret_cache *cache = xcalloc(1, sizeof(*cache));

    cache->pg = pg;
    cache->key = key;
    return cache;
}

static void entry_free(struct webhook_secret_cache *cache, struct tenant_entry *entry)
{
    HASH_DEL(cache->entries, entry);
    sodium_memzero(&entry->secrets, sizeof(entry->secrets));
    free(entry->tenant);
    free(entry);
}

void webhook_secret_cache_free(struct webhook_secret_cache **cache_p)
{
    struct webhook_secret_cache *cache = TAKE(*cache_p);
    struct tenant_entry *entry, *next;

    if (cache == NULL)
        return;
    HASH_ITER(hh, cache->entries, entry, next)
    entry_free(cache, entry);
    free(cache);
}

void webhook_secret_cache_clear(struct webhook_secret_cache *cache)
{
    struct tenant_entry *entry, *next;

    HASH_ITER(hh, cache->entries, entry, next)
    entry->read_ms = 0; /* entries that are asked for must live on */
}

void webhook_secret_cache_on_ready(struct webhook_secret_cache *cache,
                                   void (*ready)(void *opaque, const struct err *err), void *opaque)
{
    cache->ready = ready;
    cache->opaque = opaque;
}

/* Puts what was sealed where it belongs; a third of its kind is older than what still signs. */
static int secret_keep(const char *kind, const char *text, struct webhook_secrets *secrets,
                       struct err *err)
{
    struct webhook_key_pair key;
    int r;

    if (strcmp(kind, "ed25519") == 0) {
        r = webhook_key_parse(text, &key, err);
        if (r == 0 && secrets->key_count < WEBHOOK_SECRETS_MAX)
            memcpy(secrets->private_keys[secrets->key_count++], key.private_key,
                   sizeof(key.private_key));
        sodium_memzero(&key, sizeof(key));
        return r;
    }
    r = webhook_secret_check(text, err);
    if (r == 0 && secrets->count < WEBHOOK_SECRETS_MAX)
        mem_copy_text(secrets->text[secrets->count++], text);
    return r;
}

/* Opens one row; a row that does not open is an error of the installation, not of the delivery. */
static int secret_open(struct tenant_entry *entry, const struct pg_answer *answer, size_t row,
                       struct webhook_secrets *secrets, struct err *err)
{
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(SEALED_TEXT_SIZE_MAX);
    struct wire_bytes sealed = pg_bytes(answer, 0, row, 1);
    char context[CONTEXT_SIZE] = "webhook_secret ";
    int r;

    if (entry->cache->key == NULL)
        return err_set(err, ERR_DEPENDENCY,
                       "tenant '%s' has a webhook secret and there is no --seal-key-file",
                       entry->tenant);
    mem_copy_text_at(context + strlen(context), sizeof(context) - strlen(context),
                     pg_c(answer, 0, row, 0));
    r = seal_open(entry->cache->key, context, sealed.bytes, sealed.size, &text, err);
    if (r == 0)
        r = secret_keep(pg_c(answer, 0, row, 2), buf_text(&text), secrets, err);
    sodium_memzero(text.bytes, text.size);
    return r < 0 ? err_wrap(err, "tenant '%s'", entry->tenant) : 0;
}

static void on_secrets(void *opaque, const struct pg_answer *answer)
{
    struct tenant_entry *entry = opaque;
    struct webhook_secret_cache *cache = entry->cache;
    struct webhook_secrets secrets = {.count = 0};
    struct err err = answer->err;

    entry->asked = false;
    for (size_t i = 0; err.code == ERR_OK && i < pg_row_count(answer, 0); i++)
        (void)secret_open(entry, answer, i, &secrets, &err);
    if (err.code == ERR_OK) {
        entry->secrets = secrets;
        entry->read_ms = clock_mono_ms();
    }
    sodium_memzero(&secrets, sizeof(secrets));
    cache->ready(cache->opaque, err.code == ERR_OK ? NULL : &err);
}

static struct tenant_entry *entry_get(struct webhook_secret_cache *cache, const char *tenant)
{
    struct tenant_entry *entry;

    HASH_FIND_STR(cache->entries, tenant, entry);
    if (entry != NULL)
        return entry;
    if (HASH_COUNT(cache->entries) >= TENANTS_MAX) {
        struct tenant_entry *old, *next;

        HASH_ITER(hh, cache->entries, old, next)
        {
            if (!old->asked)
                entry_free(cache, old);
        }
    }
    entry = xcalloc(1, sizeof(*entry));
    entry->tenant = xstrdup(tenant);
    entry->cache = cache;
    HASH_ADD_KEYPTR(hh, cache->entries, entry->tenant, strlen(entry->tenant), entry);
    return entry;
}

const struct webhook_secrets *webhook_secret_cache_get(struct webhook_secret_cache *cache,
                                                       const char *tenant, uint64_t now_ms)
{
    struct tenant_entry *entry = entry_get(cache, tenant);
    bool fresh = entry->read_ms != 0 && now_ms < entry->read_ms + SECRETS_FRESH_MS;
    struct err err;

    if (!fresh && !entry->asked)
        entry->asked = webhook_store_secrets(cache->pg, tenant, on_secrets, entry, &err) == 0;
    if (fresh || (entry->read_ms != 0 && !pg_connected(cache->pg)))
        return &entry->secrets;
    return NULL;
}
