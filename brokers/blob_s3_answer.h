/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What an S3 server says in XML: pure, bytes in, fields out. Document types and entities of their
 * own are refused; texts are cut at the size of their field.
 *
 * Thread: any.   Tests: tests/unit/test_blob_s3.c, tests/fuzz/fuzz_blob_s3.c
 */

#include "brokers/blob.h"

#define BLOB_S3_UPLOAD_ID_SIZE 1024

struct blob_s3_error {
    char code[64], message[200];
};

/* True when the answer is an <Error>: also a 200 can be one, when it took long to make. */
bool blob_s3_read_error(const void *bytes, size_t size, struct blob_s3_error *ret_error);

int blob_s3_read_upload_id(const void *bytes, size_t size, char to[BLOB_S3_UPLOAD_ID_SIZE],
                           struct err *err) MUST_CHECK;

/* Adds what is listed, without the prefix; keys that can be none of ours are left out, and `last`
 * knows them all the same. folders: the common prefixes instead, without the slash at their end. */
int blob_s3_read_list(const void *bytes, size_t size, const char *prefix, bool folders,
                      struct blob_list *list, struct err *err) MUST_CHECK;
