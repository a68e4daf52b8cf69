#define _POSIX_C_SOURCE 200809L

#include "luq_image.h"

#include <stdlib.h>
#include <string.h>

#include <mtmd-helper.h>
#include <mtmd.h>

#include "luq_model.h"

enum {
    MICRO_BATCH = 512,         /* llama.cpp's default */
    LOOK_AFTER_WORK = 1000000000 /* products after which the vision part's graph is cut, to look whether to stop */
};

typedef struct {
    luq_model text;
    const luq_image_request *request;
    luq_image_result *result;
    const char *mmproj;
    struct mtmd_context *vision;
    struct mtmd_input_chunks *chunks; /* the image, and what the model wants around it */
    int64_t batch;                    /* tokens of the largest chunk */
    int64_t work;                     /* products since the vision part's graph was cut */
    bool all_at_once; /* the tokens of an image see each other, so that they must be computed together */
} luq_session;

static luq_status check_request(const luq_image_request *request, char *error) {
    luq_status status = luq_check_range(error, "width", request->width, 1, LUQ_MAX_IMAGE_SIDE);
    if (status == LUQ_OK) {
        status = luq_check_range(error, "height", request->height, 1, LUQ_MAX_IMAGE_SIDE);
    }
    const uint64_t bytes = (uint64_t)request->width * (uint64_t)request->height * 3;
    if (status == LUQ_OK && request->pixel_bytes != bytes) {
        status = luq_fail(error, LUQ_BAD_ARGUMENT, "pixels must be 3 * width * height = %llu bytes, not %llu",
                          (unsigned long long)bytes, (unsigned long long)request->pixel_bytes);
    }
    if (status == LUQ_OK) {
        status = luq_check_range(error, "threads", request->threads, 1, LUQ_MAX_THREADS);
    }
    if (status == LUQ_OK) {
        status = luq_check_range(error, "repeat", request->repeat, 1, LUQ_MAX_REPEAT);
    }
    return status;
}

static int64_t work_of(const struct ggml_tensor *tensor) {
    const int64_t outputs = ggml_nelements(tensor);
    if (tensor->op == GGML_OP_MUL_MAT || tensor->op == GGML_OP_IM2COL) {
        return outputs * tensor->src[0]->ne[0];
    }
    return tensor->op == GGML_OP_FLASH_ATTN_EXT ? 2 * outputs * tensor->src[1]->ne[1] : outputs;
}

/* The vision library takes no abort callback. It can show tensors, and stops if told so then; as it computes the graph
 * in pieces that end with what it shows, that is asked for rarely. */
static bool on_tensor(struct ggml_tensor *tensor, bool ask, void *data) {
    luq_session *session = data;
    if (!ask) {
        return !luq_should_stop(&session->text.watch);
    }
    session->work += work_of(tensor);
    if (session->work < LOOK_AFTER_WORK) {
        return false;
    }
    session->work = 0;
    return true;
}

static bool on_vision_progress(float progress, void *watch) {
    (void)progress;
    return !luq_should_stop(watch);
}

static luq_status load_vision(luq_session *session) {
    struct mtmd_context_params params = mtmd_context_params_default();
    params.use_gpu = false;
    params.print_timings = false;
    params.warmup = false;
    params.n_threads = (int)session->request->threads;
    params.cb_eval = on_tensor;
    params.cb_eval_user_data = session;
    params.progress_callback = on_vision_progress;
    params.progress_callback_user_data = &session->text.watch;
    session->vision = mtmd_init_from_file(session->mmproj, session->text.model, params);
    if (session->vision == NULL) {
        return luq_model_fail(&session->text, LUQ_CANNOT_LOAD, "llama.cpp cannot load", session->mmproj);
    }
    if (!mtmd_support_vision(session->vision)) {
        return luq_fail(session->result->error, LUQ_CANNOT_RUN, "%s sees no images", session->mmproj);
    }
    return LUQ_OK;
}

static bool is_image(const struct mtmd_input_chunk *chunk) {
    return mtmd_input_chunk_get_type(chunk) == MTMD_INPUT_CHUNK_TYPE_IMAGE;
}

static luq_status make_chunks(luq_session *session) {
    const luq_image_request *request = session->request;
    const char *marker = mtmd_default_marker();
    const struct mtmd_input_text text = {.text = marker, .text_len = strlen(marker), .parse_special = true};
    struct mtmd_bitmap *bitmap = mtmd_bitmap_init((uint32_t)request->width, (uint32_t)request->height, request->pixels);
    const struct mtmd_bitmap *bitmaps[] = {bitmap};
    session->chunks = mtmd_input_chunks_init();
    const int code = mtmd_tokenize(session->vision, session->chunks, &text, bitmaps, 1);
    mtmd_bitmap_free(bitmap);
    if (code != 0) {
        return luq_model_fail(&session->text, LUQ_CANNOT_RUN, "llama.cpp cannot prepare the image for",
                              session->mmproj);
    }
    for (size_t i = 0; i < mtmd_input_chunks_size(session->chunks); i++) {
        const struct mtmd_input_chunk *chunk = mtmd_input_chunks_get(session->chunks, i);
        const int64_t tokens = (int64_t)mtmd_input_chunk_get_n_tokens(chunk);
        session->batch = tokens > session->batch ? tokens : session->batch;
        if (is_image(chunk)) {
            session->result->tokens += (uint64_t)tokens;
            session->all_at_once = session->all_at_once || mtmd_decode_use_non_causal(session->vision, chunk);
        }
    }
    if (session->result->tokens == 0) {
        return luq_fail(session->result->error, LUQ_CANNOT_RUN, "%s makes no tokens of the image", session->mmproj);
    }
    return LUQ_OK;
}

static luq_status open_context(luq_session *session) {
    const int64_t tokens = (int64_t)mtmd_helper_get_n_tokens(session->chunks);
    const luq_status status = luq_model_check_tokens(&session->text, "the tokens of the image", tokens);
    if (status != LUQ_OK) {
        return status;
    }
    const luq_context_request wanted = {
        .tokens = tokens,
        .batch = session->batch,
        .micro_batch = session->all_at_once ? session->batch : MICRO_BATCH,
        .threads = session->request->threads,
    };
    return luq_model_open(&session->text, &wanted);
}

static int read_image(luq_session *session, const struct mtmd_input_chunk *chunk, llama_pos *position,
                      int64_t *encode_ns, int64_t *prompt_ns) {
    const int64_t started = luq_now_ns();
    int code = mtmd_encode_chunk(session->vision, chunk);
    const int64_t encoded = luq_now_ns();
    if (code == 0 && !luq_should_stop(&session->text.watch)) {
        float *embeddings = mtmd_get_output_embd(session->vision);
        code = mtmd_helper_decode_image_chunk(session->vision, session->text.context, chunk, embeddings, *position, 0,
                                              (int32_t)session->batch, position, NULL, NULL);
        llama_synchronize(session->text.context);
    }
    *encode_ns += encoded - started;
    *prompt_ns += luq_now_ns() - encoded;
    return code;
}

static int run_round(luq_session *session, int64_t *encode_ns, int64_t *prompt_ns) {
    int code = 0;
    llama_pos position = 0;
    *encode_ns = *prompt_ns = 0;
    llama_memory_clear(llama_get_memory(session->text.context), true);
    for (size_t i = 0; code == 0 && i < mtmd_input_chunks_size(session->chunks); i++) {
        const struct mtmd_input_chunk *chunk = mtmd_input_chunks_get(session->chunks, i);
        code = is_image(chunk) ? read_image(session, chunk, &position, encode_ns, prompt_ns)
                               : mtmd_helper_eval_chunk_single(session->vision, session->text.context, chunk, position,
                                                               0, (int32_t)session->batch, false, &position);
        code = luq_should_stop(&session->text.watch) && code == 0 ? 2 : code;
    }
    return code;
}

static luq_status run_rounds(luq_session *session) {
    luq_image_result *result = session->result;
    int64_t encode_ns = 0;
    int64_t prompt_ns = 0;
    int code = run_round(session, &encode_ns, &prompt_ns); /* warms up */
    for (int64_t round = 0; code == 0 && round < session->request->repeat; round++) {
        code = run_round(session, &encode_ns, &prompt_ns);
        if (code == 0 &&
            (!luq_samples_add(&result->encode_ns, encode_ns) || !luq_samples_add(&result->prompt_ns, prompt_ns))) {
            return luq_fail(result->error, LUQ_NO_MEMORY, "no memory for the samples");
        }
    }
    return code == 0 ? LUQ_OK
                     : luq_model_fail(&session->text, LUQ_CANNOT_RUN, "llama.cpp cannot read an image with",
                                      session->mmproj);
}

static luq_status measure(luq_session *session) {
    luq_status status = LUQ_OK;
    if ((status = luq_model_load(&session->text)) == LUQ_OK && (status = load_vision(session)) == LUQ_OK &&
        (status = make_chunks(session)) == LUQ_OK && (status = open_context(session)) == LUQ_OK) {
        status = run_rounds(session);
    }
    return status;
}

static void clean_up(luq_session *session) {
    if (session->chunks != NULL) {
        mtmd_input_chunks_free(session->chunks);
    }
    if (session->vision != NULL) {
        mtmd_free(session->vision);
    }
    luq_model_close(&session->text);
}

luq_status luq_image(const char *model, const char *mmproj, const luq_image_request *request,
                     luq_image_result *result) {
    memset(result, 0, sizeof *result);
    luq_status status = check_request(request, result->error);
    if (status == LUQ_OK) {
        status = luq_check_gguf(model, result->error);
    }
    if (status == LUQ_OK) {
        status = luq_check_gguf(mmproj, result->error);
    }
    if (status != LUQ_OK) {
        return status;
    }
    luq_session session = {.text = {.path = model, .error = result->error}, .request = request, .result = result,
                           .mmproj = mmproj};
    session.text.watch = luq_watch_start(request->interrupted, request->data);
    luq_log_attach(&session.text.log);
    luq_log_vision();
    status = measure(&session);
    clean_up(&session);
    luq_log_detach();
    return session.text.watch.stop ? LUQ_INTERRUPTED : status;
}

void luq_image_clear(luq_image_result *result) {
    free(result->encode_ns.ns);
    free(result->prompt_ns.ns);
    memset(result, 0, sizeof *result);
}
