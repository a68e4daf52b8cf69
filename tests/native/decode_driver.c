/* The core from plain C: every outcome once, on two threads at a time. Run under sanitizers by
 * tests/test_native_core.py as: decode_driver MODEL NOT_A_TEXT_MODEL */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "luq_decode.h"

typedef struct {
    const char *model;
    luq_decode_request request;
    luq_status wanted;
    const char *words; /* must stand in the result's error */
    int failed;
} job;

static bool at_once(void *data) {
    ++*(int *)data;
    return true;
}

static bool on_third(void *data) { return ++*(int *)data >= 3; }

static void *run(void *data) {
    const job *mine = data;
    luq_decode_result result;
    const luq_status status = luq_decode(mine->model, &mine->request, &result);
    const size_t parts = result.prompt_parts.count < result.generate_parts.count ? result.prompt_parts.count
                                                                                 : result.generate_parts.count;
    const bool parted = (parts > 2) == (status == LUQ_OK && mine->request.parts);
    const bool counted = result.prompt_count == (status == LUQ_OK ? (size_t)mine->request.repeat : 0) &&
                         result.generate_count == result.prompt_count * (size_t)mine->request.generate;
    if (status != mine->wanted || !counted || !parted || strstr(result.error, mine->words) == NULL) {
        fprintf(stderr, "%s: status %d, wanted %d, error '%s'\n", mine->model, status, mine->wanted, result.error);
        ((job *)data)->failed = 1;
    }
    luq_decode_clear(&result);
    luq_decode_clear(&result); /* once more does no harm */
    return NULL;
}

int main(int count, char **arguments) {
    if (count != 3) {
        return 2;
    }
    const char *good = arguments[1];
    const char *vision = arguments[2];
    int asked[2] = {0, 0};
    job jobs[] = {
        {good, {.prompt = 8, .generate = 4, .threads = 1, .repeat = 2}, LUQ_OK, "", 0},
        {good, {.prompt = 70, .generate = 1, .threads = 2, .repeat = 1}, LUQ_OK, "", 0},
        {good, {.prompt = 600, .generate = 3, .threads = 2, .repeat = 2, .parts = true}, LUQ_OK, "", 0},
        {vision, {.prompt = 8, .generate = 4, .threads = 1, .repeat = 2, .parts = true}, LUQ_CANNOT_LOAD, "CLIP", 0},
        {good, {.prompt = 0, .generate = 4, .threads = 1, .repeat = 2}, LUQ_BAD_ARGUMENT, "prompt must be", 0},
        {good, {.prompt = 100000, .generate = 4, .threads = 1, .repeat = 1}, LUQ_BAD_ARGUMENT, "at most", 0},
        {vision, {.prompt = 8, .generate = 4, .threads = 1, .repeat = 2}, LUQ_CANNOT_LOAD, "CLIP", 0},
        {"/nowhere", {.prompt = 8, .generate = 4, .threads = 1, .repeat = 2}, LUQ_CANNOT_LOAD, "No such file", 0},
        {good, {200, 1, 1, 10000, at_once, &asked[0], NULL, 0, false}, LUQ_INTERRUPTED, "", 0},
        {good, {1, 200, 1, 10000, on_third, &asked[1], NULL, 0, true}, LUQ_INTERRUPTED, "", 0},
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
    if (asked[0] != 1 || asked[1] != 3) { /* it stops at the first yes */
        fprintf(stderr, "asked %d and %d times\n", asked[0], asked[1]);
        failed++;
    }
    return failed != 0;
}
