#define _POSIX_C_SOURCE 200809L

#include "luq_decode.h"

#include <stdlib.h>
#include <string.h>

#include <gguf.h>

#include "luq_machine.h"
#include "luq_model.h"

enum {
    STRIDE = 16, /* graph nodes between two looks at the clock in a single-token decode: so looking costs nothing */
    STOPPED = 2, /* llama_decode's code for it */
};

typedef struct {
    luq_model text;
    const luq_decode_request *request;
    luq_decode_result *result;
    llama_token *tokens; /* prompt + generate of them */
    bool counting;       /* add up kv_bytes */
    luq_parts_clock prompt_clock;
    luq_parts_clock generate_clock;
    luq_parts_clock *clock; /* of the decode that runs, NULL where nobody asked for parts */
} luq_session;

static luq_status check_request(const luq_decode_request *request, char *error) {
    luq_status status = luq_check_range(error, "prompt", request->prompt, 1, LUQ_MAX_TOKENS - 1);
    if (status == LUQ_OK) {
        status = luq_check_range(error, "generate", request->generate, 1, LUQ_MAX_TOKENS - request->prompt);
    }
    if (status == LUQ_OK) {
        status = luq_check_range(error, "threads", request->threads, 1, LUQ_MAX_THREADS);
    }
    if (status == LUQ_OK) {
        status = luq_check_range(error, "repeat", request->repeat, 1, LUQ_MAX_REPEAT);
    }
    return status;
}

/* llama.cpp tells nobody how large its caches are, but shows every tensor that it computes: those of the caches are
 * seen where a decode writes them, each once. Unless parts are timed nothing is asked for, so the graph still runs in one
 * piece. */
static bool on_tensor(struct ggml_tensor *tensor, bool ask, void *data) {
    luq_session *session = data;
    const struct ggml_tensor *whole = tensor->view_src;
    if (ask && session->counting && tensor->op == GGML_OP_SET_ROWS && whole != NULL &&
        strncmp(whole->name, "cache_", strlen("cache_")) == 0) {
        session->result->kv_bytes += ggml_nbytes(whole);
    }
    return session->clock != NULL ? luq_parts_on_tensor(session->clock, tensor, ask) : !ask;
}

static luq_status open_context(luq_session *session) {
    const luq_decode_request *request = session->request;
    const luq_context_request wanted = {
        .tokens = request->prompt + request->generate,
        .batch = request->prompt,
        .threads = request->threads,
        .on_tensor = on_tensor,
        .on_tensor_data = session,
    };
    const luq_status status = luq_model_open(&session->text, &wanted);
    if (status == LUQ_OK) {
        session->result->context = llama_n_ctx(session->text.context);
    }
    return status;
}

static uint64_t tensor_bytes(const struct gguf_context *file, int64_t index) {
    return index >= 0 ? gguf_get_tensor_size(file, index) : 0;
}

/* Of the embeddings only one row is read, unless they are the output matrix too: then all of them and a row. */
static uint64_t count_read_bytes(const char *model, uint64_t model_bytes, int64_t vocabulary) {
    const struct gguf_init_params params = {.no_alloc = true, .ctx = NULL};
    struct gguf_context *file = gguf_init_from_file(model, params);
    if (file == NULL) {
        return model_bytes;
    }
    const uint64_t embeddings = tensor_bytes(file, gguf_find_tensor(file, "token_embd.weight"));
    const bool tied = gguf_find_tensor(file, "output.weight") < 0;
    gguf_free(file);
    return model_bytes - (tied ? 0 : embeddings) + embeddings / (uint64_t)vocabulary;
}

static void describe_model(luq_session *session) {
    const struct llama_model *model = session->text.model;
    luq_decode_result *result = session->result;
    result->model_bytes = llama_model_size(model);
    result->parameters = llama_model_n_params(model);
    result->read_bytes = count_read_bytes(session->text.path, result->model_bytes,
                                          llama_vocab_n_tokens(llama_model_get_vocab(model)));
}

/* The same tokens for every file with the same vocabulary, spread over all of it. */
static luq_status make_tokens(luq_session *session) {
    const int64_t vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(session->text.model));
    const size_t count = (size_t)(session->request->prompt + session->request->generate);
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
    struct llama_context *context = session->text.context;
    session->text.watch.stride = count > 1 ? 1 : STRIDE;
    const int64_t started = luq_now_ns();
    const int code = llama_decode(context, llama_batch_get_one(session->tokens + first, (int32_t)count));
    llama_synchronize(context);
    *spent = luq_now_ns() - started;
    return luq_should_stop(&session->text.watch) && code == 0 ? STOPPED : code;
}

static int decode_with(luq_session *session, luq_parts_clock *clock, int64_t first, int64_t count, int64_t *spent) {
    if (!session->request->parts) {
        return decode_tokens(session, first, count, spent);
    }
    session->clock = clock;
    luq_parts_begin(clock);
    const int code = decode_tokens(session, first, count, spent);
    session->clock = NULL;
    luq_parts_end(clock);
    return code;
}

/* One round; samples go to prompt_ns (one) and generate_ns (`generate` of them). */
static int run_round(luq_session *session, int64_t generate, int64_t *prompt_ns, int64_t *generate_ns) {
    const int64_t prompt = session->request->prompt;
    llama_memory_clear(llama_get_memory(session->text.context), true);
    int code = decode_with(session, &session->prompt_clock, 0, prompt, prompt_ns);
    for (int64_t i = 0; code == 0 && i < generate; i++) {
        code = decode_with(session, &session->generate_clock, prompt + i, 1, generate_ns + i);
    }
    return code;
}

/* A prompt and a token whose times nobody keeps, but whose parts are noted; the token is one graph, in which the caches
 * are counted. */
static int warm_up(luq_session *session) {
    int64_t ignored = 0;
    int code = run_round(session, 0, &ignored, NULL);
    if (code == 0) {
        session->counting = true;
        code = decode_with(session, &session->generate_clock, session->request->prompt, 1, &ignored);
        session->counting = false;
    }
    return code;
}

static luq_status run_rounds(luq_session *session) {
    const luq_decode_request *request = session->request;
    luq_decode_result *result = session->result;
    int code = warm_up(session);
    for (int64_t round = 0; code == 0 && round < request->repeat; round++) {
        code = run_round(session, request->generate, result->prompt_ns + round,
                         result->generate_ns + round * request->generate);
    }
    if (code != 0) {
        return luq_model_fail(&session->text, LUQ_CANNOT_RUN, "llama.cpp cannot decode with", session->text.path);
    }
    result->prompt_count = (size_t)request->repeat;
    result->generate_count = (size_t)(request->repeat * request->generate);
    result->peak_memory = luq_peak_memory();
    return LUQ_OK;
}

void luq_start(void) { llama_backend_init(); }

static luq_status measure(luq_session *session) {
    const luq_decode_request *request = session->request;
    const int64_t started = luq_now_ns();
    luq_status status = luq_model_load(&session->text);
    if (status == LUQ_OK) {
        status = luq_model_check_tokens(&session->text, "prompt + generate", request->prompt + request->generate);
    }
    if (status == LUQ_OK) {
        status = open_context(session);
    }
    if (status != LUQ_OK) {
        return status;
    }
    session->result->load_ns = luq_now_ns() - started;
    describe_model(session);
    if (make_tokens(session) != LUQ_OK || make_room(request, session->result) != LUQ_OK) {
        return luq_fail(session->result->error, LUQ_NO_MEMORY, "no memory for the samples");
    }
    return run_rounds(session);
}

/* What was measured until a run failed or was interrupted, wherever that was, is no result. */
static void keep_nothing(luq_decode_result *result) {
    luq_parts_clear(&result->prompt_parts);
    luq_parts_clear(&result->generate_parts);
    result->prompt_count = 0;
    result->generate_count = 0;
}

/* Everything that llama.cpp does for a request happens here, on the thread that calls this. */
static luq_status run(void *data, luq_watch watch) {
    luq_session *session = data;
    session->text.watch = watch;
    luq_log_attach(&session->text.log);
    luq_status status = measure(session);
    free(session->tokens);
    luq_parts_finish(&session->prompt_clock);
    luq_parts_finish(&session->generate_clock);
    luq_model_close(&session->text);
    luq_log_detach();
    if (session->text.watch.stop) {
        status = LUQ_INTERRUPTED;
    }
    if (status != LUQ_OK) {
        keep_nothing(session->result);
    }
    return status;
}

luq_status luq_decode(const char *model, const luq_decode_request *request, luq_decode_result *result) {
    memset(result, 0, sizeof *result);
    luq_status status = check_request(request, result->error);
    if (status == LUQ_OK) {
        status = luq_check_gguf(model, result->error);
    }
    if (status != LUQ_OK) {
        return status;
    }
    luq_session session = {.text = {.path = model, .error = result->error}, .request = request, .result = result};
    session.prompt_clock.parts = &result->prompt_parts;
    session.generate_clock.parts = &result->generate_parts;
    if (request->cpus == NULL) {
        return run(&session, luq_watch_start(request->interrupted, request->data));
    }
    return luq_run_pinned(request->cpus, request->cpu_count, run, &session, request->interrupted, request->data,
                          result->error);
}

void luq_decode_clear(luq_decode_result *result) {
    free(result->prompt_ns);
    free(result->generate_ns);
    luq_parts_clear(&result->prompt_parts);
    luq_parts_clear(&result->generate_parts);
    memset(result, 0, sizeof *result);
}
