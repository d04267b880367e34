/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The encoder on the CPU: bert.h behind encoder_int.h. A device other than the CPU is refused:
 * this plugin has no other, and answering slower than asked would hide it.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "workers/engines/encoder/encoder_dtype.h"
#include "workers/engines/encoder/encoder_int.h"
#include "workers/engines/encoder/gemm.h"
#include "workers/engines/encoder/team.h"

/* Multiplications and additions a second and thread that a default batch reckons with, and how
 * long it may take: a fraction of a lease, for the host serves its socket between batches. */
#define ASSUMED_OPS 1e11
#define BATCH_SECONDS 0.25

struct cpu {
    struct bert *bert;
    struct bert_options options;
    struct encoder_dtype_choice dtype;
};

static int choose_dtype(const struct encoder_ask *ask, struct encoder_dtype_choice *ret_choice,
                        struct err *err)
{
    if (ask->dtype == ENCODER_DTYPE_AUTO)
        return encoder_dtype_choose(ask->config, gemm_has_bf16(), gemm_measure, ret_choice, err);
    ret_choice->bf16 = ask->dtype == ENCODER_DTYPE_BF16;
    mem_copy_text(ret_choice->text, ret_choice->bf16 ? "bf16" : "f32");
    return 0;
}

static int check(const struct engine_load *load, struct err *err)
{
    if (strcmp(load->device, "cpu") != 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "device is '%.40s'; this build of the encoder has "
                       "'cpu' only, and does not fall back to it unasked",
                       load->device);
    return 0;
}

static int default_tokens(const struct encoder_ask *ask, uint32_t *ret_count, struct err *err)
{
    const double ops = 2.0 * (double)encoder_config_weight_count_per_token(ask->config);
    uint32_t thread_count;
    double tokens;
    int r;

    r = encoder_thread_count(ask->load, TEAM_MEMBER_COUNT_MAX, &thread_count, err);
    if (r < 0)
        return r;
    tokens = ASSUMED_OPS * BATCH_SECONDS * thread_count / ops;
    if (tokens > ENCODER_BATCH_TOKEN_MAX / 4)
        tokens = ENCODER_BATCH_TOKEN_MAX / 4;
    *ret_count = tokens < ask->config->token_count_max ? ask->config->token_count_max
                                                       : (uint32_t)tokens;
    return 0;
}

static int run(void *self, const struct bert_batch *batch, float *rows, uint32_t *ret_pad_count,
               struct err *err)
{
    struct cpu *cpu = self;

    *ret_pad_count = bert_pad_count(batch->offsets[batch->text_count]);
    return bert_run(cpu->bert, batch, rows, err);
}

static void cpu_close(void **self_p)
{
    struct cpu *cpu = TAKE(*self_p);

    if (cpu == NULL)
        return;
    bert_close(&cpu->bert);
    free(cpu);
}

static int cpu_open(const struct encoder_ask *ask, struct safetensors **weights_p, void **ret_self,
                    struct encoder_runner *ret_runner, struct err *err)
{
    OWNED(cpu_close) void *self = xcalloc(1, sizeof(struct cpu));
    struct cpu *cpu = self;
    int r;

    cpu->options = (struct bert_options){
        .token_count_max = ask->token_count_max,
        .progress = ask->load->sink.progress,
        .opaque = ask->load->sink.opaque,
    };
    r = encoder_thread_count(ask->load, TEAM_MEMBER_COUNT_MAX, &cpu->options.thread_count, err);
    if (r == 0)
        r = choose_dtype(ask, &cpu->dtype, err);
    cpu->options.bf16 = cpu->dtype.bf16;
    if (r == 0)
        r = bert_open(ask->config, weights_p, &cpu->options, &cpu->bert, err);
    if (r < 0)
        return r;
    *ret_runner = (struct encoder_runner){.run = run, .self = cpu};
    *ret_self = TAKE(self);
    return 0;
}

static void describe(const void *self, char *to, size_t to_size)
{
    const struct cpu *cpu = self;

    (void)snprintf(to, to_size, "%s, oneDNN %s, kernels %s, %u threads", cpu->dtype.text,
                   gemm_isa_name(), bert_kernel_name(cpu->bert), cpu->options.thread_count);
}

static uint64_t host_size(const void *self)
{
    return bert_memory_size(((const struct cpu *)self)->bert);
}

static uint64_t dev_size(const void *self)
{
    (void)self;
    return 0;
}

const struct encoder_backend encoder_cpu = {
    .check = check,
    .default_tokens = default_tokens,
    .open = cpu_open,
    .close = cpu_close,
    .describe = describe,
    .host_size = host_size,
    .dev_size = dev_size,
};
