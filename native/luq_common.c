#define _POSIX_C_SOURCE 200809L

#include "luq_common.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { LOOK_EVERY_NS = 100 * 1000 * 1000 /* how often `interrupted` is asked */ };

int64_t luq_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

luq_watch luq_watch_start(luq_interrupted interrupted, void *data) {
    return (luq_watch){.interrupted = interrupted, .data = data, .stride = 1};
}

bool luq_should_stop(luq_watch *watch) {
    if (watch->stop || watch->interrupted == NULL) {
        return watch->stop;
    }
    const int64_t now = luq_now_ns();
    if (now - watch->asked_ns >= LOOK_EVERY_NS) {
        watch->asked_ns = now;
        watch->stop = watch->interrupted(watch->data);
    }
    return watch->stop;
}

bool luq_on_node(void *data) {
    luq_watch *watch = data;
    return ++watch->calls % watch->stride == 0 && luq_should_stop(watch);
}

luq_status luq_fail(char *error, luq_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error, LUQ_ERROR_BYTES, format, arguments);
    va_end(arguments);
    return status;
}

luq_status luq_check_range(char *error, const char *name, int64_t value, int64_t least, int64_t most) {
    if (value >= least && value <= most) {
        return LUQ_OK;
    }
    return luq_fail(error, LUQ_BAD_ARGUMENT, "%s must be %lld to %lld, not %lld", name, (long long)least,
                    (long long)most, (long long)value);
}

luq_status luq_check_seconds(char *error, const char *name, double value) {
    if (value >= 0 && value <= LUQ_MAX_SECONDS) {
        return LUQ_OK;
    }
    return luq_fail(error, LUQ_BAD_ARGUMENT, "%s must be 0 to %d, not %g", name, LUQ_MAX_SECONDS, value);
}

bool luq_samples_add(luq_samples *samples, int64_t ns) {
    if (samples->count == samples->room) {
        const size_t room = samples->room > 0 ? 2 * samples->room : 64;
        int64_t *more = realloc(samples->ns, room * sizeof *more);
        if (more == NULL) {
            return false;
        }
        samples->ns = more;
        samples->room = room;
    }
    samples->ns[samples->count++] = ns;
    samples->total += ns;
    return true;
}

bool luq_samples_wanted(const luq_samples *samples, double min_seconds) {
    return samples->count < LUQ_MIN_SAMPLES ||
           (samples->count < LUQ_MAX_SAMPLES && (double)samples->total < min_seconds * 1e9);
}
