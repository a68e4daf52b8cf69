/* Loads a GGUF with llama.cpp and times prompt and single-token decoding on the CPU.
 *
 * Plain C: knows nothing of Python, prints nothing, never exits. Several threads may call luq_decode at
 * the same time. */
#ifndef LUQ_DECODE_H
#define LUQ_DECODE_H

#include "luq_common.h"
#include "luq_parts.h"

enum { LUQ_MAX_TOKENS = 131072 /* prompt + generate */ };

typedef struct luq_decode_request {
    int64_t prompt;   /* tokens of the prompt, 1 or more */
    int64_t generate; /* single-token decodes after it, 1 or more */
    int64_t threads;  /* 1 to LUQ_MAX_THREADS */
    int64_t repeat;   /* rounds of prompt + generate, 1 to LUQ_MAX_REPEAT */
    luq_interrupted interrupted;
    void *data;
    const int64_t *cpus; /* processors that all threads stay on; NULL: any */
    size_t cpu_count;    /* entries in cpus */
    bool parts;          /* time every decode part by part, too */
} luq_decode_request;

typedef struct luq_decode_result {
    int64_t *prompt_ns;    /* nanoseconds of each whole prompt */
    size_t prompt_count;   /* entries in prompt_ns: repeat */
    int64_t *generate_ns;  /* nanoseconds of each single-token decode, round after round */
    size_t generate_count; /* entries in generate_ns: repeat * generate */
    luq_parts prompt_parts;   /* of each prompt in prompt_ns; none unless asked for, or where they change */
    luq_parts generate_parts; /* of each decode in generate_ns, likewise */
    int64_t load_ns;       /* nanoseconds from opening the file to a ready context */
    uint64_t model_bytes;  /* bytes of all tensors */
    uint64_t parameters;   /* weights of all tensors */
    uint64_t kv_bytes;     /* bytes of the keys and values that the context has room for */
    uint64_t read_bytes;   /* bytes of weights that one generated token reads */
    int64_t peak_memory;   /* the largest amount of memory that the process has held so far */
    uint32_t context;      /* tokens that the context holds */
    char error[LUQ_ERROR_BYTES]; /* one line, not empty unless LUQ_OK or LUQ_INTERRUPTED; may be no UTF-8 */
} luq_decode_result;

/* Start llama.cpp's backends. Call once before anything else here; there is nothing to undo. */
void luq_start(void);

/* Load `model` (a path), run one round to warm up and `repeat` rounds that are timed: a prompt of fixed
 * tokens in one batch, then single tokens, the KV cache cleared between rounds. Fills `result` (whose
 * content before does not matter); call luq_decode_clear on it afterwards, whatever was returned. */
luq_status luq_decode(const char *model, const luq_decode_request *request, luq_decode_result *result);

/* Free what a result holds. */
void luq_decode_clear(luq_decode_result *result);

#endif
