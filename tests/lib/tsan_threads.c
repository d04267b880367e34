/* SPDX-License-Identifier: Apache-2.0 */

/*
 * C11 threads on POSIX threads, for builds with ThreadSanitizer only.
 *
 * librdkafka starts its threads and locks by C11's functions, which gcc 12's sanitizer does not
 * know: a thread that it did not see begin crashes in its allocator. An executable's definitions
 * win over libc's, so these make librdkafka's threads and locks visible to it. In glibc mtx_t and
 * cnd_t have the layout of their POSIX twins.
 */

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <threads.h>

/* Libraries that are not instrumented: what races inside of them is not ours to judge. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
    return "race:librdkafka\n"
           "mutex:librdkafka\n"
           "mutex:libuv\n"
           "race:libdnnl\n"
           "race:libgomp\n";
}

/* On the stack of the thread that starts another, until that one has taken it. */
struct start {
    thrd_start_t function;
    void *argument;
    sem_t taken;
};

static int result_of(int code)
{
    switch (code) {
    case 0:
        return thrd_success;
    case ENOMEM:
        return thrd_nomem;
    case ETIMEDOUT:
        return thrd_timedout;
    case EBUSY:
        return thrd_busy;
    default:
        return thrd_error;
    }
}

static void *start_run(void *opaque)
{
    struct start *start = opaque;
    thrd_start_t function = start->function;
    void *argument = start->argument;

    (void)sem_post(&start->taken);
    return (void *)(intptr_t)function(argument);
}

int thrd_create(thrd_t *thread, thrd_start_t function, void *argument)
{
    struct start start = {.function = function, .argument = argument};
    int code;

    (void)sem_init(&start.taken, 0, 0);
    code = pthread_create(thread, NULL, start_run, &start);
    while (code == 0 && sem_wait(&start.taken) < 0)
        continue; /* a signal came */
    (void)sem_destroy(&start.taken);
    return result_of(code);
}

int thrd_join(thrd_t thread, int *result)
{
    void *value;
    int code = pthread_join(thread, &value);

    if (code == 0 && result != NULL)
        *result = (int)(intptr_t)value;
    return result_of(code);
}

int thrd_detach(thrd_t thread)
{
    return result_of(pthread_detach(thread));
}

int mtx_init(mtx_t *mutex, int type)
{
    pthread_mutexattr_t attributes;
    int code;

    (void)pthread_mutexattr_init(&attributes);
    if (type & mtx_recursive)
        (void)pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    code = pthread_mutex_init((pthread_mutex_t *)mutex, &attributes);
    (void)pthread_mutexattr_destroy(&attributes);
    return result_of(code);
}

void mtx_destroy(mtx_t *mutex)
{
    (void)pthread_mutex_destroy((pthread_mutex_t *)mutex);
}

int mtx_lock(mtx_t *mutex)
{
    return result_of(pthread_mutex_lock((pthread_mutex_t *)mutex));
}

int mtx_trylock(mtx_t *mutex)
{
    return result_of(pthread_mutex_trylock((pthread_mutex_t *)mutex));
}

int mtx_unlock(mtx_t *mutex)
{
    return result_of(pthread_mutex_unlock((pthread_mutex_t *)mutex));
}

int cnd_init(cnd_t *condition)
{
    return result_of(pthread_cond_init((pthread_cond_t *)condition, NULL));
}

void cnd_destroy(cnd_t *condition)
{
    (void)pthread_cond_destroy((pthread_cond_t *)condition);
}

int cnd_signal(cnd_t *condition)
{
    return result_of(pthread_cond_signal((pthread_cond_t *)condition));
}

int cnd_broadcast(cnd_t *condition)
{
    return result_of(pthread_cond_broadcast((pthread_cond_t *)condition));
}

int cnd_wait(cnd_t *condition, mtx_t *mutex)
{
    return result_of(pthread_cond_wait((pthread_cond_t *)condition, (pthread_mutex_t *)mutex));
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex,
                  const struct timespec *restrict until)
{
    return result_of(
        pthread_cond_timedwait((pthread_cond_t *)condition, (pthread_mutex_t *)mutex, until));
}
