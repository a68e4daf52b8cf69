/* Times reading memory: what a generated token can need at best, as it reads every weight once.
 *
 * Several threads may call luq_bandwidth at the same time. */
#ifndef LUQ_BANDWIDTH_H
#define LUQ_BANDWIDTH_H

#include "luq_common.h"

#define LUQ_MAX_BANDWIDTH_BYTES ((int64_t)1 << 50)

typedef struct luq_bandwidth_request {
    int64_t threads;    /* 1 to LUQ_MAX_THREADS */
    int64_t bytes;      /* of the memory that is read, 0 for what no cache holds; rounded up to pages of every thread */
    double min_seconds; /* samples are taken for that long, and LUQ_MIN_SAMPLES at least */
    luq_interrupted interrupted;
    void *data;
} luq_bandwidth_request;

typedef struct luq_bandwidth_result {
    luq_samples ns;    /* of reading all once */
    uint64_t bytes;    /* read in each of them */
    uint64_t checksum; /* of the last: the sum of 0, 1, 2, ... up to the number of 8-byte words that were read */
    char error[LUQ_ERROR_BYTES];
} luq_bandwidth_result;

/* Fills `result`; call luq_bandwidth_clear on it afterwards, whatever was returned. */
luq_status luq_bandwidth(const luq_bandwidth_request *request, luq_bandwidth_result *result);

void luq_bandwidth_clear(luq_bandwidth_result *result);

#endif
