#define _POSIX_C_SOURCE 200809L

#include "luq_decode.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <llama.h>

#include "luq_log.h"

enum {
    CONTEXT_STEP = 256,               /* llama.cpp pads contexts to this */
    LOOK_EVERY_NS = 100 * 1000 * 1000, /* how often `interrupted` is asked */
    STRIDE = 16, /* graph nodes between two looks at the clock in a single-token decode, so that looking costs nothing */
};

/* Asks the caller now and then whether to stop; handed to llama.cpp as its callbacks' data. */
typedef struct {
    const luq_decode_request *request;
    int64_t asked_ns; /* when it was asked last */
    unsigned calls;
    unsigned stride; /* look at the clock every so many calls */
    bool stop;
} luq_watch;

typedef struct {
    struct llama_model *model;
    struct llama_context *context;
    llama_token *tokens; /* prompt + generate of them */
    luq_watch watch;
    luq_log log;
} luq_session;

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static bool should_stop(luq_watch *watch) {
    if (watch->stop || watch->request->interrupted == NULL) {
        return watch->stop;
    }
    const int64_t now = now_ns();
    if (now - watch->asked_ns >= LOOK_EVERY_NS) {
        watch->asked_ns = now;
        watch->stop = watch->request->interrupted(watch->request->data);
    }
    return watch->stop;
}

/* ggml calls this between graph nodes, on the thread that called llama_decode. */
static bool on_node(void *data) {
    luq_watch *watch = data;
    return ++watch->calls % watch->stride == 0 && should_stop(watch);
}

static bool on_load_progress(float progress, void *data) {
    (void)progress;
    return !should_stop(data);
}

static luq_status check_range(const char *name, int64_t value, int64_t limit, luq_decode_result *result) {
    if (value >= 1 && value <= limit) {
        return LUQ_OK;
    }
    snprintf(result->error, sizeof result->error, "%s must be 1 to %lld, not %lld", name, (long long)limit,
             (long long)value);
    return LUQ_BAD_ARGUMENT;
}

static luq_status check_request(const luq_decode_request *request, luq_decode_result *result) {
    luq_status status = check_range("prompt", request->prompt, LUQ_MAX_TOKENS - 1, result);
    if (status == LUQ_OK) {
        status = check_range("generate", request->generate, LUQ_MAX_TOKENS - request->prompt, result);
    }
    if (status == LUQ_OK) {
        status = check_range("threads", request->threads, LUQ_MAX_THREADS, result);
    }
    if (status == LUQ_OK) {
        status = check_range("repeat", request->repeat, LUQ_MAX_REPEAT, result);
    }
    return status;
}

/* llama.cpp is only given regular files that begin as a GGUF does. */
static luq_status check_magic(const char *model, luq_decode_result *result) {
    struct stat about;
    char magic[4] = {0};
    if (stat(model, &about) != 0) {
        snprintf(result->error, sizeof result->error, "cannot open %s: %s", model, strerror(errno));
        return LUQ_CANNOT_LOAD;
    }
    FILE *file = S_ISREG(about.st_mode) ? fopen(model, "rb") : NULL;
    const size_t got = file != NULL ? fread(magic, 1, sizeof magic, file) : 0;
    if (file != NULL) {
        fclose(file);
    }
    if (got != sizeof magic || memcmp(magic, "GGUF", sizeof magic) != 0) {
        snprintf(result->error, sizeof result->error, "%s is no GGUF", model);
        return LUQ_CANNOT_LOAD;
    }
    return LUQ_OK;
}

static luq_status fail(luq_session *session, luq_status status, const char *what, const char *model,
                       luq_decode_result *result) {
    if (session->watch.stop) {
        return LUQ_INTERRUPTED;
    }
    snprintf(result->error, sizeof result->error, "%s %s: %s", what, model, luq_log_reason(&session->log));
    return status;
}

static luq_status load_model(luq_session *session, const char *model, luq_decode_result *result) {
    ggml_backend_dev_t no_devices[] = {NULL};
    struct llama_model_params params = llama_model_default_params();
    params.devices = no_devices; /* the CPU alone is measured */
    params.n_gpu_layers = 0;
    params.progress_callback = on_load_progress;
    params.progress_callback_user_data = &session->watch;
    session->model = llama_model_load_from_file(model, params);
    if (session->model == NULL) {
        return fail(session, LUQ_CANNOT_LOAD, "llama.cpp cannot load", model, result);
    }
    result->model_bytes = llama_model_size(session->model);
    result->parameters = llama_model_n_params(session->model);
    return LUQ_OK;
}

/* Refuse here what would end the process inside llama_decode. */
static luq_status check_model(luq_session *session, const char *model, const luq_decode_request *request,
                              luq_decode_result *result) {
    const int64_t limit = llama_model_n_ctx_train(session->model);
    if (limit > 0 && request->prompt + request->generate > limit) {
        snprintf(result->error, sizeof result->error, "prompt + generate must be at most %lld for %s, not %lld",
                 (long long)limit, model, (long long)(request->prompt + request->generate));
        return LUQ_BAD_ARGUMENT;
    }
    if (llama_model_has_encoder(session->model) || !llama_model_has_decoder(session->model) ||
        llama_vocab_n_tokens(llama_model_get_vocab(session->model)) < 1) {
        snprintf(result->error, sizeof result->error, "%s does not generate text", model);
        return LUQ_CANNOT_RUN;
    }
    return LUQ_OK;
}

static luq_status open_context(luq_session *session, const char *model, const luq_decode_request *request,
                               luq_decode_result *result) {
    const uint32_t tokens = (uint32_t)(request->prompt + request->generate);
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (tokens + CONTEXT_STEP - 1) / CONTEXT_STEP * CONTEXT_STEP;
    params.n_batch = (uint32_t)request->prompt;
    params.n_outputs_max = 1; /* only the last token of a batch gets logits, as when a frontend reads a prompt */
    params.n_threads = (int32_t)request->threads;
    params.n_threads_batch = (int32_t)request->threads;
    params.abort_callback = on_node;
    params.abort_callback_data = &session->watch;
    params.offload_kqv = false;
    params.op_offload = false;
    session->context = llama_init_from_model(session->model, params);
    if (session->context == NULL) {
        return fail(session, LUQ_CANNOT_RUN, "llama.cpp makes no context for", model, result);
    }
    if (llama_get_memory(session->context) == NULL) {
        snprintf(result->error, sizeof result->error, "%s does not generate text", model);
        return LUQ_CANNOT_RUN;
    }
    result->context = llama_n_ctx(session->context);
    return LUQ_OK;
}

/* The same tokens for every file with the same vocabulary, spread over all of it. */
static luq_status make_tokens(luq_session *session, const luq_decode_request *request) {
    const int64_t vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(session->model));
    const size_t count = (size_t)(request->prompt + request->generate);
    session->tokens = malloc(count * sizeof *session->tokens);
    if (session->tokens == NULL) {
        return LUQ_NO_MEMORY;
    }
    for (size_t i = 0; i < count; i++) {
        session->tokens[i] = (llama_token)((int64_t)(i * 7919 + 13) % vocabulary);
    }
    return LUQ_OK;
}

static luq_status make_room(const luq_decode_request *request, luq_decode_result *result) {
    const size_t rounds = (size_t)request->repeat;
    result->prompt_ns = calloc(rounds, sizeof *result->prompt_ns);
    result->generate_ns = calloc(rounds * (size_t)request->generate, sizeof *result->generate_ns);
    return result->prompt_ns != NULL && result->generate_ns != NULL ? LUQ_OK : LUQ_NO_MEMORY;
}

/* Decode `count` tokens from `first` on; *spent gets the nanoseconds. 0, or llama_decode's code. */
static int decode_tokens(luq_session *session, int64_t first, int64_t count, int64_t *spent) {
    session->watch.stride = count > 1 ? 1 : STRIDE;
    const int64_t started = now_ns();
    const int code = llama_decode(session->context, llama_batch_get_one(session->tokens + first, (int32_t)count));
    llama_synchronize(session->context);
    *spent = now_ns() - started;
    return should_stop(&session->watch) && code == 0 ? 2 : code;
}

/* One round; samples go to prompt_ns (one) and generate_ns (`generate` of them). */
static int run_round(luq_session *session, int64_t prompt, int64_t generate, int64_t *prompt_ns, int64_t *generate_ns) {
    llama_memory_clear(llama_get_memory(session->context), true);
    int code = decode_tokens(session, 0, prompt, prompt_ns);
    for (int64_t i = 0; code == 0 && i < generate; i++) {
        code = decode_tokens(session, prompt + i, 1, generate_ns + i);
    }
    return code;
}

static luq_status run_rounds(luq_session *session, const char *model, const luq_decode_request *request,
                             luq_decode_result *result) {
    int code = run_round(session, request->prompt, 1, result->prompt_ns, result->generate_ns); /* overwritten below */
    for (int64_t round = 0; code == 0 && round < request->repeat; round++) {
        code = run_round(session, request->prompt, request->generate, result->prompt_ns + round,
                         result->generate_ns + round * request->generate);
    }
    if (code != 0) {
        return fail(session, LUQ_CANNOT_RUN, "llama.cpp cannot decode with", model, result);
    }
    result->prompt_count = (size_t)request->repeat;
    result->generate_count = (size_t)(request->repeat * request->generate);
    return LUQ_OK;
}

void luq_start(void) { llama_backend_init(); }

luq_status luq_decode(const char *model, const luq_decode_request *request, luq_decode_result *result) {
    memset(result, 0, sizeof *result);
    luq_status status = check_request(request, result);
    if (status == LUQ_OK) {
        status = check_magic(model, result);
    }
    if (status != LUQ_OK) {
        return status;
    }
    luq_session session = {.watch = {.request = request, .stride = 1}};
    luq_log_attach(&session.log);
    const int64_t started = now_ns();
    if ((status = load_model(&session, model, result)) != LUQ_OK ||
        (status = check_model(&session, model, request, result)) != LUQ_OK ||
        (status = open_context(&session, model, request, result)) != LUQ_OK) {
        goto done;
    }
    result->load_ns = now_ns() - started;
    if ((status = make_tokens(&session, request)) != LUQ_OK || (status = make_room(request, result)) != LUQ_OK) {
        snprintf(result->error, sizeof result->error, "no memory for the samples");
        goto done;
    }
    status = run_rounds(&session, model, request, result);
done:
    free(session.tokens);
    if (session.context != NULL) {
        llama_free(session.context);
    }
    if (session.model != NULL) {
        llama_model_free(session.model);
    }
    luq_log_detach();
    return status;
}

void luq_decode_clear(luq_decode_result *result) {
    free(result->prompt_ns);
    free(result->generate_ns);
    memset(result, 0, sizeof *result);
}
