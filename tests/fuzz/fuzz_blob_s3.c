/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: whatever a server answers where S3 answers XML, reading it ends, texts end, and a listed
 * key is one of ours. Method: the same bytes as each of the three answers. */

#include <string.h>

#include "base/assert.h"
#include "brokers/blob_s3_answer.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void check_list(const uint8_t *bytes, size_t size, bool folders)
{
    struct blob_list list = {0};
    struct err err;

    if (blob_s3_read_list(bytes, size, "p/", folders, &list, &err) == 0 && list.count > 0)
        assert(list.last[0] != '\0');
    for (size_t i = 0; i < list.count; i++)
        assert(blob_key_check(list.entries[i].key, &err) == 0);
    assert(strnlen(list.last, sizeof(list.last)) < sizeof(list.last));
    blob_list_done(&list);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    char id[BLOB_S3_UPLOAD_ID_SIZE];
    struct blob_s3_error error;
    struct err err;

    if (blob_s3_read_error(bytes, size, &error))
        assert(strnlen(error.code, sizeof(error.code)) < sizeof(error.code));
    if (blob_s3_read_upload_id(bytes, size, id, &err) == 0)
        assert(id[0] != '\0' && strnlen(id, sizeof(id)) < sizeof(id));
    check_list(bytes, size, false);
    check_list(bytes, size, true);
    return 0;
}
