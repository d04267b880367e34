/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A model onto a device.
 *
 * Happy path: device memory for the weights; a thread begins with attention's plans, which cuDNN
 * may have to compile, while this one copies the weights; then memory for the slots, whose size
 * attention decides too, and the kinds of products.
 *
 * Failures: nothing of a failed load stays behind; the thread is always joined, because it cannot
 * be stopped, so a load that was told to stop may take as long as one plan does.
 */

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "workers/engines/encoder_cuda/bert_cuda_int.h"
#include "workers/engines/encoder_cuda/device_error.h"
#include "workers/engines/encoder_cuda/weights.h"

#define HEAD_DIM_MAX 128u /* attention.h */

int bert_cuda_check(const struct encoder_config *config, bool bf16, struct err *err)
{
    const uint32_t head_dim = config->hidden / config->head_count;
    char name[64];

    switch (config->family) {
    case ENCODER_FAMILY_BERT:
    case ENCODER_FAMILY_ROBERTA:
    case ENCODER_FAMILY_XLM_ROBERTA:
    case ENCODER_FAMILY_DISTILBERT:
        break;
    case ENCODER_FAMILY_MPNET: /* its distances are not in cuDNN: attention is a kernel's */
        break;
    default:
        return err_set(err, ERR_UNSUPPORTED,
                       "%s is not computed on 'cuda', only on 'cpu'; on 'cuda' are BERT, RoBERTa, "
                       "XLM-RoBERTa, DistilBERT and MPNet",
                       encoder_architecture_name(config, name));
    }
    if (config->hidden % KERNEL_WIDTH_MULTIPLE != 0 || config->hidden > KERNEL_WIDTH_MAX)
        return err_set(err, ERR_UNSUPPORTED,
                       "hidden_size is %u; 'cuda' wants a multiple of %u up to %u", config->hidden,
                       KERNEL_WIDTH_MULTIPLE, KERNEL_WIDTH_MAX);
    if (bf16 && head_dim % 8 != 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "a head has %u numbers; bf16 on 'cuda' wants a multiple of 8, f32 takes any",
                       head_dim);
    if (head_dim > HEAD_DIM_MAX)
        return err_set(err, ERR_UNSUPPORTED, "a head has %u numbers; 'cuda' has %u at most",
                       head_dim, HEAD_DIM_MAX);
    return 0;
}

static struct run_sizes sizes_of(const struct bert_cuda *bert,
                                 const struct bert_cuda_options *options)
{
    return (struct run_sizes){
        .config = &bert->config,
        .bf16 = bert->bf16,
        .token_count_max = options->token_count_max,
        .text_count_max = options->text_count_max,
        .index_size = bert->attention != NULL ? attention_index_size(bert->attention) : 0,
        .attention_size = bert->attention != NULL ? attention_workspace_size(bert->attention) : 0,
    };
}

static void make_plan(struct bert_cuda *bert, const struct bert_cuda_options *options)
{
    const struct run_sizes sizes = sizes_of(bert, options);

    run_plan_done(&bert->plan);
    run_plan_make(&sizes, &bert->plan);
}

/* ---- attention, on a thread of its own ---- */

struct opening {
    struct attention_options options;
    uint32_t ordinal;
    struct attention *attention;
    int code;
    struct err err;
};

static int open_attention(struct opening *opening, struct err *err)
{
    CUDA_TRY(cudaSetDevice((int)opening->ordinal), err); /* a thread has its own current device */
    return attention_open(&opening->options, &opening->attention, err);
}

static void *opening_main(void *opaque)
{
    struct opening *opening = opaque;

    opening->code = open_attention(opening, &opening->err);
    return NULL;
}

static struct opening opening_of(const struct bert_cuda *bert,
                                 const struct bert_cuda_options *options)
{
    return (struct opening){
        .ordinal = bert->ordinal,
        .options =
            {
                .shape =
                    {
                        .head_count = bert->config.head_count,
                        .head_dim = bert->config.hidden / bert->config.head_count,
                        .dtype = bert->bf16 ? ATTENTION_BF16 : ATTENTION_F32,
                        .token_count_max = options->token_count_max,
                        .text_count_max = options->text_count_max,
                        .length_max = bert->config.token_count_max,
                    },
                .plan_dir = options->plan_dir,
                .distances = bert->plan.distances.count > 0
                                 ? (const float *)(const void *)(bert->dev_weights +
                                                                 bert->plan.distances.at)
                                 : NULL,
            },
    };
}

static int fill(struct bert_cuda *bert, const struct safetensors *file,
                const struct bert_cuda_options *options, struct err *err)
{
    const struct weights_from from = {
        .config = &bert->config,
        .file = file,
        .plan = &bert->plan,
        .bf16 = bert->bf16,
        .progress = options->progress,
        .opaque = options->opaque,
    };
    struct opening opening = opening_of(bert, options);
    pthread_t thread;
    int r;

    errno = pthread_create(&thread, NULL, opening_main, &opening);
    if (errno != 0)
        return err_set_errno(err, ERR_MEMORY, "start a thread for attention's plans");
    r = weights_copy(&from, bert->dev_weights, err);
    (void)pthread_join(thread, NULL);
    bert->attention = opening.attention;
    if (r == 0 && opening.code < 0) {
        *err = opening.err;
        r = opening.code;
    }
    return r;
}

/* ---- products and slots ---- */

static enum product_epilogue up_epilogue(const struct bert_cuda *bert)
{
    if (bert_cuda_has_gelu_kernel(bert))
        return PRODUCT_BIAS;
    return bert->config.activation == ENCODER_RELU ? PRODUCT_BIAS_RELU : PRODUCT_BIAS_GELU_TANH;
}

static int open_products(struct bert_cuda *bert, struct err *err)
{
    const struct encoder_config *config = &bert->config;
    const uint32_t hidden = config->hidden, wide = config->intermediate;
    const bool bf16 = bert->bf16, has_dense = config->head == ENCODER_HEAD_CLASSIFY;
    const enum product_epilogue dense = config->family == ENCODER_FAMILY_DISTILBERT
                                            ? PRODUCT_BIAS_RELU
                                            : PRODUCT_BIAS;
    const struct product_shape shapes[CUDA_PRODUCT_COUNT] = {
        [CUDA_PRODUCT_QKV] = {hidden, 3 * hidden, PRODUCT_BIAS, bf16, false},
        [CUDA_PRODUCT_OUT] = {hidden, hidden, PRODUCT_BIAS, bf16, false},
        [CUDA_PRODUCT_UP] = {hidden, wide, up_epilogue(bert), bf16, false},
        [CUDA_PRODUCT_DOWN] = {wide, hidden, PRODUCT_BIAS, bf16, false},
        [CUDA_PRODUCT_DENSE] = {hidden, hidden, dense, bf16, false},
        [CUDA_PRODUCT_LABELS] = {hidden, config->label_count, PRODUCT_BIAS, bf16, true},
    };
    int r;

    if (config->activation > ENCODER_RELU)
        return err_set(err, ERR_UNSUPPORTED, "hidden_act of this model is not computed on 'cuda'");
    r = products_open(&bert->products, err);
    for (uint32_t i = 0; r == 0 && i < CUDA_PRODUCT_COUNT; i++) {
        if ((i != CUDA_PRODUCT_DENSE || has_dense) &&
            (i != CUDA_PRODUCT_LABELS || config->head != ENCODER_HEAD_EMBED))
            r = product_open(bert->products, &shapes[i], &bert->kinds[i], err);
    }
    return r;
}

static int open_slot(struct bert_cuda *bert, struct cuda_slot *slot, size_t index_size,
                     struct err *err)
{
    const struct run_plan *plan = &bert->plan;
    const size_t index = (index_size + RUN_ALIGN - 1) / RUN_ALIGN * RUN_ALIGN;
    const size_t ids = plan->row_max * sizeof(uint32_t);
    const size_t rows = (size_t)plan->output_max * encoder_config_width(&bert->config) *
                        sizeof(float);
    const size_t offsets = (plan->text_max + 1u) * sizeof(uint32_t);

    CUDA_TRY(cudaStreamCreateWithFlags(&slot->stream, cudaStreamNonBlocking), err);
    CUDA_TRY(cudaEventCreateWithFlags(&slot->done, cudaEventDisableTiming | cudaEventBlockingSync),
             err);
    CUDA_TRY(cudaMallocHost((void **)&slot->pinned, index + rows + 2 * ids + offsets), err);
    bert->pinned_size += index + rows + 2 * ids + offsets;
    slot->index = slot->pinned; /* what is aligned most comes first */
    slot->rows = (float *)(void *)(slot->pinned + index);
    slot->ids = (uint32_t *)(void *)(slot->pinned + index + rows);
    slot->places = slot->ids + plan->row_max;
    slot->offsets = slot->places + plan->row_max;
    return 0;
}

static int open_slots(struct bert_cuda *bert, const struct bert_cuda_options *options,
                      struct err *err)
{
    int r = 0;

    make_plan(bert, options);
    CUDA_TRY(cudaMalloc((void **)&bert->dev_slots, bert->plan.slots_size), err);
    /* Rows between texts and the end of a bucket are computed too: not of what others left. */
    CUDA_TRY(cudaMemset(bert->dev_slots, 0, bert->plan.slots_size), err);
    CUDA_TRY(cudaDeviceSynchronize(), err);
    for (uint32_t i = 0; r == 0 && i < ENCODER_FLIGHT_MAX; i++) {
        bert->slots[i].at = &bert->plan.slots[i];
        r = open_slot(bert, &bert->slots[i], attention_index_size(bert->attention), err);
    }
    return r;
}

static int open_all(struct bert_cuda *bert, const struct safetensors *file,
                    const struct bert_cuda_options *options, struct err *err)
{
    int r;

    make_plan(bert, options);
    r = device_need_memory(options->facts, bert->plan.weights_size + bert->plan.slots_size, err);
    if (r < 0)
        return r;
    CUDA_TRY(cudaSetDevice((int)bert->ordinal), err);
    CUDA_TRY(cudaMalloc((void **)&bert->dev_weights, bert->plan.weights_size), err);
    r = fill(bert, file, options, err);
    if (r == 0)
        r = open_slots(bert, options, err);
    return r == 0 ? open_products(bert, err) : r;
}

int bert_cuda_open(const struct encoder_config *config, struct safetensors **weights_p,
                   const struct bert_cuda_options *options, struct bert_cuda **ret_bert,
                   struct err *err)
{
    OWNED(bert_cuda_close) struct bert_cuda *bert = xcalloc(1, sizeof(*bert));
    int r;

    assert(options->token_count_max >= config->token_count_max && options->text_count_max > 0);
    bert->config = *config;
    bert->bf16 = options->bf16;
    bert->ordinal = options->ordinal;
    r = bert_cuda_check(config, options->bf16, err);
    if (r == 0)
        r = bert_check(config, *weights_p, err);
    if (r == 0)
        r = open_all(bert, *weights_p, options, err);
    if (r < 0)
        return r;
    safetensors_close(weights_p);
    *ret_bert = TAKE(bert);
    return 0;
}

static void close_slot(struct cuda_slot *slot)
{
    if (slot->stream != NULL)
        (void)cudaStreamSynchronize(slot->stream);
    bert_cuda_forget_graphs(slot);
    if (slot->pinned != NULL)
        (void)cudaFreeHost(slot->pinned);
    if (slot->done != NULL)
        (void)cudaEventDestroy(slot->done);
    if (slot->stream != NULL)
        (void)cudaStreamDestroy(slot->stream);
}

/* Whatever fails here fails because the device is lost, and goes with this process. */
void bert_cuda_close(struct bert_cuda **bert_p)
{
    struct bert_cuda *bert = TAKE(*bert_p);

    if (bert == NULL)
        return;
    for (uint32_t i = 0; i < ENCODER_FLIGHT_MAX; i++)
        close_slot(&bert->slots[i]);
    attention_close(&bert->attention);
    for (uint32_t i = 0; i < CUDA_PRODUCT_COUNT; i++)
        product_close(&bert->kinds[i]);
    products_close(&bert->products);
    if (bert->dev_slots != NULL)
        (void)cudaFree(bert->dev_slots);
    if (bert->dev_weights != NULL)
        (void)cudaFree(bert->dev_weights);
    run_plan_done(&bert->plan);
    free(bert);
}
