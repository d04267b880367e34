/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/blob_s3_options.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/http_server.h" /* http_target_parse() */
#include "base/settings.h"
#include "brokers/blob.h"

#define PART_MIB_DEFAULT 16
#define PART_MIB_MIN 5 /* what the protocol allows */
#define PART_MIB_MAX 1024

static const char *env_first(blob_s3_env *env, const char *const names[], const char *other)
{
    for (size_t i = 0; names[i] != NULL; i++) {
        const char *value = env(names[i]);

        if (value != NULL && value[0] != '\0')
            return value;
    }
    return other;
}

static int copy_field(const char *what, const char *value, char *to, size_t to_size,
                      struct err *err)
{
    if (strlen(value) >= to_size)
        return err_set(err, ERR_USAGE,
                       "%s of the blob store has %zu characters; at most %zu are "
                       "allowed",
                       what, strlen(value), to_size - 1);
    mem_copy_text_at(to, to_size, value);
    return 0;
}

static int read_bucket(const char *text, size_t size, struct blob_s3_options *options,
                       struct err *err)
{
    bool good = size >= 3 && size < sizeof(options->bucket);

    for (size_t i = 0; good && i < size; i++)
        good = (text[i] >= 'a' && text[i] <= 'z') || (text[i] >= '0' && text[i] <= '9') ||
               ((text[i] == '-' || text[i] == '.') && i > 0 && text[i - 1] != '.');
    if (!good)
        return err_set(err, ERR_USAGE,
                       "bucket '%.*s' of the blob store is no bucket name: 3 to 63 lower-case "
                       "letters, digits, dots, hyphens",
                       (int)(size < 80 ? size : 80), text);
    memcpy(options->bucket, text, size);
    options->bucket[size] = '\0';
    return 0;
}

static int read_prefix(const struct http_target *target, struct blob_s3_options *options,
                       struct err *err)
{
    size_t size = 0;

    for (size_t i = 0; i < target->segment_count; i++) {
        struct err bad;
        int n = snprintf(options->prefix + size, sizeof(options->prefix) - size, "%s/",
                         target->segments[i]);

        if (blob_key_check(target->segments[i], &bad) < 0)
            return err_set(err, ERR_USAGE, "prefix of the blob store: '%.60s' is not plain",
                           target->segments[i]);
        if (n < 0 || (size_t)n >= sizeof(options->prefix) - size)
            return err_set(err, ERR_USAGE, "prefix of the blob store is longer than %zu characters",
                           sizeof(options->prefix) - 1);
        size += (size_t)n;
    }
    return 0;
}

static int read_part(const char *text, struct blob_s3_options *options, struct err *err)
{
    int64_t mib;
    struct err bad;

    if (settings_parse_int("part_mib", text, &mib, &bad) < 0 || mib < PART_MIB_MIN ||
        mib > PART_MIB_MAX)
        return err_set(err, ERR_USAGE, "part_mib of the blob store is '%.20s'; it must be %d to %d",
                       text, PART_MIB_MIN, PART_MIB_MAX);
    options->part_size = (uint64_t)mib << 20;
    return 0;
}

static int read_field(const char *name, const char *value, struct blob_s3_options *options,
                      struct err *err)
{
    if (strcmp(name, "endpoint") == 0)
        return copy_field(name, value, options->endpoint, sizeof(options->endpoint), err);
    if (strcmp(name, "region") == 0)
        return copy_field(name, value, options->region, sizeof(options->region), err);
    if (strcmp(name, "spool") == 0)
        return copy_field(name, value, options->spool, sizeof(options->spool), err);
    if (strcmp(name, "part_mib") == 0)
        return read_part(value, options, err);
    return err_set(
        err, ERR_USAGE,
        "the blob store's URL has the unknown field '%.40s'; known are endpoint, region, "
        "spool, part_mib",
        name);
}

static int check_endpoint(struct blob_s3_options *options, struct err *err)
{
    CURLU *parts = curl_url();
    char *scheme = NULL, *user = NULL, *path = NULL, *query = NULL;
    size_t size = strlen(options->endpoint);
    bool good;

    while (size > 0 && options->endpoint[size - 1] == '/')
        options->endpoint[--size] = '\0';
    good = curl_url_set(parts, CURLUPART_URL, options->endpoint, 0) == CURLUE_OK &&
           curl_url_get(parts, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
           (strcmp(scheme, "http") == 0 || strcmp(scheme, "https") == 0) &&
           curl_url_get(parts, CURLUPART_USER, &user, 0) != CURLUE_OK &&
           curl_url_get(parts, CURLUPART_QUERY, &query, 0) != CURLUE_OK &&
           curl_url_get(parts, CURLUPART_PATH, &path, 0) == CURLUE_OK && strcmp(path, "/") == 0;
    curl_free(scheme);
    curl_free(user);
    curl_free(path);
    curl_free(query);
    curl_url_cleanup(parts);
    return good ? 0
                : err_set(err, ERR_USAGE,
                          "endpoint '%.100s' of the blob store must be http[s]://host[:port]",
                          options->endpoint);
}

static int read_environment(blob_s3_env *env, struct blob_s3_options *options, struct err *err)
{
    static const char *const regions[] = {"AWS_REGION", "AWS_DEFAULT_REGION", NULL};
    static const char *const endpoints[] = {"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", NULL};
    static const char *const bundles[] = {"AWS_CA_BUNDLE", NULL};
    const char *user = env("AWS_ACCESS_KEY_ID"), *secret = env("AWS_SECRET_ACCESS_KEY");
    const char *token = env("AWS_SESSION_TOKEN");
    int r = copy_field("AWS_CA_BUNDLE", env_first(env, bundles, ""), options->ca_path,
                       sizeof(options->ca_path), err);

    if (r == 0 && options->region[0] == '\0')
        r = copy_field("region", env_first(env, regions, "us-east-1"), options->region,
                       sizeof(options->region), err);
    if (r == 0 && options->endpoint[0] == '\0')
        r = copy_field("endpoint", env_first(env, endpoints, ""), options->endpoint,
                       sizeof(options->endpoint), err);
    if (r == 0 && options->region[strspn(options->region, "abcdefghijklmnopqrstuvwxyz0123456789-")])
        r = err_set(err, ERR_USAGE, "region '%.60s' of the blob store is no region's name",
                    options->region);
    if (r < 0)
        return r;
    if (options->endpoint[0] == '\0')
        (void)snprintf(options->endpoint, sizeof(options->endpoint), "https://s3.%s.amazonaws.com",
                       options->region);
    if (user == NULL || user[0] == '\0' || secret == NULL || secret[0] == '\0')
        return err_set(err, ERR_USAGE,
                       "the blob store is S3 and there are no credentials: set AWS_ACCESS_KEY_ID "
                       "and AWS_SECRET_ACCESS_KEY");
    options->user = xstrdup(user);
    options->secret = xstrdup(secret);
    options->token = token == NULL || token[0] == '\0' ? NULL : xstrdup(token);
    return 0;
}

int blob_s3_options_read(const char *url, blob_s3_env *env, struct blob_s3_options *ret_options,
                         struct err *err)
{
    OWNED(blob_s3_options_done)
    struct blob_s3_options options = {.spool = "/var/tmp",
                                      .part_size = (uint64_t)PART_MIB_DEFAULT << 20};
    OWNED(mem_free) struct http_target *target = xcalloc(1, sizeof(*target));
    OWNED(mem_free) char *rest = NULL;
    const char *bucket = url + strlen("s3://");
    size_t size = strcspn(bucket, "/?");
    int r;

    if (memchr(bucket, '@', size) != NULL)
        return err_set(err, ERR_USAGE,
                       "the blob store's URL has credentials in it: set "
                       "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead");
    rest = xasprintf("%s%s", bucket[size] == '/' ? "" : "/", bucket + size);
    r = read_bucket(bucket, size, &options, err);
    if (r == 0 && http_target_parse(rest, target, err) < 0)
        r = err->code = ERR_USAGE;
    if (r == 0)
        r = read_prefix(target, &options, err);
    for (size_t i = 0; r == 0 && i < target->field_count; i++)
        r = read_field(target->fields[i].name, target->fields[i].value, &options, err);
    if (r == 0 && options.spool[0] != '/')
        r = err_set(err, ERR_USAGE, "spool '%.100s' of the blob store is not an absolute path",
                    options.spool);
    if (r == 0)
        r = read_environment(env, &options, err);
    if (r == 0)
        r = check_endpoint(&options, err);
    if (r < 0)
        return r;
    *ret_options = options;
    options = (struct blob_s3_options){0};
    return 0;
}

void blob_s3_options_done(struct blob_s3_options *options)
{
    mem_free(&options->user);
    mem_free(&options->secret);
    mem_free(&options->token);
}
