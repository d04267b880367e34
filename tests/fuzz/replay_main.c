/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Runs a fuzz target over the files of a folder, for builds without libFuzzer: the committed seeds
 * and every input that once broke something stay tests under gcc and its sanitizers too.
 */

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>

#include "base/buf.h"

#define REPLAY_BYTES_MAX (16u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static int replay_file(const char *folder, const char *name)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", folder, name);
    OWNED(buf_done) struct buf input = BUF_WITH_LIMIT(REPLAY_BYTES_MAX);
    FILE *file = fopen(path, "rb");
    char part[4096];
    size_t n;

    if (file == NULL)
        return -1;
    while ((n = fread(part, 1, sizeof(part), file)) > 0)
        buf_append(&input, part, n);
    (void)fclose(file);
    (void)LLVMFuzzerTestOneInput(input.bytes, input.size);
    return 0;
}

int main(int argc, char **argv)
{
    int count = 0;

    for (int i = 1; i < argc; i++) {
        DIR *folder = opendir(argv[i]);
        struct dirent *entry;

        if (folder == NULL) {
            (void)fprintf(stderr, "%s: cannot be opened\n", argv[i]);
            return 1;
        }
        while ((entry = readdir(folder)) != NULL) {
            if (entry->d_name[0] != '.' && replay_file(argv[i], entry->d_name) == 0)
                count++;
        }
        (void)closedir(folder);
    }
    (void)printf("%d inputs replayed\n", count);
    return count > 0 ? 0 : 1;
}
