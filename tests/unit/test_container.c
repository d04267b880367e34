/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: the command line of Docker and of Podman for each thing that a container is given, and
 * nothing that a user names is taken for an option of theirs. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "workers/container.h"

static char docker_path[] = "/usr/bin/docker", podman_path[] = "/usr/bin/podman";
static const struct container_tool docker = {
    .program = docker_path, .has_init = true, .file_count_max = 1024, .process_count_max = 4096};
static const struct container_tool podman = {
    .program = podman_path, .is_podman = true, .file_count_max = 1024, .process_count_max = 4096};

static void assert_words(const struct container_run *run, const char *wanted)
{
    OWNED(container_words_done) struct container_words line = {0};
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(8192);
    struct err err;

    assert_int_equal(container_run_words(run, &line, &err), 0);
    for (size_t i = 0; i < line.count; i++)
        buf_printf(&text, "%s%s", i == 0 ? "" : " ", line.words[i]);
    assert_null(line.words[line.count]);
    assert_string_equal(buf_text(&text), wanted);
}

#define ALWAYS "--log-driver=none "
#define SAFE "--security-opt=no-new-privileges --stop-timeout=0 "

static void test_a_server(void **state)
{
    static const struct container_mount mounts[] = {{"/models/m", "/app", true}};
    static const char *const env[] = {"PORT=8000", "A=b c"};
    static const char *const command[] = {"/bin/sh", "-c", "serve --fast", NULL};
    struct container_run run = {.tool = &docker,
                                .image = "vllm/vllm-openai:v0.9",
                                .name = "headrace-server-7-1",
                                .user = "1000",
                                .publish = "127.0.0.1:33001:8000",
                                .init = true,
                                .mounts = mounts,
                                .mount_count = 1,
                                .env = env,
                                .env_count = 2};

    (void)state;
    assert_words(&run, "headrace confine --level=off --kept-by=/usr/bin/docker "
                       "--kept-container=headrace-server-7-1 -- /usr/bin/docker run "
                       "--name=headrace-server-7-1 " ALWAYS "--init " SAFE
                       "--publish=127.0.0.1:33001:8000 --volume=/models/m:/app:ro --env=PORT=8000 "
                       "--env=A=b c --user=1000 vllm/vllm-openai:v0.9");
    run.tool = &podman; /* this one has no init */
    run.command = command;
    assert_words(&run, "headrace confine --level=off --kept-by=/usr/bin/podman "
                       "--kept-container=headrace-server-7-1 -- /usr/bin/podman run "
                       "--name=headrace-server-7-1 " ALWAYS SAFE
                       "--publish=127.0.0.1:33001:8000 --ulimit=nofile=1024:1024 "
                       "--ulimit=nproc=4096:4096 --volume=/models/m:/app:ro --env=PORT=8000 "
                       "--env=A=b c --user=1000 --entrypoint=/bin/sh vllm/vllm-openai:v0.9 -c "
                       "serve --fast");
}

static void test_a_node(void **state)
{
    static const struct container_mount mounts[] = {
        {"/t/jobs/j/workspace", "/b10/workspace", false}, {"/data", "/data", true}};
    static const uint32_t gpus[] = {2, 5};
    static const char *const command[] = {"/bin/sh", "/mnt/bt-scratch/.start", NULL};
    struct container_run run = {.tool = &docker,
                                .image = "localhost:5000/me/train@sha256:ab",
                                .name = "headrace-train-j-1-0",
                                .owner = "/t/jobs",
                                .user = "0:0",
                                .workdir = "/b10/workspace",
                                .fetched = true,
                                .mounts = mounts,
                                .mount_count = 2,
                                .memory_size = 1 << 30,
                                .process_count = 64,
                                .gpus = gpus,
                                .gpu_count = 2,
                                .command = command};

    (void)state;
    assert_words(&run,
                 "headrace confine --level=off --kept-by=/usr/bin/docker "
                 "--kept-container=headrace-train-j-1-0 -- /usr/bin/docker run "
                 "--name=headrace-train-j-1-0 --label=headrace.owner=/t/jobs " ALWAYS
                 "--pull=never " SAFE "--network=host --memory=1073741824 "
                 "--memory-swap=1073741824 --shm-size=1073741824 --pids-limit=64 "
                 "--gpus=\"device=2,5\" --volume=/t/jobs/j/workspace:/b10/workspace "
                 "--volume=/data:/data:ro --user=0:0 --workdir=/b10/workspace "
                 "--entrypoint=/bin/sh localhost:5000/me/train@sha256:ab /mnt/bt-scratch/.start");
    run.tool = &podman;
    run.memory_size = run.process_count = 0;
    run.mount_count = 0;
    assert_words(&run, "headrace confine --level=off --kept-by=/usr/bin/podman "
                       "--kept-container=headrace-train-j-1-0 -- /usr/bin/podman run "
                       "--name=headrace-train-j-1-0 --label=headrace.owner=/t/jobs " ALWAYS
                       "--pull=never " SAFE "--network=host --ulimit=nofile=1024:1024 "
                       "--ulimit=nproc=4096:4096 --device=nvidia.com/gpu=2 "
                       "--device=nvidia.com/gpu=5 --user=0:0 --workdir=/b10/workspace "
                       "--entrypoint=/bin/sh localhost:5000/me/train@sha256:ab "
                       "/mnt/bt-scratch/.start");
}

static void test_another_command(void **state)
{
    static const char *const words[] = {"pull", "--quiet", "a:1", NULL};
    static const char *const wanted[] = {"headrace",        "confine", "--level=off", "--",
                                         "/usr/bin/podman", "pull",    "--quiet",     "a:1"};
    OWNED(container_words_done) struct container_words line = {0};

    (void)state;
    container_call_words(&podman, words, &line);
    assert_int_equal(line.count, COUNT_OF(wanted));
    for (size_t i = 0; i < line.count; i++)
        assert_string_equal(line.words[i], wanted[i]);
    assert_null(line.words[line.count]);
}

static void test_names_of_images(void **state)
{
    static const char *const good[] = {"a", "pytorch/pytorch:2.7.0", "localhost:5000/x/y_z:1-a",
                                       "Reg.example/x@sha256:00ff"};
    static const char *const bad[] = {"",    "-v",   "--privileged", "a b", "a\n",
                                      "a;b", "$(x)", "/a",           ":1"};
    char size_max[CONTAINER_IMAGE_MAX + 2];
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(good); i++)
        assert_int_equal(container_image_check(good[i], &err), 0);
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        assert_int_equal(container_image_check(bad[i], &err), ERR_RANGE);
        assert_non_null(strstr(err.text, "is no name of an image"));
    }
    memset(size_max, 'a', sizeof(size_max));
    size_max[CONTAINER_IMAGE_MAX] = '\0';
    assert_int_equal(container_image_check(size_max, &err), 0);
    size_max[CONTAINER_IMAGE_MAX] = 'a';
    size_max[CONTAINER_IMAGE_MAX + 1] = '\0';
    assert_int_equal(container_image_check(size_max, &err), ERR_RANGE);
}

/* The keeper and the host that it keeps make the same name, each by itself. */
static void test_the_name_of_a_server(void **state)
{
    OWNED(mem_free) char *plain = container_name_of("headrace-train-1", getpid());
    OWNED(mem_free) char *here = container_name_of(CONTAINER_OF_SERVER, getpid());
    OWNED(mem_free) char *again = container_name_of(CONTAINER_OF_SERVER, getpid());
    OWNED(mem_free) char *wanted = xasprintf("headrace-server-%d-", (int)getpid());

    (void)state;
    assert_string_equal(plain, "headrace-train-1");
    assert_string_equal(here, again);
    assert_int_equal(strncmp(here, wanted, strlen(wanted)), 0);
    assert_true(strlen(here) > strlen(wanted) && strchr(here, '@') == NULL);
}

static void test_folders_that_cannot_be_named(void **state)
{
    static const struct container_mount mounts[] = {{"/a:b", "/x", false}};
    OWNED(container_words_done) struct container_words line = {0};
    const struct container_run run = {
        .tool = &docker, .image = "a", .name = "n", .mounts = mounts, .mount_count = 1};
    struct err err;

    (void)state;
    assert_int_equal(container_run_words(&run, &line, &err), ERR_RANGE);
    assert_string_equal(err.text, "'/a:b' has a colon, and a container cannot have it");
}

/* What is left over is removed by force, so only what is an id, whole, is taken for one. */
static void test_ids(void **state)
{
#define ID_A "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define ID_B "ffff456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    char text[] = "6789abcdef\nWARN[0000] \"/\" is not a shared mount\n" ID_A "\r\n\n" ID_B
                  "\n0123456789AB\n" ID_A "0\n";
    const char *ids[4] = {NULL};

    (void)state;
    assert_int_equal(container_ids(text, ids, COUNT_OF(ids)), 2);
    assert_string_equal(ids[0], ID_A);
    assert_string_equal(ids[1], ID_B);
    assert_int_equal(container_ids((char[]){""}, ids, COUNT_OF(ids)), 0);
    assert_int_equal(container_ids((char[]){ID_A "\n" ID_B}, ids, 1), 1);
}

static void tool_put(const char *folder, const char *name)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", folder, name);

    assert_int_equal(symlink("/bin/true", path), 0);
}

static void tool_remove(const char *folder, const char *name)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", folder, name);

    assert_int_equal(unlink(path), 0);
}

/* In a folder that is all of PATH. */
static void test_which_is_here(void **state)
{
    char folder[] = "/tmp/headrace-tools-XXXXXX";
    struct container_tool tool;

    (void)state;
    assert_non_null(mkdtemp(folder));
    (void)setenv("PATH", folder, 1);
    (void)unsetenv("DOCKER_HOST");
    container_find(&tool);
    assert_null(tool.program);
    assert_string_equal(container_tool_name(&tool), "");

    tool_put(folder, "podman");
    container_find(&tool);
    assert_string_equal(container_tool_name(&tool), "podman");
    container_tool_done(&tool);

    tool_put(folder, "docker");
    (void)setenv("DOCKER_HOST", "tcp://127.0.0.1:1", 1); /* who says so is believed */
    container_find(&tool);
    assert_string_equal(container_tool_name(&tool), "docker");
    container_tool_done(&tool);
    tool_remove(folder, "docker");
    tool_remove(folder, "podman");
    assert_int_equal(rmdir(folder), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_server),
        cmocka_unit_test(test_a_node),
        cmocka_unit_test(test_another_command),
        cmocka_unit_test(test_names_of_images),
        cmocka_unit_test(test_the_name_of_a_server),
        cmocka_unit_test(test_folders_that_cannot_be_named),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_which_is_here),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
