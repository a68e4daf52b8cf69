/* What this machine has: caches, free memory, and processors to pin a thread to. */
#ifndef LUQ_MACHINE_H
#define LUQ_MACHINE_H

#include <stddef.h>
#include <stdint.h>

#include "luq_common.h"

enum { LUQ_MAX_CPU = 1023 /* highest number of a processor; what a cpu_set_t holds */ };

/* Bytes of all last-level caches together; 0 where the system does not say. */
int64_t luq_cache_bytes(void);

/* Bytes that are in no cache to speak of: four times all last-level caches, at least 256 MiB. */
int64_t luq_uncached_bytes(void);

/* Bytes that can be allocated: what the system and the control group leave; INT64_MAX where neither says. */
int64_t luq_free_memory(void);

/* LUQ_BAD_ARGUMENT with both numbers in `error` if `bytes` are more than is free. */
luq_status luq_check_memory(char *error, int64_t bytes);

/* Memory in large pages where the system has them, as the cache of a mapped file mostly is: reading it takes up to a
 * third less time than reading the small pages of malloc. NULL without memory. */
void *luq_map_memory(size_t bytes);

/* `memory` may be NULL. */
void luq_unmap_memory(void *memory, size_t bytes);

/* The largest amount of memory that this process has held so far. */
int64_t luq_peak_memory(void);

/* Let `work(data, watch)` run on a thread of its own that stays on `cpus`, as do the threads that it starts, and wait
 * for it. `interrupted` is asked on the calling thread; `watch` passes its answer on. */
typedef luq_status (*luq_work)(void *data, luq_watch watch);
luq_status luq_run_pinned(const int64_t *cpus, size_t count, luq_work work, void *data, luq_interrupted interrupted,
                          void *interrupted_data, char *error);

#endif
