/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: whatever stands in a chain.yaml is read within its bounds, and a chain that is taken can be
 * planned to its end, whatever its templates make of what they meet. The program that its
 * expressions are made into has room in what carries it; jq itself is not asked here. */

#include <stdlib.h>

#include "base/assert.h"
#include "chains/plan.h"
#include "schema/yaml_json.h"

#define TODOS_MAX 5000

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void run(const struct chain *chain)
{
    static const char output[] = "{\"output\":[1,\"x\",{\"a\":null}],\"a\":2}";
    static const char *const values[] = {"[[[1],[true],[[]]]]", "[[[[1,2]]],[[3]]]",
                                         "[[[],[1,2]]]"};
    OWNED(plan_free) struct plan *plan = NULL;
    struct plan_todo todo;

    plan = plan_new(chain, json_pack("{s:[i,s], s:{}}", "items", 1, "two", "text"), "run");
    for (unsigned i = 0; i < TODOS_MAX && plan_next(plan, &todo); i++) {
        const struct plan_final final = {.state = i % 7 == 3 ? JOB_FAILED : JOB_SUCCEEDED,
                                         .error_class = i % 7 == 3 ? ERROR_CLASS_MODEL_ERROR
                                                                   : ERROR_CLASS_NONE,
                                         .output = {(const uint8_t *)output, sizeof(output) - 1},
                                         .output_is_json = true};

        free(todo.text);
        if (todo.type == PLAN_EVALUATE)
            plan_on_values(plan, todo.step, i % 5 == 4 ? NULL : json_loads(values[i % 3], 0, NULL),
                           NULL);
        if (todo.type == PLAN_WAIT)
            plan_on_waited(plan, todo.step, i % 3 == 0 ? NULL : json_true(), "rejected", "no");
        if (todo.type == PLAN_SUBMIT)
            plan_on_final(plan, todo.step, todo.item, &final);
        assert(todo.type != PLAN_FINISH || !plan_next(plan, &todo));
    }
}

static void check_program(const struct chain *chain)
{
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(8 << 20);
    char explained[64];

    chain_jq_program(&chain->jq, &text);
    for (size_t i = 0; i < chain->jq.expression_count; i++)
        chain_jq_program_of(&chain->jq, i, &text);
    assert(!text.failed);
    chain_jq_explain(buf_text(&text), explained, sizeof(explained));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    OWNED(chain_free) struct chain *chain = NULL;
    json_t *json = NULL;
    struct err err;

    if (yaml_json_parse("chain.yaml", (const char *)bytes, size, &json, &err) < 0)
        return 0;
    if (chain_parse(json, &chain, &err) == 0) {
        run(chain);
        check_program(chain);
    }
    json_decref(json);
    return 0;
}
