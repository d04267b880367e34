/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Every part is a heap object with its libuv handle first, so that a handle's pointer is the
 * part's. Freeing a part closes the handle; libuv calls part_closed() in a later turn, which
 * releases the memory. loop_close() therefore runs the loop until libuv has let go of everything.
 */

#include "base/loop.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"

#define LOOP_SIGNALS_MAX 3
#define CLOSE_MS_MAX 500

struct loop {
    uv_loop_t uv;
    uv_timer_t closing;  /* of loop_close() */
    uint32_t part_count; /* made by x_new and not yet freed */
    struct loop_signals {
        uv_signal_t handles[LOOP_SIGNALS_MAX];
        int count;
        loop_call *drain, *reload;
        void *opaque;
    } signals;
};

struct loop_timer {
    uv_timer_t uv;
    struct loop *loop;
    loop_call *call;
    void *opaque;
};

struct loop_watch {
    uv_poll_t uv;
    struct loop *loop;
    int wanted; /* libuv's events */
    loop_watch_call *call;
    void *opaque;
};

struct loop_wake {
    uv_async_t uv;
    struct loop *loop;
    loop_call *call;
    void *opaque;
};

struct loop_turn {
    uv_prepare_t uv;
    struct loop *loop;
    loop_call *call;
    void *opaque;
};

static void part_closed(uv_handle_t *handle)
{
    free(handle);
}

static void part_free(struct loop *loop, void *part)
{
    assert(loop->part_count > 0);
    loop->part_count--;
    uv_close(part, part_closed);
}

int loop_open(struct loop **ret_loop, struct err *err)
{
    struct loop *loop = xcalloc(1, sizeof(*loop));
    int r = uv_loop_init(&loop->uv);

    if (r < 0) {
        free(loop);
        return err_set(err, ERR_DEPENDENCY, "make an event loop: %s", uv_strerror(r));
    }
    *ret_loop = loop;
    return 0;
}

/* libuv would wait for its threads here. */
static void leave_threads(int status, void *nothing)
{
    (void)nothing;
    (void)fflush(NULL);
    _exit(status);
}

static void close_timed_out(uv_timer_t *timer)
{
    *(bool *)timer->data = true;
    uv_stop(timer->loop);
}

void loop_close(struct loop **loop_p)
{
    struct loop *loop = TAKE(*loop_p);
    bool late = false;

    if (loop == NULL)
        return;
    assert(loop->part_count == 0);
    for (int i = 0; i < loop->signals.count; i++)
        uv_close((uv_handle_t *)&loop->signals.handles[i], NULL);
    uv_update_time(&loop->uv);
    (void)uv_timer_init(&loop->uv, &loop->closing);
    loop->closing.data = &late;
    (void)uv_timer_start(&loop->closing, close_timed_out, CLOSE_MS_MAX, 0);
    uv_unref((uv_handle_t *)&loop->closing);
    while (uv_run(&loop->uv, UV_RUN_DEFAULT) != 0 && !late)
        ;
    if (uv_loop_alive(&loop->uv) != 0) {
        (void)on_exit(leave_threads, NULL); /* the loop is still theirs */
        return;
    }
    uv_close((uv_handle_t *)&loop->closing, NULL);
    (void)uv_run(&loop->uv, UV_RUN_DEFAULT);
    if (uv_loop_close(&loop->uv) != 0)
        NEVER("a libuv handle is still open where its loop ends");
    free(loop);
}

uv_loop_t *loop_uv(struct loop *loop)
{
    return &loop->uv;
}

uint64_t loop_now_ms(const struct loop *loop)
{
    return uv_now(&loop->uv);
}

void loop_run(struct loop *loop)
{
    (void)uv_run(&loop->uv, UV_RUN_DEFAULT);
}

void loop_stop(struct loop *loop)
{
    uv_stop(&loop->uv);
}

struct until {
    struct loop *loop;
    const bool *done;
    bool late;
};

static void run_timed_out(void *opaque)
{
    struct until *until = opaque;

    until->late = true;
}

/* Between timers and the wait for events: what a timer has just said would wait for the next event,
 * which may never come. */
static void run_checked(void *opaque)
{
    const struct until *until = opaque;

    if (*until->done || until->late)
        uv_stop(&until->loop->uv);
}

bool loop_run_until(struct loop *loop, const bool *done, uint32_t timeout_ms)
{
    struct until until = {.loop = loop, .done = done};
    struct loop_timer *timer = loop_timer_new(loop, run_timed_out, &until);
    struct loop_turn *turn = loop_turn_new(loop, run_checked, &until);

    uv_update_time(&loop->uv);
    loop_timer_start(timer, timeout_ms, 0);
    while (!*done && !until.late)
        (void)uv_run(&loop->uv, UV_RUN_ONCE);
    loop_turn_free(&turn);
    loop_timer_free(&timer);
    return *done;
}

/* ---- Signals */

static void signal_arrived(uv_signal_t *handle, int number)
{
    struct loop *loop = handle->data;
    loop_call *call = number == SIGHUP ? loop->signals.reload : loop->signals.drain;

    call(loop->signals.opaque);
}

static int signal_watch(struct loop *loop, int number, struct err *err)
{
    uv_signal_t *handle = &loop->signals.handles[loop->signals.count];
    int r = uv_signal_init(&loop->uv, handle);

    if (r == 0) {
        loop->signals.count++;
        handle->data = loop;
        r = uv_signal_start(handle, signal_arrived, number);
        uv_unref((uv_handle_t *)handle); /* a program that only waits for signals is over */
    }
    return r == 0 ? 0 : err_set(err, ERR_DEPENDENCY, "watch signal %d: %s", number, uv_strerror(r));
}

int loop_on_signals(struct loop *loop, loop_call *drain, loop_call *reload, void *opaque,
                    struct err *err)
{
    int r = 0;

    assert(loop->signals.count == 0);
    loop->signals.drain = drain;
    loop->signals.reload = reload;
    loop->signals.opaque = opaque;
    if (drain != NULL)
        r = signal_watch(loop, SIGTERM, err);
    if (r == 0 && drain != NULL)
        r = signal_watch(loop, SIGINT, err);
    if (r == 0 && reload != NULL)
        r = signal_watch(loop, SIGHUP, err);
    return r;
}

/* ---- The end of the process */

static struct {
    atomic_bool armed;
    uint64_t ms;
    int exit_code;
} limit;

/* thread: its own   locks: none
 * Nobody may be able to take a line of the log either (a full pipe): the alarm ends that. */
static void *limit_wait(void *nothing)
{
    uint64_t end_ms = clock_mono_ms() + limit.ms, now_ms;

    while ((now_ms = clock_mono_ms()) < end_ms)
        (void)poll(NULL, 0, (int)(end_ms - now_ms < INT32_MAX ? end_ms - now_ms : INT32_MAX));
    (void)signal(SIGALRM, SIG_DFL);
    (void)alarm(1);
    log_error("ended_by_force", LOG_U64("after_ms", limit.ms),
              LOG_STR("error", "it did not end by itself within its drain limit"));
    (void)alarm(0);
    _exit(limit.exit_code);
    return nothing;
}

void loop_end_within(uint64_t ms, int exit_code)
{
    pthread_attr_t attributes;
    sigset_t all, before;
    pthread_t thread;

    if (atomic_exchange(&limit.armed, true))
        return;
    limit.ms = ms;
    limit.exit_code = exit_code;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the loop's thread */
    (void)pthread_attr_init(&attributes);
    (void)pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &attributes, limit_wait, NULL) == 0)
        (void)pthread_setname_np(thread, "drain-limit");
    (void)pthread_attr_destroy(&attributes);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* ---- Timers */

static void timer_fired(uv_timer_t *handle)
{
    struct loop_timer *timer = (struct loop_timer *)handle;

    timer->call(timer->opaque);
}

struct loop_timer *loop_timer_new(struct loop *loop, loop_call *call, void *opaque)
{
    struct loop_timer *timer = xcalloc(1, sizeof(*timer));

    timer->loop = loop;
    timer->call = call;
    timer->opaque = opaque;
    (void)uv_timer_init(&loop->uv, &timer->uv); /* cannot fail */
    loop->part_count++;
    return timer;
}

void loop_timer_start(struct loop_timer *timer, uint64_t delay_ms, uint64_t repeat_ms)
{
    (void)uv_timer_start(&timer->uv, timer_fired, delay_ms, repeat_ms);
}

void loop_timer_stop(struct loop_timer *timer)
{
    (void)uv_timer_stop(&timer->uv);
}

bool loop_timer_is_running(const struct loop_timer *timer)
{
    return uv_is_active((const uv_handle_t *)&timer->uv) != 0;
}

void loop_timer_free(struct loop_timer **timer_p)
{
    struct loop_timer *timer = TAKE(*timer_p);

    if (timer != NULL)
        part_free(timer->loop, timer);
}

/* ---- Watches */

static void watch_fired(uv_poll_t *handle, int status, int events)
{
    struct loop_watch *watch = (struct loop_watch *)handle;
    unsigned seen = 0;

    if (status < 0) {
        /* libuv stops the watch on a fault, but there may be bytes to read before the error. */
        (void)uv_poll_start(handle, watch->wanted, watch_fired);
        seen = LOOP_READABLE | LOOP_WRITABLE;
    }
    if (events & UV_READABLE)
        seen |= LOOP_READABLE;
    if (events & UV_WRITABLE)
        seen |= LOOP_WRITABLE;
    if (events & UV_DISCONNECT)
        seen |= LOOP_GONE;
    watch->call(watch->opaque, seen);
}

int loop_watch_new(struct loop *loop, int fd, loop_watch_call *call, void *opaque,
                   struct loop_watch **ret_watch, struct err *err)
{
    struct loop_watch *watch = xcalloc(1, sizeof(*watch));
    int r = uv_poll_init(&loop->uv, &watch->uv, fd);

    if (r < 0) {
        free(watch);
        return err_set(err, ERR_IO, "watch descriptor %d: %s", fd, uv_strerror(r));
    }
    watch->loop = loop;
    watch->call = call;
    watch->opaque = opaque;
    loop->part_count++;
    *ret_watch = watch;
    return 0;
}

void loop_watch_set(struct loop_watch *watch, unsigned events)
{
    int wanted = 0;

    if (events & LOOP_READABLE)
        wanted |= UV_READABLE;
    if (events & LOOP_WRITABLE)
        wanted |= UV_WRITABLE;
    if (events & LOOP_GONE)
        wanted |= UV_DISCONNECT;
    watch->wanted = wanted;
    if (wanted == 0)
        (void)uv_poll_stop(&watch->uv);
    else
        (void)uv_poll_start(&watch->uv, wanted, watch_fired);
}

void loop_watch_free(struct loop_watch **watch_p)
{
    struct loop_watch *watch = TAKE(*watch_p);

    if (watch != NULL)
        part_free(watch->loop, watch);
}

/* ---- Wakes */

static void wake_fired(uv_async_t *handle)
{
    struct loop_wake *wake = (struct loop_wake *)handle;

    wake->call(wake->opaque);
}

struct loop_wake *loop_wake_new(struct loop *loop, loop_call *call, void *opaque)
{
    struct loop_wake *wake = xcalloc(1, sizeof(*wake));

    wake->loop = loop;
    wake->call = call;
    wake->opaque = opaque;
    if (uv_async_init(&loop->uv, &wake->uv, wake_fired) != 0)
        NEVER("no descriptor is left to wake the loop with");
    loop->part_count++;
    return wake;
}

void loop_wake_send(struct loop_wake *wake)
{
    (void)uv_async_send(&wake->uv);
}

void loop_wake_free(struct loop_wake **wake_p)
{
    struct loop_wake *wake = TAKE(*wake_p);

    if (wake != NULL)
        part_free(wake->loop, wake);
}

/* ---- Turns */

static void turn_fired(uv_prepare_t *handle)
{
    struct loop_turn *turn = (struct loop_turn *)handle;

    turn->call(turn->opaque);
}

struct loop_turn *loop_turn_new(struct loop *loop, loop_call *call, void *opaque)
{
    struct loop_turn *turn = xcalloc(1, sizeof(*turn));

    turn->loop = loop;
    turn->call = call;
    turn->opaque = opaque;
    (void)uv_prepare_init(&loop->uv, &turn->uv); /* cannot fail */
    (void)uv_prepare_start(&turn->uv, turn_fired);
    uv_unref((uv_handle_t *)&turn->uv);
    loop->part_count++;
    return turn;
}

void loop_turn_free(struct loop_turn **turn_p)
{
    struct loop_turn *turn = TAKE(*turn_p);

    if (turn != NULL)
        part_free(turn->loop, turn);
}
