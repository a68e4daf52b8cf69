/* Loads a GGUF with llama.cpp and times prompt and single-token decoding on the CPU.
 *
 * Plain C: knows nothing of Python, prints nothing, never exits. Several threads may call luq_decode at
 * the same time. */
#ifndef LUQ_DECODE_H
#define LUQ_DECODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    LUQ_MAX_TOKENS = 131072, /* prompt + generate */
    LUQ_MAX_THREADS = 512,   /* llama.cpp's own limit */
    LUQ_MAX_REPEAT = 10000,
    LUQ_ERROR_BYTES = 1024,
};

typedef enum luq_status {
    LUQ_OK = 0,
    LUQ_BAD_ARGUMENT, /* a number of the request is out of range, for anyone or for this model */
    LUQ_CANNOT_LOAD,  /* no GGUF, or llama.cpp refuses it */
    LUQ_CANNOT_RUN,   /* it loads, but llama.cpp cannot decode with it */
    LUQ_NO_MEMORY,
    LUQ_INTERRUPTED, /* the request's `interrupted` said so */
} luq_status;

typedef struct luq_decode_request {
    int64_t prompt;   /* tokens of the prompt, 1 or more */
    int64_t generate; /* single-token decodes after it, 1 or more */
    int64_t threads;  /* 1 to LUQ_MAX_THREADS */
    int64_t repeat;   /* rounds of prompt + generate, 1 to LUQ_MAX_REPEAT */
    /* Asked about ten times a second, on the calling thread; true stops the work. May be NULL. */
    bool (*interrupted)(void *data);
    void *data;
} luq_decode_request;

typedef struct luq_decode_result {
    int64_t *prompt_ns;    /* nanoseconds of each whole prompt */
    size_t prompt_count;   /* entries in prompt_ns: repeat */
    int64_t *generate_ns;  /* nanoseconds of each single-token decode, round after round */
    size_t generate_count; /* entries in generate_ns: repeat * generate */
    int64_t load_ns;       /* nanoseconds from opening the file to a ready context */
    uint64_t model_bytes;  /* bytes of all tensors */
    uint64_t parameters;   /* weights of all tensors */
    uint32_t context;      /* tokens that the context holds */
    char error[LUQ_ERROR_BYTES]; /* one line, not empty unless LUQ_OK or LUQ_INTERRUPTED; may be no UTF-8 */
} luq_decode_result;

/* Start llama.cpp's backends. Call once before luq_decode; there is nothing to undo. */
void luq_start(void);

/* Load `model` (a path), run one round to warm up and `repeat` rounds that are timed: a prompt of fixed
 * tokens in one batch, then single tokens, the KV cache cleared between rounds. Fills `result` (whose
 * content before does not matter); call luq_decode_clear on it afterwards, whatever was returned. */
luq_status luq_decode(const char *model, const luq_decode_request *request, luq_decode_result *result);

/* Free what a result holds. */
void luq_decode_clear(luq_decode_result *result);

#endif
