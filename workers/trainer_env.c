/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The script of a node: its environment, then its commands one after the other, the first that
 * fails ends it. Values are in the file, which nobody else may read, and not in a command line,
 * which everybody may. The shell survives SIGTERM, so that what it runs has the whole grace.
 */

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "workers/trainer_int.h"

#define SCRIPT_SIZE_MAX (4u << 20)

static void add_export(struct buf *script, const char *name, const char *value)
{
    buf_printf(script, "export %s='", name);
    for (const char *at = value; *at != '\0'; at++) {
        if (*at == '\'')
            buf_append_text(script, "'\\''");
        else
            buf_append_byte(script, (uint8_t)*at);
    }
    buf_append_text(script, "'\n");
}

static void add_place(const struct node *node, struct buf *script, const char *name,
                      enum node_place_id id)
{
    OWNED(mem_free) char *path = node_place(node, id);

    add_export(script, name, path);
}

static void add_number(struct buf *script, const char *name, uint64_t value)
{
    OWNED(mem_free) char *text = xasprintf("%llu", (unsigned long long)value);

    add_export(script, name, text);
}

static bool name_is_fit(const char *name)
{
    return name[0] != '\0' && strchr("0123456789", name[0]) == NULL &&
           strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") ==
               strlen(name);
}

/* The user's own; ours come after them and win. */
static int add_users(const struct node *node, struct buf *script, struct err *err)
{
    json_t *variables = json_object_get(node->spec, "environment_variables"), *value;
    const char *name;

    json_object_foreach(variables, name, value)
    {
        const char *secret = json_string_value(json_object_get(value, "name"));
        const char *text = secret == NULL
                               ? json_string_value(value)
                               : json_string_value(json_object_get(node->secrets, secret));

        if (!name_is_fit(name))
            return err_set(err, ERR_RANGE, "environment_variables: '%.100s' is no name of one",
                           name);
        if (text == NULL)
            return err_set(err, ERR_NOT_FOUND,
                           "environment_variables: %.100s: there is no secret "
                           "'%.100s'",
                           name, secret == NULL ? "" : secret);
        add_export(script, name, text);
    }
    return 0;
}

static void add_gpus(const struct node *node, struct buf *script)
{
    OWNED(buf_done) struct buf list = BUF_WITH_LIMIT(512);

    for (uint32_t i = 0; i < node->gpu_count; i++)
        buf_printf(&list, "%s%u", i == 0 ? "" : ",", node->image == NULL ? node->gpus[i] : i);
    add_export(script, "CUDA_VISIBLE_DEVICES", buf_text(&list)); /* none: none may be used */
    add_number(script, "BT_NUM_GPUS", node->gpu_count);
}

static void add_ours(const struct node *node, struct buf *script)
{
    OWNED(mem_free) char *project = node_cache(node, false);
    OWNED(mem_free) char *team = node_cache(node, true);

    add_export(script, "BT_TRAINING_JOB_ID", node->job_text);
    add_export(script, "BT_TRAINING_JOB_NAME", node->name);
    add_export(script, "BT_TRAINING_PROJECT_ID", node->project);
    add_export(script, "BT_TRAINING_PROJECT_NAME", node->project_name);
    add_place(node, script, "BT_WORKING_DIR", NODE_WORKSPACE);
    add_place(node, script, "BT_SCRATCH_DIR", NODE_SCRATCH);
    add_place(node, script, "TMPDIR", NODE_SCRATCH);
    add_place(node, script, "BT_CHECKPOINT_DIR", NODE_CHECKPOINTS);
    if (node->loaded == NULL)
        add_export(script, "BT_LOAD_CHECKPOINT_DIR", "");
    else
        add_place(node, script, "BT_LOAD_CHECKPOINT_DIR", NODE_LOADED);
    add_export(script, "BT_PROJECT_CACHE_DIR", project);
    add_export(script, "BT_TEAM_CACHE_DIR", team);
    add_export(script, "BT_RW_CACHE_DIR", project);
    add_number(script, "BT_RETRY_COUNT", node->retry_count);
    add_number(script, "BT_GROUP_SIZE", node->node_count);
    add_export(script, "BT_LEADER_ADDR", node->leader);
    add_number(script, "BT_NODE_RANK", node->rank);
    add_export(script, "PYTHONUNBUFFERED", "1");
    add_gpus(node, script);
}

/* In a container: what its cgroup says of it when it ends, since the cgroup ends with it. */
static const char container_end[] =
    "headrace_end() {\n"
    "  for f in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do\n"
    "    [ ! -r $f ] || while read -r k n; do\n"
    "      [ \"$k\" != oom_kill ] || [ \"$n\" = 0 ] || : >%s/" NODE_SHORT_MARK "\n"
    "    done <$f\n"
    "  done\n"
    "}\n"
    "trap headrace_end EXIT\n";

int node_script(const struct node *node, char **ret_path, struct err *err)
{
    OWNED(buf_done) struct buf script = BUF_WITH_LIMIT(SCRIPT_SIZE_MAX);
    OWNED(mem_free) char *path = xasprintf("%s/scratch/" NODE_SCRIPT, node->dir);
    OWNED(mem_free) char *scratch = node_place(node, NODE_SCRATCH);
    json_t *commands = json_object_get(node->spec, "start_commands"), *command;
    size_t i;
    int fd, r;

    buf_append_text(&script, "trap 'exit 143' TERM\n");
    r = add_users(node, &script, err);
    if (r < 0)
        return r;
    add_ours(node, &script);
    if (node->image != NULL)
        buf_printf(&script, container_end, scratch);
    buf_append_text(&script,
                    "rm -f \"$BT_SCRATCH_DIR/" NODE_SCRIPT "\"\ncd \"$BT_WORKING_DIR\" || exit\n");
    json_array_foreach(commands, i, command)
    {
        buf_append_text(&script, "{\n");
        buf_append_text(&script, json_string_value(command));
        buf_append_text(&script, "\n} || exit\n");
    }
    buf_append_text(&script, "exit 0\n");
    r = buf_check(&script, "the start commands", err);
    if (r < 0)
        return r;
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, script.bytes, script.size) != (ssize_t)script.size)
        r = err_set_errno(err, ERR_IO, "write %s", path);
    if (fd >= 0)
        (void)close(fd);
    *ret_path = r < 0 ? NULL : TAKE(path);
    return r;
}
