/* What all measurements share: outcomes, limits, errors, samples, and the question whether to stop. */
#ifndef LUQ_COMMON_H
#define LUQ_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    LUQ_MAX_THREADS = 512, /* llama.cpp's own limit */
    LUQ_MAX_REPEAT = 10000,
    LUQ_MAX_SECONDS = 3600,
    LUQ_MAX_SAMPLES = 100000, /* of what is repeated for a time */
    LUQ_MIN_SAMPLES = 3,
    LUQ_ERROR_BYTES = 1024,
};

typedef enum luq_status {
    LUQ_OK = 0,
    LUQ_BAD_ARGUMENT, /* a number of the request is out of range, for anyone or for this model or machine */
    LUQ_CANNOT_LOAD,  /* no GGUF, or llama.cpp refuses it */
    LUQ_CANNOT_RUN,   /* it loads, but llama.cpp cannot work with it */
    LUQ_NO_MEMORY,
    LUQ_INTERRUPTED, /* the request's `interrupted` said so */
} luq_status;

/* Asked about ten times a second, on the calling thread; true stops the work. May be NULL. */
typedef bool (*luq_interrupted)(void *data);

/* Remembers when `interrupted` was asked, and what it said. */
typedef struct luq_watch {
    luq_interrupted interrupted;
    void *data;
    int64_t asked_ns; /* when it was asked last */
    unsigned calls;
    unsigned stride; /* luq_on_node looks at the clock every so many calls */
    bool stop;
} luq_watch;

/* Nanoseconds, one entry a measurement. */
typedef struct luq_samples {
    int64_t *ns;
    size_t count;
    size_t room;
    int64_t total;
} luq_samples;

int64_t luq_now_ns(void);

luq_watch luq_watch_start(luq_interrupted interrupted, void *data);

bool luq_should_stop(luq_watch *watch);

/* ggml's abort callback, with a luq_watch as its data: called between graph nodes, on the thread that computes. */
bool luq_on_node(void *watch);

/* Write one line to an error of LUQ_ERROR_BYTES; returns `status`. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
luq_status luq_fail(char *error, luq_status status, const char *format, ...);

luq_status luq_check_range(char *error, const char *name, int64_t value, int64_t least, int64_t most);

luq_status luq_check_seconds(char *error, const char *name, double value);

/* False without memory. */
bool luq_samples_add(luq_samples *samples, int64_t ns);

/* Whether another sample is wanted to have measured for that long. */
bool luq_samples_wanted(const luq_samples *samples, double min_seconds);

#endif
