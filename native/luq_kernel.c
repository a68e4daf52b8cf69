#define _POSIX_C_SOURCE 200809L

#include "luq_kernel.h"

#include <stdlib.h>
#include <string.h>

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>

#include "luq_log.h"
#include "luq_machine.h"

enum {
    SAMPLE_WEIGHTS = 1 << 14, /* that are repeated all over the matrices; whole blocks of any type */
    SLICE_WEIGHTS = 1 << 26,  /* of one tensor: what is filled without asking whether to stop */
    SLICE_STEP = 64,          /* rows that any rearrangement of llama.cpp takes whole */
    SLICE_WORK = 1000000000,  /* products that a thread computes without asking whether to stop */
    LARGE_NODE = 100000000,   /* products of a graph node after which the clock is looked at every time */
    STRIDE = 16,              /* nodes between two looks otherwise */
    PROBE_BATCH = 512,        /* what llama.cpp asks for when it chooses a buffer type */
};

/* A matrix is cut by rows into slices, tensors of their own, because ggml can be stopped only between them. */
typedef struct {
    const luq_kernel_request *request;
    luq_kernel_result *result;
    enum ggml_type type;
    int64_t slice_rows;
    int64_t slices; /* of a matrix */
    ggml_backend_dev_t device;
    ggml_backend_buffer_type_t kind; /* of the weights */
    ggml_backend_t backend;
    struct ggml_context *weights;
    struct ggml_context *rest; /* activations, products and the graph */
    struct ggml_tensor *input;
    struct ggml_cgraph *graph;
    ggml_backend_buffer_t weight_buffer;
    ggml_backend_buffer_t rest_buffer;
    void *mapped; /* the memory of weight_buffer, unless that has its own */
    size_t mapped_bytes;
    uint8_t *sample; /* SAMPLE_WEIGHTS of the type, in `sample_bytes` */
    size_t sample_bytes;
    uint8_t *slice; /* what is copied into a tensor */
    luq_watch watch;
    luq_log log;
} luq_bench;

/* Types whose quantizers search in tables that take seconds to build, and cannot be stopped at that. */
static bool has_slow_quantizer(enum ggml_type type) {
    switch (type) {
        case GGML_TYPE_IQ1_S:
        case GGML_TYPE_IQ1_M:
        case GGML_TYPE_IQ2_XXS:
        case GGML_TYPE_IQ2_XS:
        case GGML_TYPE_IQ2_S:
        case GGML_TYPE_IQ3_XXS:
        case GGML_TYPE_IQ3_S:
            return true;
        default:
            return false;
    }
}

static bool is_weight_type(int64_t type) {
    if (type < 0 || type >= GGML_TYPE_COUNT || ggml_blck_size((enum ggml_type)type) < 1) {
        return false;
    }
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
            return true;
        case GGML_TYPE_Q8_1: /* these two hold activations only */
        case GGML_TYPE_Q8_K:
            return false;
        default:
            return ggml_is_quantized((enum ggml_type)type) && (has_slow_quantizer((enum ggml_type)type) ||
                                                               !ggml_quantize_requires_imatrix((enum ggml_type)type));
    }
}

static luq_status check_shape(const luq_kernel_request *request, char *error) {
    luq_status status = luq_check_range(error, "rows", request->rows, 1, LUQ_MAX_SIDE);
    if (status == LUQ_OK) {
        status = luq_check_range(error, "columns", request->columns, 1, LUQ_MAX_SIDE);
    }
    if (status == LUQ_OK) {
        status = luq_check_range(error, "batch", request->batch, 1, LUQ_MAX_BATCH);
    }
    const int64_t block = ggml_blck_size((enum ggml_type)request->type);
    if (status == LUQ_OK && request->columns % block != 0) {
        status = luq_fail(error, LUQ_BAD_ARGUMENT, "columns must be a multiple of %lld for %s, not %lld",
                          (long long)block, ggml_type_name((enum ggml_type)request->type), (long long)request->columns);
    }
    return status;
}

static luq_status check_request(const luq_kernel_request *request, char *error) {
    if (!is_weight_type(request->type)) {
        return luq_fail(error, LUQ_BAD_ARGUMENT, "type must be one that weights have in a GGUF, not %lld",
                        (long long)request->type);
    }
    luq_status status = check_shape(request, error);
    if (status == LUQ_OK) {
        status = luq_check_range(error, "threads", request->threads, 1, LUQ_MAX_THREADS);
    }
    if (status == LUQ_OK) {
        status = luq_check_seconds(error, "min_seconds", request->min_seconds);
    }
    if (status == LUQ_OK) {
        status = luq_check_range(error, "working_set", request->working_set, 0, LUQ_MAX_WORKING_SET);
    }
    return status;
}

static struct ggml_context *new_context(size_t tensors, size_t graph_nodes) {
    const struct ggml_init_params params = {
        .mem_size = tensors * ggml_tensor_overhead() +
                    (graph_nodes > 0 ? ggml_graph_overhead_custom(graph_nodes, false) : 0),
        .no_alloc = true,
    };
    return ggml_init(params);
}

/* Put the CPU backend's function of that name, or NULL, into a pointer to a function. */
static void find_function(const luq_bench *bench, const char *name, void *pointer, size_t size) {
    void *found = ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(bench->device), name);
    memcpy(pointer, &found, size);
}

/* As llama.cpp's model loader asks it: with an empty buffer, for a large batch. */
static bool takes_matrix(const luq_bench *bench, ggml_backend_buffer_type_t kind) {
    const luq_kernel_request *request = bench->request;
    struct ggml_context *context = new_context(3, 0);
    struct ggml_tensor *matrix = ggml_new_tensor_2d(context, bench->type, request->columns, request->rows);
    struct ggml_tensor *input = ggml_new_tensor_2d(context, GGML_TYPE_F32, request->columns, PROBE_BATCH);
    struct ggml_tensor *product = ggml_mul_mat(context, matrix, input);
    matrix->buffer = ggml_backend_buft_alloc_buffer(kind, 0);
    const bool takes = ggml_backend_dev_supports_op(bench->device, product);
    ggml_backend_buffer_free(matrix->buffer);
    ggml_free(context);
    return takes;
}

/* The first of the CPU's extra buffer types that takes the matrix, as the loader prefers them, else the plain one. */
static void choose_kind(luq_bench *bench) {
    ggml_backend_dev_get_extra_bufts_t get_extra = NULL;
    find_function(bench, "ggml_backend_dev_get_extra_bufts", &get_extra, sizeof get_extra);
    bench->kind = ggml_backend_dev_buffer_type(bench->device);
    ggml_backend_buffer_type_t *extra = get_extra != NULL ? get_extra(bench->device) : NULL;
    for (; extra != NULL && *extra != NULL; extra++) {
        if (takes_matrix(bench, *extra)) {
            bench->kind = *extra;
            bench->result->repacked = true;
            return;
        }
    }
}

static luq_status start_backend(luq_bench *bench) {
    bench->device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    bench->backend = bench->device != NULL ? ggml_backend_dev_init(bench->device, NULL) : NULL;
    if (bench->backend == NULL) {
        return luq_fail(bench->result->error, LUQ_CANNOT_RUN, "llama.cpp has no CPU backend");
    }
    ggml_backend_set_n_threads_t set_threads = NULL;
    ggml_backend_set_abort_callback_t set_abort = NULL;
    find_function(bench, "ggml_backend_set_n_threads", &set_threads, sizeof set_threads);
    find_function(bench, "ggml_backend_set_abort_callback", &set_abort, sizeof set_abort);
    if (set_threads == NULL || set_abort == NULL) {
        return luq_fail(bench->result->error, LUQ_CANNOT_RUN, "llama.cpp's CPU backend takes no number of threads");
    }
    set_threads(bench->backend, (int)bench->request->threads);
    set_abort(bench->backend, luq_on_node, &bench->watch);
    return LUQ_OK;
}

static int64_t smaller(int64_t one, int64_t other) { return one < other ? one : other; }

static void choose_slices(luq_bench *bench) {
    const luq_kernel_request *request = bench->request;
    const int64_t by_work = SLICE_WORK * request->threads / (request->columns * request->batch);
    const int64_t by_size = SLICE_WEIGHTS / request->columns;
    const int64_t most = smaller(by_work, by_size) / SLICE_STEP * SLICE_STEP;
    bench->slice_rows = smaller(most > SLICE_STEP ? most : SLICE_STEP, request->rows);
    bench->slices = (request->rows + bench->slice_rows - 1) / bench->slice_rows;
    bench->watch.stride = bench->slice_rows * request->columns * request->batch > LARGE_NODE ? 1 : STRIDE;
}

static void choose_matrices(luq_bench *bench) {
    const int64_t bytes = (int64_t)bench->result->bytes;
    const int64_t wanted = bench->request->working_set > 0 ? bench->request->working_set : luq_uncached_bytes();
    const int64_t batch = bench->request->batch;
    const int64_t matrices = (wanted + bytes - 1) / bytes;
    bench->result->matrices = (uint64_t)smaller((matrices + batch - 1) / batch, LUQ_MAX_MATRICES);
}

static int64_t rows_of_slice(const luq_bench *bench, int64_t slice) {
    return smaller(bench->slice_rows, bench->request->rows - slice * bench->slice_rows);
}

/* Before anything is allocated: matrices, the copy of a slice, activations as given and as llama.cpp converts them,
 * products, and what describes the tensors. */
static luq_status check_memory(const luq_bench *bench) {
    const luq_kernel_request *request = bench->request;
    const int64_t matrices = (int64_t)bench->result->matrices;
    const int64_t nodes = matrices * bench->slices;
    const int64_t slice = (int64_t)ggml_row_size(bench->type, request->columns) * bench->slice_rows;
    const int64_t activations = 4 * (2 * request->columns + request->rows) * request->batch;
    return luq_check_memory(bench->result->error, matrices * (int64_t)bench->result->bytes + slice + activations +
                                                      nodes * 3 * (int64_t)ggml_tensor_overhead());
}

static float next_random(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / (float)(1 << 23) - 1.0f;
}

/* In blocks of these types any bits are weights, but for the scale of a block, a float16 that random bits could make
 * infinite: it comes first, or is spread over the highest four bits of the last four 16-bit words. */
static void draw_blocks(luq_bench *bench) {
    const size_t block = ggml_type_size(bench->type);
    uint32_t state = 1;
    for (size_t i = 0; i < bench->sample_bytes; i++) {
        state = state * 1664525u + 1013904223u;
        bench->sample[i] = (uint8_t)(state >> 24);
    }
    for (uint8_t *at = bench->sample; at < bench->sample + bench->sample_bytes; at += block) {
        if (bench->type == GGML_TYPE_IQ1_M) {
            at[block - 1] = (uint8_t)((at[block - 1] & 0x0f) | 0x20);
        } else {
            at[1] = 0x20;
        }
    }
}

/* Blocks as a quantizer makes them, so that every scale is a number that real weights could have. */
static luq_status quantize_blocks(luq_bench *bench) {
    float *values = malloc(SAMPLE_WEIGHTS * sizeof *values);
    if (values == NULL) {
        return LUQ_NO_MEMORY;
    }
    uint32_t state = 1;
    for (size_t i = 0; i < SAMPLE_WEIGHTS; i++) {
        values[i] = next_random(&state) / 16;
    }
    ggml_quantize_chunk(bench->type, values, bench->sample, 0, 1, SAMPLE_WEIGHTS, NULL);
    free(values);
    return LUQ_OK;
}

static luq_status make_sample(luq_bench *bench) {
    bench->sample_bytes = ggml_row_size(bench->type, SAMPLE_WEIGHTS);
    bench->sample = malloc(bench->sample_bytes);
    if (bench->sample == NULL) {
        return LUQ_NO_MEMORY;
    }
    if (has_slow_quantizer(bench->type)) {
        draw_blocks(bench);
    } else if (quantize_blocks(bench) != LUQ_OK) {
        return LUQ_NO_MEMORY;
    }
    if (!ggml_validate_row_data(bench->type, bench->sample, bench->sample_bytes)) {
        return luq_fail(bench->result->error, LUQ_CANNOT_RUN, "llama.cpp finds no numbers in weights of type %s",
                        ggml_type_name(bench->type));
    }
    return LUQ_OK;
}

static luq_status make_slice(luq_bench *bench) {
    const size_t bytes = ggml_row_size(bench->type, bench->request->columns) * (size_t)bench->slice_rows;
    bench->slice = malloc(bytes);
    if (bench->slice == NULL) {
        return LUQ_NO_MEMORY;
    }
    for (size_t at = 0; at < bytes; at += bench->sample_bytes) {
        const size_t left = bytes - at;
        memcpy(bench->slice + at, bench->sample, left < bench->sample_bytes ? left : bench->sample_bytes);
    }
    return LUQ_OK;
}

static size_t round_up(size_t bytes, size_t step) { return (bytes + step - 1) / step * step; }

/* As the loader does with weights that stay as they are in the file, which it maps. */
static luq_status map_weights(luq_bench *bench) {
    const size_t align = ggml_backend_buft_get_alignment(bench->kind);
    size_t largest = 0;
    struct ggml_tensor *tensor = ggml_get_first_tensor(bench->weights);
    for (; tensor != NULL; tensor = ggml_get_next_tensor(bench->weights, tensor)) {
        const size_t bytes = round_up(ggml_nbytes(tensor), align);
        bench->mapped_bytes += bytes;
        largest = bytes > largest ? bytes : largest;
    }
    bench->mapped = luq_map_memory(bench->mapped_bytes);
    if (bench->mapped == NULL) {
        return LUQ_NO_MEMORY;
    }
    bench->weight_buffer =
        ggml_backend_dev_buffer_from_host_ptr(bench->device, bench->mapped, bench->mapped_bytes, largest);
    if (bench->weight_buffer == NULL) {
        return LUQ_NO_MEMORY;
    }
    uint8_t *memory = bench->mapped;
    tensor = ggml_get_first_tensor(bench->weights);
    for (; tensor != NULL; tensor = ggml_get_next_tensor(bench->weights, tensor)) {
        ggml_backend_tensor_alloc(bench->weight_buffer, tensor, memory);
        memory += round_up(ggml_nbytes(tensor), align);
    }
    return LUQ_OK;
}

static luq_status allocate_weights(luq_bench *bench) {
    if (!bench->result->repacked) {
        return map_weights(bench);
    }
    bench->weight_buffer = ggml_backend_alloc_ctx_tensors_from_buft(bench->weights, bench->kind);
    return bench->weight_buffer != NULL ? LUQ_OK : LUQ_NO_MEMORY;
}

static luq_status make_weights(luq_bench *bench) {
    const int64_t matrices = (int64_t)bench->result->matrices;
    bench->weights = new_context((size_t)(matrices * bench->slices), 0);
    for (int64_t i = 0; i < matrices * bench->slices; i++) {
        ggml_new_tensor_2d(bench->weights, bench->type, bench->request->columns,
                           rows_of_slice(bench, i % bench->slices));
    }
    const luq_status status = allocate_weights(bench);
    if (status != LUQ_OK) {
        return status;
    }
    struct ggml_tensor *tensor = ggml_get_first_tensor(bench->weights);
    for (; tensor != NULL; tensor = ggml_get_next_tensor(bench->weights, tensor)) {
        if (luq_should_stop(&bench->watch)) {
            return LUQ_INTERRUPTED;
        }
        ggml_backend_tensor_set(tensor, bench->slice, 0, ggml_nbytes(tensor));
    }
    return LUQ_OK;
}

/* All products go to the same memory, as those of a model do; room for that of a slice is enough. */
static void add_products(luq_bench *bench, uint8_t *memory) {
    struct ggml_tensor *tensor = ggml_get_first_tensor(bench->weights);
    for (; tensor != NULL; tensor = ggml_get_next_tensor(bench->weights, tensor)) {
        struct ggml_tensor *product = ggml_mul_mat(bench->rest, tensor, bench->input);
        ggml_backend_tensor_alloc(bench->rest_buffer, product, memory);
        ggml_build_forward_expand(bench->graph, product);
    }
}

static luq_status make_graph(luq_bench *bench) {
    const luq_kernel_request *request = bench->request;
    const size_t nodes = (size_t)bench->result->matrices * (size_t)bench->slices;
    bench->rest = new_context(nodes + 1, nodes + 1);
    bench->input = ggml_new_tensor_2d(bench->rest, GGML_TYPE_F32, request->columns, request->batch);
    bench->graph = ggml_new_graph_custom(bench->rest, nodes + 1, false);
    const size_t align = ggml_backend_get_alignment(bench->backend);
    const size_t input_bytes = round_up(ggml_nbytes(bench->input), align);
    const size_t product_bytes = sizeof(float) * (size_t)(bench->slice_rows * request->batch);
    bench->rest_buffer = ggml_backend_alloc_buffer(bench->backend, input_bytes + product_bytes + align);
    if (bench->rest_buffer == NULL) {
        return LUQ_NO_MEMORY;
    }
    uint8_t *memory = ggml_backend_buffer_get_base(bench->rest_buffer);
    ggml_backend_tensor_alloc(bench->rest_buffer, bench->input, memory);
    uint32_t state = 2;
    float *values = (float *)memory;
    for (int64_t i = 0; i < request->columns * request->batch; i++) {
        values[i] = next_random(&state);
    }
    add_products(bench, memory + input_bytes);
    return LUQ_OK;
}

static luq_status run_graph(luq_bench *bench, int64_t *spent) {
    const int64_t started = luq_now_ns();
    const enum ggml_status code = ggml_backend_graph_compute(bench->backend, bench->graph);
    *spent = luq_now_ns() - started;
    if (luq_should_stop(&bench->watch)) {
        return LUQ_INTERRUPTED;
    }
    if (code != GGML_STATUS_SUCCESS) {
        return luq_fail(bench->result->error, code == GGML_STATUS_ALLOC_FAILED ? LUQ_NO_MEMORY : LUQ_CANNOT_RUN,
                        "llama.cpp cannot multiply: %s", luq_log_reason(&bench->log));
    }
    return LUQ_OK;
}

static luq_status run_samples(luq_bench *bench) {
    luq_samples *samples = &bench->result->ns;
    const int64_t matrices = (int64_t)bench->result->matrices;
    const double seconds = bench->request->min_seconds / (double)matrices; /* a sample is the time of one matrix */
    int64_t spent = 0;
    luq_status status = run_graph(bench, &spent); /* warms up */
    while (status == LUQ_OK && luq_samples_wanted(samples, seconds)) {
        status = run_graph(bench, &spent);
        if (status == LUQ_OK && !luq_samples_add(samples, spent / matrices)) {
            status = LUQ_NO_MEMORY;
        }
    }
    return status;
}

static luq_status measure(luq_bench *bench) {
    const luq_kernel_request *request = bench->request;
    bench->type = (enum ggml_type)request->type;
    bench->result->weights = (uint64_t)(request->rows * request->columns);
    bench->result->bytes = (uint64_t)ggml_row_size(bench->type, request->columns) * (uint64_t)request->rows;
    choose_slices(bench);
    choose_matrices(bench);
    luq_status status = check_memory(bench);
    if (status == LUQ_OK) {
        status = start_backend(bench);
    }
    if (status != LUQ_OK) {
        return status;
    }
    choose_kind(bench);
    if ((status = make_sample(bench)) == LUQ_OK && (status = make_slice(bench)) == LUQ_OK &&
        (status = make_weights(bench)) == LUQ_OK && (status = make_graph(bench)) == LUQ_OK) {
        status = run_samples(bench);
    }
    if (status == LUQ_NO_MEMORY && bench->result->error[0] == '\0') {
        luq_fail(bench->result->error, status, "no memory for the matrices");
    }
    return status;
}

static void clean_up(luq_bench *bench) {
    free(bench->sample);
    free(bench->slice);
    ggml_backend_buffer_free(bench->weight_buffer);
    ggml_backend_buffer_free(bench->rest_buffer);
    luq_unmap_memory(bench->mapped, bench->mapped_bytes);
    ggml_free(bench->weights);
    ggml_free(bench->rest);
    ggml_backend_free(bench->backend);
}

luq_status luq_kernel(const luq_kernel_request *request, luq_kernel_result *result) {
    memset(result, 0, sizeof *result);
    luq_status status = check_request(request, result->error);
    if (status != LUQ_OK) {
        return status;
    }
    luq_bench bench = {.request = request, .result = result};
    bench.watch = luq_watch_start(request->interrupted, request->data);
    luq_log_attach(&bench.log);
    status = measure(&bench);
    clean_up(&bench);
    luq_log_detach();
    return bench.watch.stop ? LUQ_INTERRUPTED : status;
}

void luq_kernel_clear(luq_kernel_result *result) {
    free(result->ns.ns);
    memset(result, 0, sizeof *result);
}
