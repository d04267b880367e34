/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Where an S3 blob store is and who we are there:
 *
 *     s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME&spool=DIRECTORY&part_mib=N]
 *
 *     endpoint   any server that speaks S3, addressed path-style; default AWS_ENDPOINT_URL_S3,
 *                AWS_ENDPOINT_URL, else https://s3.<region>.amazonaws.com
 *     region     default AWS_REGION, AWS_DEFAULT_REGION, else us-east-1
 *     spool      where bytes rest on their way, nameless files; default /var/tmp
 *     part_mib   MiB of one part of a large object, 5 to 1024; default 16
 *
 * Credentials come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if it is set,
 * AWS_SESSION_TOKEN; AWS_CA_BUNDLE names the certificates to trust. A URL with credentials in it
 * is refused: command lines are public. Failures are ERR_USAGE.
 *
 * Thread: any; pure but for the environment, which comes as a function.
 * Tests: tests/unit/test_blob_s3.c
 */

#include <stdint.h>

#include "base/err.h"

struct blob_s3_options {
    char bucket[64], region[64];
    char prefix[64];    /* "", or ends in a slash */
    char endpoint[256]; /* without a slash at its end */
    char spool[256], ca_path[256];
    char *user, *secret, *token; /* token: NULL: none */
    uint64_t part_size;
};

typedef char *blob_s3_env(const char *name); /* getenv(3) */

int blob_s3_options_read(const char *url, blob_s3_env *env, struct blob_s3_options *ret_options,
                         struct err *err) MUST_CHECK;
void blob_s3_options_done(struct blob_s3_options *options);
