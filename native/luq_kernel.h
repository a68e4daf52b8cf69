/* Times the multiplication of a weight matrix and activations as llama.cpp does it on the CPU inside a model.
 *
 * Several threads may call luq_kernel at the same time; luq_start comes first. */
#ifndef LUQ_KERNEL_H
#define LUQ_KERNEL_H

#include "luq_common.h"

enum {
    LUQ_MAX_SIDE = 1 << 24,
    LUQ_MAX_BATCH = 1 << 16,
    LUQ_MAX_MATRICES = 1 << 13, /* a graph goes through at most so many, however small they are */
};

#define LUQ_MAX_WORKING_SET ((int64_t)1 << 50)

typedef struct luq_kernel_request {
    int64_t type;        /* enum ggml_type that llama.cpp can quantize to, or F32, F16, BF16 */
    int64_t rows;        /* outputs of the matrix */
    int64_t columns;     /* inputs, a multiple of the type's block */
    int64_t batch;       /* columns of the activations: 1 for a generated token, the tokens of a prompt */
    int64_t threads;     /* 1 to LUQ_MAX_THREADS */
    double min_seconds;  /* samples are taken for that long, and LUQ_MIN_SAMPLES at least */
    int64_t working_set; /* bytes of all matrices that are used in turn, 0 for what no cache holds; as every column of
                            the activations uses a matrix again, `batch` times fewer are enough */
    luq_interrupted interrupted;
    void *data;
} luq_kernel_request;

typedef struct luq_kernel_result {
    luq_samples ns;    /* of one matrix, one entry for each time that all were used */
    uint64_t bytes;    /* of one matrix, as in a file */
    uint64_t weights;  /* rows * columns */
    uint64_t matrices; /* used in turn */
    bool repacked;     /* llama.cpp rearranges such a matrix when it loads a model */
    char error[LUQ_ERROR_BYTES];
} luq_kernel_result;

/* Fills `result`; call luq_kernel_clear on it afterwards, whatever was returned. */
luq_status luq_kernel(const luq_kernel_request *request, luq_kernel_result *result);

void luq_kernel_clear(luq_kernel_result *result);

#endif
