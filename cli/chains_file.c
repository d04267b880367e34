/* SPDX-License-Identifier: Apache-2.0 */

/* What `headrace chains` reads: files, and inputs of runs. */

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "brokers/jq.h"
#include "cli/chains.h"
#include "schema/chain.h"
#include "schema/yaml_json.h"

#define INPUT_SIZE_MAX (16u << 20)

int chains_file_read(const char *path, struct buf *to, struct err *err)
{
    int fd = strcmp(path, "-") == 0 ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = 1;

    if (fd < 0)
        return err_set_errno(err, ERR_USAGE, "open %s", path);
    while (n > 0 && !to->failed) {
        char bytes[65536];

        n = read(fd, bytes, sizeof(bytes));
        if (n > 0)
            buf_append(to, bytes, (size_t)n);
    }
    (void)close(fd);
    if (n < 0)
        return err_set_errno(err, ERR_IO, "read %s", path);
    return buf_check(to, path, err);
}

int chains_read(const char *path, json_t **ret_json, size_t *ret_steps, struct err *err)
{
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(YAML_SIZE_MAX);
    OWNED(chain_free) struct chain *chain = NULL;
    OWNED(client_json_free) json_t *json = NULL;
    int r = chains_file_read(path, &text, err);

    if (r == 0)
        r = yaml_json_parse(path, buf_text(&text), text.size, &json, err);
    if (r == 0)
        r = chain_parse(json, &chain, err);
    if (r == 0)
        r = jq_check(chain, err);
    if (r < 0)
        return r;
    *ret_steps = chain->step_count;
    *ret_json = TAKE(json);
    return 0;
}

int chains_input(const char *input, json_t **ret_json, struct err *err)
{
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(INPUT_SIZE_MAX);
    json_error_t where;
    int r = 0;

    if (input[0] == '@' || strcmp(input, "-") == 0)
        r = chains_file_read(input[0] == '@' ? input + 1 : input, &text, err);
    else
        buf_append_text(&text, input);
    if (r < 0)
        return r;
    *ret_json = json_loadb(buf_text(&text), text.size, JSON_DECODE_ANY, &where);
    return *ret_json != NULL
               ? 0
               : err_set(err, ERR_USAGE, "--input is no JSON: line %d: %s", where.line, where.text);
}
