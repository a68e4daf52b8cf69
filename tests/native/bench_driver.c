/* Kernels, memory, images and a pinned decode from plain C: every outcome once, on two threads at a time. Run under
 * sanitizers by tests/test_native_core.py as: bench_driver MODEL MMPROJ */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "luq_bandwidth.h"
#include "luq_decode.h"
#include "luq_image.h"
#include "luq_kernel.h"

enum { SIDE = 56 };

typedef struct job job;
struct job {
    luq_status (*measure)(const job *mine, size_t *samples, char *error);
    luq_status wanted;
    const char *words; /* must stand in the error */
    luq_kernel_request kernel;
    luq_bandwidth_request bandwidth;
    luq_image_request image;
    luq_decode_request decode;
    int failed;
};

static const char *model;
static const char *mmproj;
static uint8_t pixels[3 * SIDE * SIDE];

static bool at_once(void *data) {
    (void)data;
    return true;
}

static luq_status kernel(const job *mine, size_t *samples, char *error) {
    luq_kernel_result result;
    const luq_status status = luq_kernel(&mine->kernel, &result);
    *samples = result.ns.count;
    memcpy(error, result.error, LUQ_ERROR_BYTES);
    luq_kernel_clear(&result);
    luq_kernel_clear(&result); /* once more does no harm */
    return status;
}

static luq_status bandwidth(const job *mine, size_t *samples, char *error) {
    luq_bandwidth_result result;
    const luq_status status = luq_bandwidth(&mine->bandwidth, &result);
    const uint64_t words = result.bytes / sizeof(uint64_t);
    *samples = result.ns.count;
    memcpy(error, result.error, LUQ_ERROR_BYTES);
    if (status == LUQ_OK && result.checksum != words * (words - 1) / 2) {
        strcpy(error, "wrong checksum");
        *samples = 0;
    }
    luq_bandwidth_clear(&result);
    luq_bandwidth_clear(&result);
    return status;
}

static luq_status image(const job *mine, size_t *samples, char *error) {
    luq_image_result result;
    const luq_status status = luq_image(model, mmproj, &mine->image, &result);
    *samples = result.encode_ns.count;
    memcpy(error, result.error, LUQ_ERROR_BYTES);
    luq_image_clear(&result);
    luq_image_clear(&result);
    return status;
}

static luq_status swapped(const job *mine, size_t *samples, char *error) {
    luq_image_result result;
    const luq_status status = luq_image(model, model, &mine->image, &result);
    *samples = result.encode_ns.count;
    memcpy(error, result.error, LUQ_ERROR_BYTES);
    luq_image_clear(&result);
    return status;
}

static luq_status decode(const job *mine, size_t *samples, char *error) {
    luq_decode_result result;
    const luq_status status = luq_decode(model, &mine->decode, &result);
    *samples = result.generate_count;
    memcpy(error, result.error, LUQ_ERROR_BYTES);
    luq_decode_clear(&result);
    return status;
}

static void *run(void *data) {
    job *mine = data;
    char error[LUQ_ERROR_BYTES] = "";
    size_t samples = 0;
    const luq_status status = mine->measure(mine, &samples, error);
    if (status != mine->wanted || (status == LUQ_OK) != (samples > 0) || strstr(error, mine->words) == NULL) {
        fprintf(stderr, "status %d, wanted %d, %zu samples, error '%s'\n", status, mine->wanted, samples, error);
        mine->failed = 1;
    }
    return NULL;
}

#define KERNEL(...) .measure = kernel, .kernel = {__VA_ARGS__}
#define BANDWIDTH(...) .measure = bandwidth, .bandwidth = {__VA_ARGS__}
#define IMAGE(...) .measure = image, .image = {.pixels = pixels, __VA_ARGS__}
#define DECODE(...) .measure = decode, .decode = {__VA_ARGS__}

int main(int count, char **arguments) {
    if (count != 3) {
        return 2;
    }
    model = arguments[1];
    mmproj = arguments[2];
    const int64_t first[] = {0};
    const int64_t absent[] = {1023};
    const int64_t large = (int64_t)1 << 24;
    job jobs[] = {
        {KERNEL(12, 64, 512, 1, 2, 0, 1 << 20, NULL, NULL), .wanted = LUQ_OK, .words = ""},
        {KERNEL(14, 33, 256, 5, 1, 0, 1 << 20, NULL, NULL), .wanted = LUQ_OK, .words = ""},
        {KERNEL(2, 4096, 1024, 1024, 1, 0, 1, NULL, NULL), .wanted = LUQ_OK, .words = ""}, /* more than a slice */
        {KERNEL(29, 7, 256, 1, 2, 0, 0, NULL, NULL), .wanted = LUQ_OK, .words = ""},       /* as many as there may be */
        {KERNEL(1, 100, 33, 2, 1, 0.01, 1 << 20, NULL, NULL), .wanted = LUQ_OK, .words = ""},
        {KERNEL(12, 64, 500, 1, 1, 0, 0, NULL, NULL), .wanted = LUQ_BAD_ARGUMENT, .words = "multiple of 256"},
        {KERNEL(4, 64, 512, 1, 1, 0, 0, NULL, NULL), .wanted = LUQ_BAD_ARGUMENT, .words = "type"},
        {KERNEL(0, large, large, 1, 1, 0, 0, NULL, NULL), .wanted = LUQ_BAD_ARGUMENT, .words = "are free"},
        {KERNEL(12, 4096, 4096, 1, 1, 3600, 1 << 24, at_once, NULL), .wanted = LUQ_INTERRUPTED, .words = ""},
        {KERNEL(12, 64, 512, 1, 1, -1, 0, NULL, NULL), .wanted = LUQ_BAD_ARGUMENT, .words = "min_seconds"},
        {BANDWIDTH(2, 1 << 24, 0.01, NULL, NULL), .wanted = LUQ_OK, .words = ""},
        {BANDWIDTH(3, 12345, 0, NULL, NULL), .wanted = LUQ_OK, .words = ""},
        {BANDWIDTH(2, 1 << 24, 3600, at_once, NULL), .wanted = LUQ_INTERRUPTED, .words = ""},
        {BANDWIDTH(1, (int64_t)1 << 50, 0, NULL, NULL), .wanted = LUQ_BAD_ARGUMENT, .words = "are free"},
        {BANDWIDTH(513, 0, 0, NULL, NULL), .wanted = LUQ_BAD_ARGUMENT, .words = "threads"},
        {BANDWIDTH(64, 1, 0, NULL, NULL), .wanted = LUQ_OK, .words = ""},
        {IMAGE(.pixel_bytes = sizeof pixels, .width = SIDE, .height = SIDE, .threads = 1, .repeat = 2),
         .wanted = LUQ_OK, .words = ""},
        {IMAGE(.pixel_bytes = sizeof pixels, .width = SIDE, .height = SIDE, .threads = 2, .repeat = 1),
         .wanted = LUQ_OK, .words = ""},
        {IMAGE(.pixel_bytes = 1, .width = SIDE, .height = SIDE, .threads = 1, .repeat = 1),
         .wanted = LUQ_BAD_ARGUMENT, .words = "bytes"},
        {IMAGE(.pixel_bytes = sizeof pixels, .width = SIDE, .height = SIDE, .threads = 1, .repeat = 10000,
               .interrupted = at_once), .wanted = LUQ_INTERRUPTED, .words = ""},
        {.measure = swapped, .image = {.pixels = pixels, .pixel_bytes = sizeof pixels, .width = SIDE, .height = SIDE,
               .threads = 1, .repeat = 1}, .wanted = LUQ_CANNOT_LOAD, .words = "cannot load"},
        {DECODE(8, 4, 2, 2, NULL, NULL, first, 1), .wanted = LUQ_OK, .words = ""},
        {DECODE(8, 4, 1, 2, NULL, NULL, absent, 1), .wanted = LUQ_BAD_ARGUMENT, .words = "cpus"},
        {DECODE(8, 200, 1, 10000, at_once, NULL, first, 1), .wanted = LUQ_INTERRUPTED, .words = ""},
    };
    const size_t jobs_count = sizeof jobs / sizeof jobs[0];
    int failed = 0;
    luq_start();
    for (size_t i = 0; i < jobs_count; i += 2) {
        pthread_t threads[2];
        for (size_t k = 0; k < 2; k++) {
            if (pthread_create(&threads[k], NULL, run, &jobs[i + k]) != 0) {
                return 3;
            }
        }
        for (size_t k = 0; k < 2; k++) {
            pthread_join(threads[k], NULL);
            failed += jobs[i + k].failed;
        }
    }
    return failed != 0;
}
