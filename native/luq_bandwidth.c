#define _POSIX_C_SOURCE 200809L

#include "luq_bandwidth.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "luq_machine.h"

enum {
    PAGE = 4096,
    LANES = 16,              /* sums beside each other, so that additions wait for nothing */
    CHUNK_WORDS = 512 * 1024 /* read between two looks whether to stop */
};

/* All threads, the calling one with number 0, go through a pass together: they meet before and after it. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    size_t threads;
    size_t arrived;
    uint64_t meeting; /* how many are over */
    bool quit;        /* no more meetings */
    atomic_bool stop; /* leave the pass */
    uint64_t *words;
    size_t words_each;
    luq_watch watch;
} luq_crew;

typedef struct {
    luq_crew *crew;
    size_t number;
    uint64_t sum;
    pthread_t thread;
} luq_reader;

/* False once the crew has quit. */
static bool meet(luq_crew *crew) {
    pthread_mutex_lock(&crew->lock);
    const uint64_t meeting = crew->meeting;
    if (++crew->arrived == crew->threads) {
        crew->arrived = 0;
        crew->meeting++;
        pthread_cond_broadcast(&crew->moved);
    }
    while (crew->meeting == meeting && !crew->quit) {
        pthread_cond_wait(&crew->moved, &crew->lock);
    }
    const bool goes_on = !crew->quit;
    pthread_mutex_unlock(&crew->lock);
    return goes_on;
}

static void quit(luq_crew *crew) {
    pthread_mutex_lock(&crew->lock);
    crew->quit = true;
    pthread_cond_broadcast(&crew->moved);
    pthread_mutex_unlock(&crew->lock);
}

/* Only the calling thread asks; the others see what it was told. */
static bool leaves(luq_reader *reader) {
    if (reader->number == 0 && luq_should_stop(&reader->crew->watch)) {
        atomic_store(&reader->crew->stop, true);
    }
    return atomic_load_explicit(&reader->crew->stop, memory_order_relaxed);
}

static uint64_t sum_words(const uint64_t *words, size_t count) {
    uint64_t lanes[LANES] = {0};
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i += LANES) {
        for (size_t lane = 0; lane < LANES; lane++) {
            lanes[lane] += words[i + lane];
        }
    }
    for (size_t lane = 0; lane < LANES; lane++) {
        sum += lanes[lane];
    }
    return sum;
}

/* Every thread writes what it will read, which also puts the memory next to it. */
static void fill(luq_reader *reader) {
    const size_t first = reader->number * reader->crew->words_each;
    for (size_t i = 0; i < reader->crew->words_each; i++) {
        if (i % CHUNK_WORDS == 0 && leaves(reader)) {
            return;
        }
        reader->crew->words[first + i] = first + i;
    }
}

static void read_part(luq_reader *reader) {
    const size_t count = reader->crew->words_each;
    const uint64_t *words = reader->crew->words + reader->number * count;
    reader->sum = 0;
    for (size_t i = 0; i < count && !leaves(reader); i += CHUNK_WORDS) {
        reader->sum += sum_words(words + i, count - i < CHUNK_WORDS ? count - i : CHUNK_WORDS);
    }
}

static void *run_reader(void *data) {
    luq_reader *reader = data;
    fill(reader);
    if (meet(reader->crew)) {
        while (meet(reader->crew)) {
            read_part(reader);
            if (!meet(reader->crew)) {
                break;
            }
        }
    }
    return NULL;
}

static luq_status run_pass(luq_reader *self, int64_t *spent) {
    const int64_t started = luq_now_ns();
    meet(self->crew);
    read_part(self);
    meet(self->crew);
    *spent = luq_now_ns() - started;
    return self->crew->watch.stop ? LUQ_INTERRUPTED : LUQ_OK;
}

static luq_status run_passes(luq_reader *readers, const luq_bandwidth_request *request, luq_bandwidth_result *result) {
    int64_t spent = 0;
    fill(&readers[0]);
    meet(readers[0].crew);
    luq_status status = run_pass(&readers[0], &spent); /* warms up */
    while (status == LUQ_OK && luq_samples_wanted(&result->ns, request->min_seconds)) {
        status = run_pass(&readers[0], &spent);
        if (status == LUQ_OK && !luq_samples_add(&result->ns, spent)) {
            status = luq_fail(result->error, LUQ_NO_MEMORY, "no memory for the samples");
        }
    }
    for (size_t i = 0; i < readers[0].crew->threads; i++) {
        result->checksum += readers[i].sum;
    }
    return status;
}

static luq_status run_crew(luq_crew *crew, luq_reader *readers, const luq_bandwidth_request *request,
                           luq_bandwidth_result *result) {
    size_t started = 1;
    int code = 0;
    for (size_t i = 0; i < crew->threads; i++) {
        readers[i] = (luq_reader){.crew = crew, .number = i};
    }
    while (started < crew->threads && code == 0) {
        code = pthread_create(&readers[started].thread, NULL, run_reader, &readers[started]);
        started += code == 0;
    }
    const luq_status status =
        code == 0 ? run_passes(readers, request, result)
                  : luq_fail(result->error, LUQ_CANNOT_RUN, "cannot start %zu threads: %s", crew->threads,
                             strerror(code));
    quit(crew);
    for (size_t i = 1; i < started; i++) {
        pthread_join(readers[i].thread, NULL);
    }
    return status;
}

static luq_status check_request(const luq_bandwidth_request *request, char *error) {
    luq_status status = luq_check_range(error, "threads", request->threads, 1, LUQ_MAX_THREADS);
    if (status == LUQ_OK) {
        status = luq_check_range(error, "bytes", request->bytes, 0, LUQ_MAX_BANDWIDTH_BYTES);
    }
    if (status == LUQ_OK) {
        status = luq_check_seconds(error, "min_seconds", request->min_seconds);
    }
    return status;
}

luq_status luq_bandwidth(const luq_bandwidth_request *request, luq_bandwidth_result *result) {
    memset(result, 0, sizeof *result);
    luq_status status = check_request(request, result->error);
    if (status != LUQ_OK) {
        return status;
    }
    const int64_t step = PAGE * request->threads;
    const int64_t wanted = request->bytes > 0 ? request->bytes : luq_uncached_bytes();
    result->bytes = (uint64_t)((wanted + step - 1) / step * step);
    status = luq_check_memory(result->error, (int64_t)result->bytes);
    if (status != LUQ_OK) {
        return status;
    }
    luq_crew crew = {.lock = PTHREAD_MUTEX_INITIALIZER,
                     .moved = PTHREAD_COND_INITIALIZER,
                     .threads = (size_t)request->threads,
                     .words_each = (size_t)(result->bytes / (uint64_t)request->threads / sizeof(uint64_t)),
                     .watch = luq_watch_start(request->interrupted, request->data)};
    crew.words = luq_map_memory((size_t)result->bytes);
    luq_reader *readers = calloc(crew.threads, sizeof *readers);
    status = crew.words != NULL && readers != NULL
                 ? run_crew(&crew, readers, request, result)
                 : luq_fail(result->error, LUQ_NO_MEMORY, "no memory to read");
    luq_unmap_memory(crew.words, (size_t)result->bytes);
    free(readers);
    return crew.watch.stop ? LUQ_INTERRUPTED : status;
}

void luq_bandwidth_clear(luq_bandwidth_result *result) {
    free(result->ns.ns);
    memset(result, 0, sizeof *result);
}
