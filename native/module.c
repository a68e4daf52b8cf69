/* luq_gguf._native: the C core for Python. Arguments in, a dict of samples out; limited API of 3.11. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "luq_bandwidth.h"
#include "luq_decode.h"
#include "luq_image.h"
#include "luq_kernel.h"

#ifndef LUQ_LLAMA_CPP_PYTHON
#error "LUQ_LLAMA_CPP_PYTHON must be the version of llama-cpp-python whose headers are used"
#endif

typedef struct {
    PyObject *decode_error; /* class DecodeError(RuntimeError) */
} module_state;

/* A whole number as int64; one that does not fit is an error. */
static int to_count(PyObject *number, void *target) {
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(number, &overflow);
    if (value == -1 && PyErr_Occurred()) {
        return 0;
    }
    if (overflow != 0) {
        PyErr_Format(PyExc_ValueError, "%S is out of range", number);
        return 0;
    }
    *(int64_t *)target = value;
    return 1;
}

typedef struct {
    int64_t *numbers; /* NULL for None */
    size_t count;
} number_list;

static void free_numbers(number_list *list) {
    PyMem_Free(list->numbers);
    *list = (number_list){NULL, 0};
}

/* None or a sequence of whole numbers; called with NULL to clean up after another argument's error. */
static int to_numbers(PyObject *sequence, void *target) {
    number_list *list = target;
    if (sequence == NULL) {
        free_numbers(list);
        return 1;
    }
    if (sequence == Py_None) {
        return 1;
    }
    const Py_ssize_t count = PySequence_Size(sequence);
    if (count < 0) {
        return 0;
    }
    list->numbers = PyMem_Calloc((size_t)count + 1, sizeof *list->numbers);
    if (list->numbers == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    list->count = (size_t)count;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *number = PySequence_GetItem(sequence, i);
        const int converted = number != NULL && to_count(number, &list->numbers[i]);
        Py_XDECREF(number);
        if (!converted) {
            free_numbers(list);
            return 0;
        }
    }
    return Py_CLEANUP_SUPPORTED;
}

/* Runs without the GIL: takes it to let Python's signal handlers run, and keeps their exception. */
static bool signals_raised(void *data) {
    PyThreadState **released = data;
    PyEval_RestoreThread(*released);
    const bool raised = PyErr_CheckSignals() != 0;
    *released = PyEval_SaveThread();
    return raised;
}

static PyObject *to_list(const int64_t *values, size_t count) {
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *number = PyLong_FromLongLong(values[i]);
        if (number == NULL || PyList_SetItem(list, (Py_ssize_t)i, number) != 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

static PyObject *samples_to_list(const luq_samples *samples) { return to_list(samples->ns, samples->count); }

/* NULL with an exception for anything but LUQ_OK; after an interruption the handler's exception is set already. */
static PyObject *raise_status(PyObject *module, luq_status status, const char *error) {
    const module_state *state = PyModule_GetState(module);
    PyObject *kind = status == LUQ_BAD_ARGUMENT ? PyExc_ValueError
                     : status == LUQ_NO_MEMORY  ? PyExc_MemoryError
                                                : state->decode_error;
    PyObject *message =
        status != LUQ_INTERRUPTED ? PyUnicode_DecodeUTF8(error, (Py_ssize_t)strlen(error), "replace") : NULL;
    if (message != NULL) {
        PyErr_SetObject(kind, message);
        Py_DECREF(message);
    }
    return NULL;
}

PyDoc_STRVAR(decode_doc,
             "decode($module, /, model, *, prompt, generate, threads, repeat=3, cpus=None, parts=False)\n--\n\n"
             "Time decoding with a GGUF on this CPU; every sample is in nanoseconds.\n\n"
             "Runs one round to warm up and `repeat` timed rounds: `prompt` fixed tokens in one batch, then\n"
             "`generate` single tokens. With `cpus` all of it stays on those processors. With `parts` every decode is\n"
             "cut into products with weights of one type and what lies between, (ggml type or None, samples) each,\n"
             "which takes some microseconds more a part. The GIL is released; Ctrl-C works. Raises ValueError for\n"
             "numbers out of range, DecodeError with llama.cpp's own words if it cannot load or run the file.");

static PyObject *part_to_tuple(const luq_part *part) {
    PyObject *samples = samples_to_list(&part->ns);
    return part->type == LUQ_REST ? Py_BuildValue("(ON)", Py_None, samples)
                                  : Py_BuildValue("(iN)", (int)part->type, samples);
}

static PyObject *parts_to_list(const luq_parts *parts) {
    PyObject *list = PyList_New((Py_ssize_t)parts->count);
    for (size_t i = 0; list != NULL && i < parts->count; i++) {
        PyObject *part = part_to_tuple(&parts->parts[i]);
        if (part == NULL || PyList_SetItem(list, (Py_ssize_t)i, part) != 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

/* Py_BuildValue's N takes the lists over, and passes on that one of them is NULL. */
static PyObject *decode_to_dict(const luq_decode_result *result) {
    return Py_BuildValue("{sNsNsNsNsLsKsKsKsKsLsI}",
                         "prompt_ns", to_list(result->prompt_ns, result->prompt_count),
                         "generate_ns", to_list(result->generate_ns, result->generate_count),
                         "prompt_parts", parts_to_list(&result->prompt_parts),
                         "generate_parts", parts_to_list(&result->generate_parts),
                         "load_ns", (long long)result->load_ns,
                         "model_bytes", (unsigned long long)result->model_bytes,
                         "parameters", (unsigned long long)result->parameters,
                         "kv_bytes", (unsigned long long)result->kv_bytes,
                         "read_bytes", (unsigned long long)result->read_bytes,
                         "peak_memory", (long long)result->peak_memory,
                         "context", (unsigned int)result->context);
}

static PyObject *decode(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"model", "prompt", "generate", "threads", "repeat", "cpus", "parts", NULL};
    PyObject *path = NULL;
    PyObject *answer = NULL;
    number_list cpus = {NULL, 0};
    luq_decode_request request = {.repeat = 3};
    luq_decode_result result;
    int parts = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$O&O&O&O&O&p:decode", names, PyUnicode_FSConverter, &path,
                                     to_count, &request.prompt, to_count, &request.generate, to_count, &request.threads,
                                     to_count, &request.repeat, to_numbers, &cpus, &parts)) {
        return NULL;
    }
    const char *model = PyBytes_AsString(path);
    if (model != NULL) {
        PyThreadState *released = PyEval_SaveThread();
        request.interrupted = signals_raised;
        request.data = &released;
        request.cpus = cpus.numbers;
        request.cpu_count = cpus.count;
        request.parts = parts != 0;
        const luq_status status = luq_decode(model, &request, &result);
        PyEval_RestoreThread(released);
        answer = status == LUQ_OK ? decode_to_dict(&result) : raise_status(module, status, result.error);
        luq_decode_clear(&result);
    }
    free_numbers(&cpus);
    Py_DECREF(path);
    return answer;
}

PyDoc_STRVAR(image_doc,
             "image($module, /, model, mmproj, pixels, width, height, *, threads, repeat=1)\n--\n\n"
             "Time encoding an image with a vision part and reading it with its text model, in nanoseconds.\n\n"
             "`pixels` are bytes of red, green and blue, row after row. Runs one round to warm up and `repeat` timed\n"
             "ones. The GIL is released; Ctrl-C works. Raises ValueError for numbers out of range, DecodeError with\n"
             "llama.cpp's own words if it cannot load or run the files.");

static PyObject *image_to_dict(const luq_image_result *result) {
    return Py_BuildValue("{sNsNsK}",
                         "encode_ns", samples_to_list(&result->encode_ns),
                         "prompt_ns", samples_to_list(&result->prompt_ns),
                         "tokens", (unsigned long long)result->tokens);
}

static PyObject *image(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"model", "mmproj", "pixels", "width", "height", "threads", "repeat", NULL};
    PyObject *paths[] = {NULL, NULL};
    PyObject *answer = NULL;
    Py_buffer pixels = {0};
    luq_image_request request = {.repeat = 1};
    luq_image_result result;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&y*O&O&|$O&O&:image", names, PyUnicode_FSConverter, &paths[0],
                                     PyUnicode_FSConverter, &paths[1], &pixels, to_count, &request.width, to_count,
                                     &request.height, to_count, &request.threads, to_count, &request.repeat)) {
        return NULL;
    }
    const char *model = PyBytes_AsString(paths[0]);
    const char *mmproj = PyBytes_AsString(paths[1]);
    if (model != NULL && mmproj != NULL) {
        PyThreadState *released = PyEval_SaveThread();
        request.interrupted = signals_raised;
        request.data = &released;
        request.pixels = pixels.buf;
        request.pixel_bytes = (uint64_t)pixels.len;
        const luq_status status = luq_image(model, mmproj, &request, &result);
        PyEval_RestoreThread(released);
        answer = status == LUQ_OK ? image_to_dict(&result) : raise_status(module, status, result.error);
        luq_image_clear(&result);
    }
    PyBuffer_Release(&pixels);
    Py_DECREF(paths[0]);
    Py_DECREF(paths[1]);
    return answer;
}

PyDoc_STRVAR(kernel_doc,
             "kernel($module, /, type, rows, columns, batch, *, threads, min_seconds=0.2, working_set=0)\n--\n\n"
             "Time multiplying a weight matrix of a ggml type by `batch` columns of activations on this CPU.\n\n"
             "Copies of the matrix, `working_set` bytes of them (0: more than the caches hold; `batch` times fewer\n"
             "for larger batches), are used in turn, arranged as llama.cpp does it when it loads a model.\n"
             "Every sample is nanoseconds for one matrix; they are taken for `min_seconds`, three at least. The GIL\n"
             "is released; Ctrl-C works. Raises ValueError for types and numbers that cannot be, and for matrices\n"
             "that need more memory than is free.");

static PyObject *kernel_to_dict(const luq_kernel_result *result) {
    return Py_BuildValue("{sNsKsKsKsN}",
                         "ns", samples_to_list(&result->ns),
                         "bytes", (unsigned long long)result->bytes,
                         "weights", (unsigned long long)result->weights,
                         "matrices", (unsigned long long)result->matrices,
                         "repacked", PyBool_FromLong(result->repacked));
}

static PyObject *kernel(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"type", "rows", "columns", "batch", "threads", "min_seconds", "working_set", NULL};
    luq_kernel_request request = {.min_seconds = 0.2};
    luq_kernel_result result;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&O&O&|$O&dO&:kernel", names, to_count, &request.type, to_count,
                                     &request.rows, to_count, &request.columns, to_count, &request.batch, to_count,
                                     &request.threads, &request.min_seconds, to_count, &request.working_set)) {
        return NULL;
    }
    PyThreadState *released = PyEval_SaveThread();
    request.interrupted = signals_raised;
    request.data = &released;
    const luq_status status = luq_kernel(&request, &result);
    PyEval_RestoreThread(released);
    PyObject *answer = status == LUQ_OK ? kernel_to_dict(&result) : raise_status(module, status, result.error);
    luq_kernel_clear(&result);
    return answer;
}

PyDoc_STRVAR(bandwidth_doc,
             "bandwidth($module, /, threads, *, bytes=0, min_seconds=0.2)\n--\n\n"
             "Time reading memory with a number of threads; every sample is nanoseconds for all of it once.\n\n"
             "`bytes` of 0 are more than the caches hold; others are rounded up to whole pages for every thread.\n"
             "Samples are taken for `min_seconds`, three at least. The GIL is released; Ctrl-C works. Raises\n"
             "ValueError for numbers out of range, and for more memory than is free.");

static PyObject *bandwidth_to_dict(const luq_bandwidth_result *result) {
    return Py_BuildValue("{sNsKsK}",
                         "ns", samples_to_list(&result->ns),
                         "bytes", (unsigned long long)result->bytes,
                         "checksum", (unsigned long long)result->checksum);
}

static PyObject *bandwidth(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"threads", "bytes", "min_seconds", NULL};
    luq_bandwidth_request request = {.min_seconds = 0.2};
    luq_bandwidth_result result;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$O&d:bandwidth", names, to_count, &request.threads, to_count,
                                     &request.bytes, &request.min_seconds)) {
        return NULL;
    }
    PyThreadState *released = PyEval_SaveThread();
    request.interrupted = signals_raised;
    request.data = &released;
    const luq_status status = luq_bandwidth(&request, &result);
    PyEval_RestoreThread(released);
    PyObject *answer = status == LUQ_OK ? bandwidth_to_dict(&result) : raise_status(module, status, result.error);
    luq_bandwidth_clear(&result);
    return answer;
}

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))name, METH_VARARGS | METH_KEYWORDS, name##_doc}

static PyMethodDef methods[] = {
    METHOD(decode),
    METHOD(image),
    METHOD(kernel),
    METHOD(bandwidth),
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    state->decode_error = PyErr_NewExceptionWithDoc("luq_gguf._native.DecodeError",
                                                    "llama.cpp could not load or run a file.", PyExc_RuntimeError, NULL);
    if (state->decode_error == NULL ||
        PyModule_AddObjectRef(module, "DecodeError", state->decode_error) != 0 ||
        PyModule_AddStringConstant(module, "LLAMA_CPP_PYTHON", LUQ_LLAMA_CPP_PYTHON) != 0) {
        return -1;
    }
    luq_start();
    return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    const module_state *state = PyModule_GetState(module);
    Py_VISIT(state->decode_error);
    return 0;
}

static int module_clear(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->decode_error);
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)module_exec},
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "luq_gguf._native",
    .m_doc = "Times decoding and its parts through llama.cpp; imported by luq_gguf.bench, after llama_cpp.",
    .m_size = sizeof(module_state),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
