#define _POSIX_C_SOURCE 200809L

#include "luq_model.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { CONTEXT_STEP = 256 /* llama.cpp pads contexts to this */ };

luq_status luq_model_fail(luq_model *model, luq_status status, const char *what, const char *path) {
    if (model->watch.stop) {
        return LUQ_INTERRUPTED;
    }
    return luq_fail(model->error, status, "%s %s: %s", what, path, luq_log_reason(&model->log));
}

luq_status luq_check_gguf(const char *path, char *error) {
    struct stat about;
    char magic[4] = {0};
    if (stat(path, &about) != 0) {
        return luq_fail(error, LUQ_CANNOT_LOAD, "cannot open %s: %s", path, strerror(errno));
    }
    FILE *file = S_ISREG(about.st_mode) ? fopen(path, "rb") : NULL;
    const size_t got = file != NULL ? fread(magic, 1, sizeof magic, file) : 0;
    if (file != NULL) {
        fclose(file);
    }
    if (got != sizeof magic || memcmp(magic, "GGUF", sizeof magic) != 0) {
        return luq_fail(error, LUQ_CANNOT_LOAD, "%s is no GGUF", path);
    }
    return LUQ_OK;
}

static bool on_load_progress(float progress, void *watch) {
    (void)progress;
    return !luq_should_stop(watch);
}

static luq_status no_text(luq_model *model) {
    return luq_fail(model->error, LUQ_CANNOT_RUN, "%s does not generate text", model->path);
}

luq_status luq_model_load(luq_model *model) {
    ggml_backend_dev_t no_devices[] = {NULL};
    struct llama_model_params params = llama_model_default_params();
    params.devices = no_devices; /* the CPU alone is measured */
    params.n_gpu_layers = 0;
    params.progress_callback = on_load_progress;
    params.progress_callback_user_data = &model->watch;
    model->model = llama_model_load_from_file(model->path, params);
    if (model->model == NULL) {
        return luq_model_fail(model, LUQ_CANNOT_LOAD, "llama.cpp cannot load", model->path);
    }
    if (llama_model_has_encoder(model->model) || !llama_model_has_decoder(model->model) ||
        llama_vocab_n_tokens(llama_model_get_vocab(model->model)) < 1) {
        return no_text(model);
    }
    return LUQ_OK;
}

luq_status luq_model_check_tokens(luq_model *model, const char *name, int64_t tokens) {
    const int64_t limit = llama_model_n_ctx_train(model->model);
    if (limit <= 0 || tokens <= limit) {
        return LUQ_OK;
    }
    return luq_fail(model->error, LUQ_BAD_ARGUMENT, "%s must be at most %lld for %s, not %lld", name, (long long)limit,
                    model->path, (long long)tokens);
}

luq_status luq_model_open(luq_model *model, const luq_context_request *request) {
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = ((uint32_t)request->tokens + CONTEXT_STEP - 1) / CONTEXT_STEP * CONTEXT_STEP;
    params.n_batch = (uint32_t)request->batch;
    if (request->micro_batch > 0) {
        params.n_ubatch = (uint32_t)request->micro_batch;
    }
    params.n_outputs_max = 1; /* only the last token of a batch gets logits, as when a frontend reads a prompt */
    params.n_threads = (int32_t)request->threads;
    params.n_threads_batch = (int32_t)request->threads;
    params.cb_eval = request->on_tensor;
    params.cb_eval_user_data = request->on_tensor_data;
    params.abort_callback = luq_on_node;
    params.abort_callback_data = &model->watch;
    params.offload_kqv = false;
    params.op_offload = false;
    model->context = llama_init_from_model(model->model, params);
    if (model->context == NULL) {
        return luq_model_fail(model, LUQ_CANNOT_RUN, "llama.cpp makes no context for", model->path);
    }
    return llama_get_memory(model->context) != NULL ? LUQ_OK : no_text(model);
}

void luq_model_close(luq_model *model) {
    if (model->context != NULL) {
        llama_free(model->context);
        model->context = NULL;
    }
    if (model->model != NULL) {
        llama_model_free(model->model);
        model->model = NULL;
    }
}
