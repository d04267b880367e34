/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The event loop of a thread: libuv with owners that follow the house rules.
 *
 * A libuv handle must outlive its close callback, which makes every embedded handle a trap. Here
 * each handle is a heap object: x_new() starts it, x_free(&x) stops it at once (its callback is
 * not called any more, not even from events that are already waiting) and releases the memory when
 * libuv lets go. Every callback gets the opaque pointer that x_new() was given.
 *
 * A program: loop_open, loop_on_drain, its own parts, loop_run; the drain callback stops the parts
 * and, when the last one is done, calls loop_stop; then the parts are freed and loop_close ends.
 * Libraries that want libuv itself take it from loop_uv().
 *
 * Thread: a loop and all its parts belong to one thread; loop_wake_send alone may be called from
 * any.   Tests: tests/unit/test_loop.c
 */

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/err.h"

struct loop;
struct loop_timer;
struct loop_watch;
struct loop_wake;
struct loop_turn;

typedef void loop_call(void *opaque);

int loop_open(struct loop **ret_loop, struct err *err) MUST_CHECK;

/* Runs what is still to be closed, then frees the loop. A part that was not freed before is a
 * leak of ours: asserts. Blocking work of libuv's threads (a question to a server that is away) is
 * waited for at most half a second, then left to the end of the process, which does not wait
 * either. */
void loop_close(struct loop **loop_p);

uv_loop_t *loop_uv(struct loop *loop);

/* The time that this turn of the loop began, on the clock of clock_mono_ms(), give or take 1 ms. */
uint64_t loop_now_ms(const struct loop *loop);

/* Runs until loop_stop() (which may be called before loop_run(), too) or until nothing is left that
 * could call: a program that waits for signals alone has ended. */
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop);

/* Runs turns until *done or timeout_ms is over; returns *done. For tests and for command lines. */
bool loop_run_until(struct loop *loop, const bool *done, uint32_t timeout_ms);

/* SIGTERM and SIGINT call `drain` (each time: a second one may mean haste), SIGHUP calls `reload`.
 * Either may be NULL, then that signal keeps its default. One loop a process may ask for this. */
int loop_on_signals(struct loop *loop, loop_call *drain, loop_call *reload, void *opaque,
                    struct err *err) MUST_CHECK;

/* Whatever it waits for, the process has ended after so long: by itself, or else on the spot, with
 * this exit code and a line in the log. To be called when a drain begins, with the drain's limit
 * and LOOP_END_EXTRA_MS; only the first call counts. A thread of its own does it, because a loop
 * that hangs could not. Nothing is lost by it that a kill -9 would not lose. */
#define LOOP_END_EXTRA_MS 1750
void loop_end_within(uint64_t ms, int exit_code);

/* Timer. Not running when new. repeat_ms 0: once. Starting a running timer restarts it. */
struct loop_timer *loop_timer_new(struct loop *loop, loop_call *call, void *opaque);
void loop_timer_start(struct loop_timer *timer, uint64_t delay_ms, uint64_t repeat_ms);
void loop_timer_stop(struct loop_timer *timer);
bool loop_timer_is_running(const struct loop_timer *timer);
void loop_timer_free(struct loop_timer **timer_p);

/* Watches a descriptor that somebody else owns and closes, after freeing the watch. Two watches on
 * one descriptor are not allowed; dup() it. On a fault of the descriptor both LOOP_READABLE and
 * LOOP_WRITABLE are reported, so that the owner meets the error where it reads or writes. */
#define LOOP_READABLE 1u
#define LOOP_WRITABLE 2u
#define LOOP_GONE 4u /* the peer has closed at least its sending side */
typedef void loop_watch_call(void *opaque, unsigned events);
int loop_watch_new(struct loop *loop, int fd, loop_watch_call *call, void *opaque,
                   struct loop_watch **ret_watch, struct err *err) MUST_CHECK;
void loop_watch_set(struct loop_watch *watch, unsigned events); /* 0: none */
void loop_watch_free(struct loop_watch **watch_p);

/* Wakes the loop from another thread; several sends may end in one call. */
struct loop_wake *loop_wake_new(struct loop *loop, loop_call *call, void *opaque);
void loop_wake_send(struct loop_wake *wake); /* thread: any */
void loop_wake_free(struct loop_wake **wake_p);

/* Calls once a turn, right before the loop waits: the place to send what a turn has gathered. It
 * does not keep the loop awake; start a timer of 0 ms when there is more to do. */
struct loop_turn *loop_turn_new(struct loop *loop, loop_call *call, void *opaque);
void loop_turn_free(struct loop_turn **turn_p);
