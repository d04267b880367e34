/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_tags.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

int tag_check(const char *tag, size_t size, struct err *err)
{
    if (size == 0 || size > TAG_SIZE_MAX)
        return err_set(err, ERR_RANGE, "a tag has %zu bytes; it must have 1 to %d", size,
                       TAG_SIZE_MAX);
    for (size_t i = 0; i < size; i++) {
        if (!isalnum((unsigned char)tag[i]) && strchr("._:/=@+-", tag[i]) == NULL)
            return err_set(err, ERR_RANGE,
                           "tag '%.*s' may hold letters, digits and . _ : / = @ + - only",
                           (int)size, tag);
    }
    return 0;
}

static int tag_compare(const void *a, const void *b)
{
    return strcmp(a, b);
}

int tags_read(const char *header, char ret_tags[TAGS_SIZE], struct err *err)
{
    char tags[TAGS_MAX][TAG_SIZE_MAX + 1] = {{0}};
    const char *at = header == NULL ? "" : header;
    size_t count = 0, used = 0;

    ret_tags[0] = '\0';
    while (*at != '\0') {
        size_t size;
        int r;

        at += strspn(at, " \t,");
        if (*at == '\0')
            break;
        size = strcspn(at, ",");
        while (size > 0 && (at[size - 1] == ' ' || at[size - 1] == '\t'))
            size--;
        r = tag_check(at, size, err);
        if (r < 0)
            return err_wrap(err, "X-Headrace-Tags");
        if (count == TAGS_MAX)
            return err_set(err, ERR_RANGE, "X-Headrace-Tags has more than %d tags", TAGS_MAX);
        memcpy(tags[count++], at, size);
        at += strcspn(at, ",");
    }
    qsort(tags, count, sizeof(tags[0]), tag_compare);
    for (size_t i = 0; i < count; i++) {
        size_t size = strlen(tags[i]);

        if (i > 0 && strcmp(tags[i], tags[i - 1]) == 0)
            continue;
        if (used > 0)
            ret_tags[used++] = ',';
        memcpy(ret_tags + used, tags[i], size + 1);
        used += size;
    }
    return 0;
}
