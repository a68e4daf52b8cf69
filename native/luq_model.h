/* A text model loaded by llama.cpp and a context of it, for those that measure them. */
#ifndef LUQ_MODEL_H
#define LUQ_MODEL_H

#include <llama.h>

#include "luq_common.h"
#include "luq_log.h"

typedef struct luq_model {
    const char *path;
    struct llama_model *model;
    struct llama_context *context;
    luq_watch watch; /* handed to llama.cpp as its callbacks' data, so a luq_model must stay where it is */
    luq_log log;     /* attached by whoever owns this */
    char *error;     /* LUQ_ERROR_BYTES */
} luq_model;

typedef struct luq_context_request {
    int64_t tokens;      /* that the context holds at least */
    int64_t batch;       /* tokens of the largest llama_decode */
    int64_t micro_batch; /* tokens that are computed at once, 0 for llama.cpp's default */
    int64_t threads;
    ggml_backend_sched_eval_callback on_tensor; /* may be NULL */
    void *on_tensor_data;
} luq_context_request;

/* LUQ_INTERRUPTED if the watch says stop, else `status` with "what path: llama.cpp's reason". */
luq_status luq_model_fail(luq_model *model, luq_status status, const char *what, const char *path);

/* llama.cpp is only given regular files that begin as a GGUF does. */
luq_status luq_check_gguf(const char *path, char *error);

/* Load the model, and refuse what generates no text. */
luq_status luq_model_load(luq_model *model);

/* Refuse more tokens than the model knows, which would end the process inside llama_decode. */
luq_status luq_model_check_tokens(luq_model *model, const char *name, int64_t tokens);

luq_status luq_model_open(luq_model *model, const luq_context_request *request);

/* Free context and model. */
void luq_model_close(luq_model *model);

#endif
