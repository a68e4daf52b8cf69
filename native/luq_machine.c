#define _GNU_SOURCE /* CPU_SET, sched_setaffinity */

#include "luq_machine.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum {
    MOST_CACHES = 8, /* index0, index1, ... of a processor */
    LEAST_UNCACHED = 256 << 20,
    ASK_EVERY_NS = 100 * 1000 * 1000,
};

/* The first whole number in a file, with K, M or G after it; -1 if there is none. */
static int64_t read_number(const char *path) {
    FILE *file = fopen(path, "r");
    long long number = -1;
    char unit = 0;
    if (file == NULL) {
        return -1;
    }
    if (fscanf(file, "%lld%c", &number, &unit) < 1) {
        number = -1;
    }
    fclose(file);
    return unit == 'K' ? number << 10 : unit == 'M' ? number << 20 : unit == 'G' ? number << 30 : number;
}

/* The number after `name` in a file of lines "name number"; -1 if there is none. */
static int64_t read_field(const char *path, const char *name) {
    FILE *file = fopen(path, "r");
    char word[64];
    long long number = -1;
    if (file == NULL) {
        return -1;
    }
    while (fscanf(file, "%63s %lld%*[^\n]", word, &number) == 2 && strcmp(word, name) != 0) {
        number = -1;
    }
    fclose(file);
    return number;
}

static int64_t cache_field(long cpu, int index, const char *name) {
    char path[128];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%ld/cache/index%d/%s", cpu, index, name);
    return read_number(path);
}

/* The last-level cache of a processor, counted at the first of those that share it. */
static int64_t cache_of_cpu(long cpu) {
    int64_t highest = 0;
    int last = -1;
    for (int index = 0; index < MOST_CACHES; index++) {
        const int64_t level = cache_field(cpu, index, "level");
        if (level > highest) {
            highest = level;
            last = index;
        }
    }
    if (last < 0 || cache_field(cpu, last, "shared_cpu_list") != cpu) {
        return 0;
    }
    const int64_t size = cache_field(cpu, last, "size");
    return size > 0 ? size : 0;
}

int64_t luq_cache_bytes(void) {
    const long cpus = sysconf(_SC_NPROCESSORS_CONF);
    int64_t bytes = 0;
    for (long cpu = 0; cpu < cpus && cpu <= LUQ_MAX_CPU; cpu++) {
        bytes += cache_of_cpu(cpu);
    }
#ifdef _SC_LEVEL3_CACHE_SIZE
    const long level3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (bytes == 0 && level3 > 0) {
        bytes = level3;
    }
#endif
    return bytes;
}

int64_t luq_uncached_bytes(void) {
    const int64_t bytes = 4 * luq_cache_bytes();
    return bytes > LEAST_UNCACHED ? bytes : LEAST_UNCACHED;
}

/* What a control group leaves of its limit; the cache of files that it can drop counts as free. */
static int64_t free_in_group(const char *limit, const char *used, const char *statistics, const char *droppable) {
    const int64_t most = read_number(limit);
    const int64_t now = read_number(used);
    const int64_t cached = read_field(statistics, droppable);
    if (most < 0 || now < 0) {
        return INT64_MAX;
    }
    return most - now + (cached > 0 ? cached : 0);
}

int64_t luq_free_memory(void) {
    int64_t left = read_field("/proc/meminfo", "MemAvailable:");
    left = left >= 0 ? left << 10 : INT64_MAX;
    const int64_t group[] = {
        free_in_group("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat",
                      "inactive_file"),
        free_in_group("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                      "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file"),
    };
    for (size_t i = 0; i < sizeof group / sizeof group[0]; i++) {
        left = group[i] < left ? group[i] : left;
    }
    return left > 0 ? left : 0;
}

luq_status luq_check_memory(char *error, int64_t bytes) {
    const int64_t left = luq_free_memory();
    if (bytes <= left) {
        return LUQ_OK;
    }
    return luq_fail(error, LUQ_BAD_ARGUMENT, "this needs %" PRId64 " bytes of memory, but only %" PRId64 " are free",
                    bytes, left);
}

void *luq_map_memory(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    madvise(memory, bytes, MADV_HUGEPAGE); /* without them it is small pages */
#endif
    return memory;
}

void luq_unmap_memory(void *memory, size_t bytes) {
    if (memory != NULL) {
        munmap(memory, bytes);
    }
}

int64_t luq_peak_memory(void) {
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0) {
        return 0;
    }
#ifdef __APPLE__
    return usage.ru_maxrss;
#else
    return (int64_t)usage.ru_maxrss << 10;
#endif
}

#ifdef __linux__

typedef struct {
    luq_work work;
    void *data;
    char *error;
    cpu_set_t cpus;
    luq_status status;
    pthread_mutex_t lock;
    pthread_cond_t ended;
    bool done;
    atomic_bool stop;
} pinned;

static bool told_to_stop(void *data) { return atomic_load(&((pinned *)data)->stop); }

/* The kernel leaves out processors that the process may not use, without a word. */
static luq_status pin(pinned *job) {
    cpu_set_t got;
    if (sched_setaffinity(0, sizeof job->cpus, &job->cpus) == 0 && sched_getaffinity(0, sizeof got, &got) == 0 &&
        CPU_EQUAL(&got, &job->cpus)) {
        return LUQ_OK;
    }
    return luq_fail(job->error, LUQ_BAD_ARGUMENT, "cpus names processors that this process may not use");
}

static void *run_pinned(void *data) {
    pinned *job = data;
    job->status = pin(job);
    if (job->status == LUQ_OK) {
        job->status = job->work(job->data, luq_watch_start(told_to_stop, job));
    }
    pthread_mutex_lock(&job->lock);
    job->done = true;
    pthread_cond_signal(&job->ended);
    pthread_mutex_unlock(&job->lock);
    return NULL;
}

/* Sleep until the thread has ended or it is time to ask again. */
static bool wait_a_little(pinned *job) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += ASK_EVERY_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&job->lock);
    if (!job->done) {
        pthread_cond_timedwait(&job->ended, &job->lock, &until);
    }
    const bool done = job->done;
    pthread_mutex_unlock(&job->lock);
    return done;
}

static luq_status fill_cpus(const int64_t *cpus, size_t count, cpu_set_t *set, char *error) {
    CPU_ZERO(set);
    for (size_t i = 0; i < count; i++) {
        const luq_status status = luq_check_range(error, "cpus", cpus[i], 0, LUQ_MAX_CPU);
        if (status != LUQ_OK) {
            return status;
        }
        CPU_SET((size_t)cpus[i], set);
    }
    return count > 0 ? LUQ_OK : luq_fail(error, LUQ_BAD_ARGUMENT, "cpus must name at least one processor");
}

luq_status luq_run_pinned(const int64_t *cpus, size_t count, luq_work work, void *data, luq_interrupted interrupted,
                          void *interrupted_data, char *error) {
    pinned job = {.work = work, .data = data, .error = error, .lock = PTHREAD_MUTEX_INITIALIZER,
                  .ended = PTHREAD_COND_INITIALIZER};
    pthread_t thread;
    const luq_status status = fill_cpus(cpus, count, &job.cpus, error);
    if (status != LUQ_OK) {
        return status;
    }
    /* A new thread, because OpenMP keeps the workers of a thread: old ones would stay where they were, and new ones
     * would stay pinned after us. Those of this thread are born pinned and end with it. */
    const int code = pthread_create(&thread, NULL, run_pinned, &job);
    if (code != 0) {
        return luq_fail(error, LUQ_CANNOT_RUN, "cannot start a thread: %s", strerror(code));
    }
    while (!wait_a_little(&job)) {
        if (interrupted != NULL && !atomic_load(&job.stop) && interrupted(interrupted_data)) {
            atomic_store(&job.stop, true);
        }
    }
    pthread_join(thread, NULL);
    return atomic_load(&job.stop) ? LUQ_INTERRUPTED : job.status;
}

#else

luq_status luq_run_pinned(const int64_t *cpus, size_t count, luq_work work, void *data, luq_interrupted interrupted,
                          void *interrupted_data, char *error) {
    (void)cpus, (void)count, (void)work, (void)data, (void)interrupted, (void)interrupted_data;
    return luq_fail(error, LUQ_BAD_ARGUMENT, "cpus cannot be chosen on this system");
}

#endif
