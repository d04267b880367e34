/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: each engine gets its host program, and a host that this machine lacks is named with what
 * was looked for. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "workers/engine_host.h"

static void test_each_engine_has_its_host(void **state)
{
    static const struct {
        const char *engine, *command, *operand;
        enum engine_host_kind kind;
    } rows[] = {
        {"encoder", "host-c", "engines", ENGINE_HOST_C},
        {"sim", "host-c", "engines", ENGINE_HOST_C},
        {"server", "host-server", NULL, ENGINE_HOST_SERVER},
        {"chain", "host-chain", NULL, ENGINE_HOST_CHAIN},
        {"training", "host-training", NULL, ENGINE_HOST_TRAINING},
        {"servers", "host-c", "engines", ENGINE_HOST_C},
        {"", "host-c", "engines", ENGINE_HOST_C},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(engine_host_done) struct engine_host host = {0};
        struct err err;

        assert_int_equal(engine_host_find(rows[i].engine, "engines", &host, &err), 0);
        assert_int_equal(host.kind, rows[i].kind);
        assert_string_equal(host.argv[1], rows[i].command);
        if (rows[i].operand == NULL)
            assert_null(host.argv[2]);
        else
            assert_string_equal(host.argv[2], rows[i].operand);
        assert_int_equal(access(host.path, X_OK), 0);
    }
    assert_int_equal(engine_host_kind("python"), ENGINE_HOST_PY);
}

/* The program that starts fast is beside this one, as it is beside the binary. */
static void test_what_starts_often_starts_fast(void **state)
{
    OWNED(engine_host_done) struct engine_host native = {0}, python = {0}, chain = {0};
    const struct engine_confine how = {.level = CONFINE_STRICT,
                                       .dir = "/m",
                                       .read = "",
                                       .group = "",
                                       .settings_json = "{}",
                                       .gateway = ""};
    struct err err;

    (void)state;
    assert_int_equal(engine_host_find("sim", "", &native, &err), 0);
    assert_string_equal(strrchr(native.path, '/'), "/headrace-host");
    assert_int_equal(engine_host_find("chain", "", &chain, &err), 0);
    assert_string_equal(chain.path, "/proc/self/exe");
    if (engine_host_find("python", "", &python, &err) < 0)
        return; /* none on this machine */
    engine_host_confine(&python, &how);
    assert_string_equal(strrchr(python.argv[3], '/'), "/headrace-host");
    assert_string_equal(python.argv[4], "confine");
    assert_string_equal(python.argv[5], "--level=strict");
    assert_string_equal(python.argv[6], "--tried"); /* the worker has */
}

static void test_no_python_is_said(void **state)
{
    OWNED(mem_free) char *path = xstrdup(getenv("PATH"));
    struct engine_host host = {0};
    struct err err;

    (void)state;
    assert_int_equal(setenv("PATH", "/nowhere", 1), 0);
    assert_int_equal(engine_host_find("python", "", &host, &err), ERR_DEPENDENCY);
    assert_non_null(strstr(err.text, "python3, which is not in PATH"));
    assert_int_equal(setenv("PATH", path, 1), 0);
    assert_null(host.path);
}

static void test_the_network_is_as_the_settings_ask(void **state)
{
    static const struct {
        enum engine_host_kind kind;
        enum confine_level level;
        const char *settings, *network;
    } rows[] = {
        {ENGINE_HOST_PY, CONFINE_STRICT, "{}", "out"},
        {ENGINE_HOST_PY, CONFINE_BASIC, "{\"network\": \"none\"}", "none"},
        {ENGINE_HOST_SERVER, CONFINE_STRICT, "{}", "none"},
        {ENGINE_HOST_SERVER, CONFINE_STRICT, "{\"network\": \"out\"}", "host"},
        {ENGINE_HOST_SERVER, CONFINE_BASIC, "{}", "host"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        assert_string_equal(engine_host_network(rows[i].kind, rows[i].level, rows[i].settings),
                            rows[i].network);
}

static bool has_word(const struct engine_host *host, const char *word)
{
    for (size_t i = 0; host->argv[i] != NULL; i++) {
        if (strcmp(host->argv[i], word) == 0)
            return true;
    }
    return false;
}

/* Files of training jobs stand where the deployment looks for them, if it names any. */
static void test_checkpoints_are_bound_at_their_place(void **state)
{
    static const struct {
        const char *engine, *settings;
        bool bound;
    } rows[] = {
        {"server", "{\"checkpoint_folder\": \"/c\"}", true},
        {"server", "{}", false},
        {"python",
         "{\"truss\": {\"training_checkpoints\": {\"download_folder\": \"/c\", "
         "\"artifact_references\": [{}]}}}",
         true},
        {"python",
         "{\"truss\": {\"training_checkpoints\": {\"download_folder\": \"/c\", "
         "\"artifact_references\": []}}}",
         false},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct engine_confine how = {.level = CONFINE_STRICT,
                                           .dir = "/models/a",
                                           .read = "",
                                           .group = "g",
                                           .settings_json = rows[i].settings,
                                           .gateway = ""};
        struct engine_host host;
        struct err err;

        assert_int_equal(engine_host_find(rows[i].engine, "", &host, &err), 0);
        engine_host_confine(&host, &how);
        assert_int_equal(has_word(&host, "--bind=/models/a/training_checkpoints=/c"),
                         rows[i].bound);
        engine_host_done(&host);
    }
}

/* An upgrade puts another file in the place of the binary while it runs. */
static void test_a_binary_that_was_replaced_is_still_found(void **state)
{
    char folder[] = "/tmp/headrace-test-XXXXXX";
    OWNED(mem_free) char *copy = NULL, *command = NULL;
    char said[2][PATH_MAX];
    FILE *from;

    (void)state;
    assert_non_null(mkdtemp(folder));
    copy = xasprintf("%s/copy", folder);
    command = xasprintf("cp /proc/%d/exe %s.new && mv %s.new %s && %s %s && rm -r %s",
                        (int)getpid(), copy, copy, copy, copy, copy, folder);
    from = popen(command, "r");
    assert_non_null(from);
    for (size_t i = 0; i < COUNT_OF(said); i++) {
        assert_non_null(fgets(said[i], PATH_MAX, from));
        said[i][strcspn(said[i], "\n")] = '\0';
    }
    assert_int_equal(pclose(from), 0);
    assert_string_equal(said[0], copy);
    assert_string_equal(said[1], copy);
}

/* What the copy does: it says its name, replaces itself, and says its name again. */
static int be_replaced(const char *copy)
{
    OWNED(mem_free)
    char *command = xasprintf("cp %s %s.new && mv %s.new %s", copy, copy, copy, copy);

    for (int i = 0; i < 2; i++) {
        char path[PATH_MAX];
        struct err err;

        if (engine_host_binary(path, sizeof(path), &err) < 0 || puts(path) == EOF)
            return 1;
        (void)fflush(stdout);
        if (i == 0 && pclose(popen(command, "r")) != 0)
            return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2)
        return be_replaced(argv[1]);

    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_engine_has_its_host),
        cmocka_unit_test(test_what_starts_often_starts_fast),
        cmocka_unit_test(test_no_python_is_said),
        cmocka_unit_test(test_the_network_is_as_the_settings_ask),
        cmocka_unit_test(test_checkpoints_are_bound_at_their_place),
        cmocka_unit_test(test_a_binary_that_was_replaced_is_still_found),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
