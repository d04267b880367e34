/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One pass as launches on a stream, in bert.h's order:
 *
 *     embed_norm -> x
 *     a layer: x -> qkv -> attention -> context -> (qkv's place) -> add_norm x
 *              x -> up [activate] -> (context's place) -> add_norm x
 *     embed:    x -> pool -> rows
 *     classify: x -> first rows (context's place) -> dense (qkv's place) [activate] -> rows
 *     tokens:   x -> rows
 *
 * The first time a pass is met it is launched as it is, so that what CUDA and its libraries load
 * when they are first called is there; the second time it is captured.
 */

#include "base/assert.h"
#include "base/log.h"
#include "workers/engines/encoder_cuda/bert_cuda_int.h"
#include "workers/engines/encoder_cuda/device_error.h"

static void *weight_at(const struct bert_cuda *bert, enum bert_role role, uint32_t layer)
{
    return bert->dev_weights + run_plan_weight(&bert->plan, role, layer)->at;
}

static struct kernel_norm norm_of(const struct bert_cuda *bert, enum bert_role gain, uint32_t layer)
{
    return (struct kernel_norm){
        .gain = weight_at(bert, gain, layer),
        .bias = weight_at(bert, gain + 1, layer),
        .hidden = bert->config.hidden,
        .eps = bert->config.norm_eps,
    };
}

static enum kernel_cell cell_of(const struct bert_cuda *bert)
{
    return bert->bf16 ? KERNEL_BF16 : KERNEL_F32;
}

/* A step of the model: what it is multiplied with, and from where to where in the slot. */
struct step {
    enum cuda_product kind;
    enum bert_role weight; /* its bias is the next role */
    uint32_t layer;
    size_t from, to;
};

static int multiply(struct bert_cuda *bert, const struct cuda_slot *slot, uint32_t row_count,
                    const struct step *step, bool only_prepare, struct err *err)
{
    const struct product_memory memory = {
        .x = bert->dev_slots + step->from,
        .weight = weight_at(bert, step->weight, step->layer),
        .bias = weight_at(bert, step->weight + 1, step->layer),
        .y = bert->dev_slots + step->to,
        .workspace = bert->dev_slots + slot->at->workspace,
    };

    if (only_prepare)
        return product_prepare(bert->kinds[step->kind], row_count, &memory, err);
    return product_run(bert->kinds[step->kind], row_count, &memory, slot->stream, err);
}

static int embed(const struct bert_cuda *bert, const struct cuda_slot *slot, uint32_t row_count,
                 struct err *err)
{
    const struct kernel_norm norm = norm_of(bert, BERT_ROLE_GAIN, 0);
    const struct kernel_embed embed = {
        .words = weight_at(bert, BERT_ROLE_WORDS, 0),
        .positions = weight_at(bert, BERT_ROLE_POSITIONS, 0),
        .step = bert->plan.step.count > 0 ? bert->dev_weights + bert->plan.step.at : NULL,
        .ids = (const uint32_t *)(const void *)(bert->dev_slots + slot->at->ids),
        .places = (const uint32_t *)(const void *)(bert->dev_slots + slot->at->places),
        .x = bert->dev_slots + slot->at->x,
        .row_count = row_count,
        .cell = cell_of(bert),
    };

    CUDA_TRY(kernel_embed_norm(&embed, &norm, slot->stream), err);
    return 0;
}

static int attend(struct bert_cuda *bert, const struct cuda_slot *slot, const struct pass *pass,
                  struct err *err)
{
    const struct attention_memory memory = {
        .qkv = bert->dev_slots + slot->at->qkv,
        .out = bert->dev_slots + slot->at->context,
        .index = bert->dev_slots + slot->at->index,
        .workspace = bert->dev_slots + slot->at->attention,
    };

    return attention_run(bert->attention, &pass->turn, &memory, slot->stream, err);
}

static int add_norm(const struct bert_cuda *bert, const struct cuda_slot *slot, uint32_t row_count,
                    size_t y, enum bert_role gain, uint32_t layer, struct err *err)
{
    const struct kernel_norm norm = norm_of(bert, gain, layer);

    CUDA_TRY(kernel_add_norm(bert->dev_slots + slot->at->x, bert->dev_slots + y, row_count,
                             cell_of(bert), &norm, slot->stream),
             err);
    return 0;
}

static int activate(const struct bert_cuda *bert, const struct cuda_slot *slot, size_t y,
                    uint64_t count, enum kernel_activation activation, struct err *err)
{
    CUDA_TRY(kernel_activate(bert->dev_slots + y, count, cell_of(bert), activation, slot->stream),
             err);
    return 0;
}

static int run_layer(struct bert_cuda *bert, const struct cuda_slot *slot, const struct pass *pass,
                     uint32_t layer, struct err *err)
{
    const struct run_slot *at = slot->at;
    const uint32_t rows = pass->row_count;
    const struct step qkv = {CUDA_PRODUCT_QKV, BERT_ROLE_Q, layer, at->x, at->qkv};
    const struct step out = {CUDA_PRODUCT_OUT, BERT_ROLE_OUT, layer, at->context, at->qkv};
    const struct step up = {CUDA_PRODUCT_UP, BERT_ROLE_UP, layer, at->x, at->up};
    const struct step down = {CUDA_PRODUCT_DOWN, BERT_ROLE_DOWN, layer, at->up, at->context};
    int r;

    r = multiply(bert, slot, rows, &qkv, false, err);
    if (r == 0)
        r = attend(bert, slot, pass, err);
    if (r == 0)
        r = multiply(bert, slot, rows, &out, false, err);
    if (r == 0)
        r = add_norm(bert, slot, rows, at->qkv, BERT_ROLE_OUT_NORM_GAIN, layer, err);
    if (r == 0)
        r = multiply(bert, slot, rows, &up, false, err);
    if (r == 0 && bert_cuda_has_gelu_kernel(bert))
        r = activate(bert, slot, at->up, (uint64_t)rows * bert->config.intermediate,
                     bert->config.activation == ENCODER_GELU ? KERNEL_GELU : KERNEL_GELU_TANH, err);
    if (r == 0)
        r = multiply(bert, slot, rows, &down, false, err);
    if (r == 0)
        r = add_norm(bert, slot, rows, at->context, BERT_ROLE_DOWN_NORM_GAIN, layer, err);
    return r;
}

static struct kernel_pool pool_of(const struct bert_cuda *bert, const struct cuda_slot *slot,
                                  const struct pass *pass)
{
    return (struct kernel_pool){
        .x = bert->dev_slots + slot->at->x,
        .offsets = (const uint32_t *)(const void *)(bert->dev_slots + slot->at->offsets),
        .rows = (float *)(void *)(bert->dev_slots + slot->at->rows),
        .text_count = pass->text_slots,
        .hidden = bert->config.hidden,
        .mean = bert->config.pooling == ENCODER_POOL_MEAN,
        .normalize = bert->config.normalize,
        .cell = cell_of(bert),
    };
}

static int classify(struct bert_cuda *bert, const struct cuda_slot *slot, const struct pass *pass,
                    struct err *err)
{
    const struct run_slot *at = slot->at;
    const struct kernel_pool first = pool_of(bert, slot, pass);
    const struct step dense = {CUDA_PRODUCT_DENSE, BERT_ROLE_DENSE, 0, at->context, at->qkv};
    const struct step labels = {CUDA_PRODUCT_LABELS, BERT_ROLE_LABELS, 0, at->qkv, at->rows};
    int r;

    CUDA_TRY(kernel_first_rows(&first, bert->dev_slots + at->context, slot->stream), err);
    r = multiply(bert, slot, pass->text_slots, &dense, false, err);
    if (r == 0 && bert->config.family != ENCODER_FAMILY_DISTILBERT) /* its ReLU is an epilogue */
        r = activate(bert, slot, at->qkv, (uint64_t)pass->text_slots * bert->config.hidden,
                     KERNEL_TANH, err);
    return r == 0 ? multiply(bert, slot, pass->text_slots, &labels, false, err) : r;
}

static int run_end(struct bert_cuda *bert, const struct cuda_slot *slot, const struct pass *pass,
                   struct err *err)
{
    const struct kernel_pool pool = pool_of(bert, slot, pass);
    const struct step labels = {CUDA_PRODUCT_LABELS, BERT_ROLE_LABELS, 0, slot->at->x,
                                slot->at->rows};

    switch (bert->config.head) {
    case ENCODER_HEAD_EMBED:
        CUDA_TRY(kernel_pool_rows(&pool, slot->stream), err);
        return 0;
    case ENCODER_HEAD_CLASSIFY:
        return classify(bert, slot, pass, err);
    case ENCODER_HEAD_TOKENS:
        return multiply(bert, slot, pass->row_count, &labels, false, err);
    case ENCODER_HEAD_MASKED:
        break;
    }
    NEVER("head is out of range; encoder_config_read() sets it");
}

static int launch(struct bert_cuda *bert, const struct cuda_slot *slot, const struct pass *pass,
                  struct err *err)
{
    int r;

    r = embed(bert, slot, pass->row_count, err);
    for (uint32_t i = 0; r == 0 && i < bert->config.layer_count; i++)
        r = run_layer(bert, slot, pass, i, err);
    return r == 0 ? run_end(bert, slot, pass, err) : r;
}

/* Algorithms for all products of the pass, before a capture could meet the question. */
static int prepare(struct bert_cuda *bert, const struct cuda_slot *slot, const struct pass *pass,
                   struct err *err)
{
    const struct run_slot *at = slot->at;
    const struct step steps[CUDA_PRODUCT_COUNT] = {
        [CUDA_PRODUCT_QKV] = {CUDA_PRODUCT_QKV, BERT_ROLE_Q, 0, at->x, at->qkv},
        [CUDA_PRODUCT_OUT] = {CUDA_PRODUCT_OUT, BERT_ROLE_OUT, 0, at->context, at->qkv},
        [CUDA_PRODUCT_UP] = {CUDA_PRODUCT_UP, BERT_ROLE_UP, 0, at->x, at->up},
        [CUDA_PRODUCT_DOWN] = {CUDA_PRODUCT_DOWN, BERT_ROLE_DOWN, 0, at->up, at->context},
        [CUDA_PRODUCT_DENSE] = {CUDA_PRODUCT_DENSE, BERT_ROLE_DENSE, 0, at->context, at->qkv},
        [CUDA_PRODUCT_LABELS] = {CUDA_PRODUCT_LABELS, BERT_ROLE_LABELS, 0, at->qkv, at->rows},
    };
    const bool by_text = bert->config.head == ENCODER_HEAD_CLASSIFY;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < CUDA_PRODUCT_COUNT; i++) {
        const bool of_head = i == CUDA_PRODUCT_DENSE || i == CUDA_PRODUCT_LABELS;

        if (bert->kinds[i] != NULL)
            r = multiply(bert, slot, of_head && by_text ? pass->text_slots : pass->row_count,
                         &steps[i], true, err);
    }
    return r;
}

/* ---- graphs ---- */

static void forget(struct pass_graph *graph)
{
    if (graph->exec != NULL)
        (void)cudaGraphExecDestroy(graph->exec);
    *graph = (struct pass_graph){0};
}

void bert_cuda_forget_graphs(struct cuda_slot *slot)
{
    for (uint32_t i = 0; i < BERT_CUDA_GRAPH_COUNT_MAX; i++)
        forget(&slot->graphs[i]);
}

/* The pass's entry; a new one takes the place of the one that was met longest ago. */
static struct pass_graph *graph_of(struct cuda_slot *slot, const struct pass *pass, bool *ret_new)
{
    struct pass_graph *oldest = &slot->graphs[0];

    *ret_new = false;
    for (uint32_t i = 0; i < BERT_CUDA_GRAPH_COUNT_MAX; i++) {
        struct pass_graph *graph = &slot->graphs[i];

        if (graph->met > 0 && graph->row_count == pass->row_count &&
            graph->text_slots == pass->text_slots && graph->plan == pass->turn.plan)
            return graph;
        if (graph->met < oldest->met)
            oldest = graph;
    }
    forget(oldest);
    oldest->row_count = pass->row_count;
    oldest->text_slots = pass->text_slots;
    oldest->plan = pass->turn.plan;
    *ret_new = true;
    return oldest;
}

static int end_capture(cudaStream_t stream, cudaGraph_t *ret_graph, struct err *err)
{
    CUDA_TRY(cudaStreamEndCapture(stream, ret_graph), err);
    return 0;
}

static int capture(struct bert_cuda *bert, const struct cuda_slot *slot, const struct pass *pass,
                   cudaGraphExec_t *ret_exec, struct err *err)
{
    cudaGraph_t graph = NULL;
    struct err late;
    cudaError_t made;
    int r, end;

    CUDA_TRY(cudaStreamBeginCapture(slot->stream, cudaStreamCaptureModeThreadLocal), err);
    r = launch(bert, slot, pass, err);
    end = end_capture(slot->stream, &graph, &late); /* also of one that failed */
    if (r == 0 && end < 0) {
        *err = late;
        r = end;
    }
    if (r < 0) {
        if (graph != NULL)
            (void)cudaGraphDestroy(graph);
        return r;
    }
    made = cudaGraphInstantiate(ret_exec, graph, 0);
    (void)cudaGraphDestroy(graph);
    CUDA_TRY(made, err);
    return 0;
}

/* Nothing runs in a capture, yet a library whose call it refused says that running failed, which is
 * the word for a lost device too: the stream knows which of the two it is. */
static int check_device(const struct cuda_slot *slot, struct err *err)
{
    (void)cudaGetLastError();
    CUDA_TRY(cudaStreamSynchronize(slot->stream), err);
    return 0;
}

int bert_cuda_pass(struct bert_cuda *bert, struct cuda_slot *slot, const struct pass *pass,
                   struct err *err)
{
    struct pass_graph *graph;
    bool is_new;
    int r;

    graph = graph_of(slot, pass, &is_new);
    graph->met = ++slot->met;
    if (graph->exec == NULL) {
        r = prepare(bert, slot, pass, err);
        if (r < 0)
            return r;
    }
    if (graph->exec == NULL && !is_new && !bert->no_graphs) {
        r = capture(bert, slot, pass, &graph->exec, err);
        if (r < 0) { /* slower, and the same numbers */
            log_warn("cuda_graph_refused", LOG_ERR(err));
            bert->no_graphs = true;
            graph->exec = NULL;
            r = check_device(slot, err);
            if (r < 0)
                return r;
        }
    }
    if (graph->exec == NULL)
        return launch(bert, slot, pass, err);
    CUDA_TRY(cudaGraphLaunch(graph->exec, slot->stream), err);
    return 0;
}
