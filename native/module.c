/* luq_gguf._native: the C core for Python. Arguments in, a dict of samples out; limited API of 3.11. */
#include <Python.h>

#include <string.h>

#include "luq_decode.h"

#ifndef LUQ_LLAMA_CPP_PYTHON
#error "LUQ_LLAMA_CPP_PYTHON must be the version of llama-cpp-python whose headers are used"
#endif

typedef struct {
    PyObject *decode_error; /* class DecodeError(RuntimeError) */
} module_state;

/* A whole number as int64; what does not fit becomes 0, which no request takes. */
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

static PyObject *to_dict(const luq_decode_result *result) {
    PyObject *prompt = to_list(result->prompt_ns, result->prompt_count);
    PyObject *generate = to_list(result->generate_ns, result->generate_count);
    PyObject *dict = NULL;
    if (prompt != NULL && generate != NULL) {
        dict = Py_BuildValue("{sOsOsLsKsKsI}", "prompt_ns", prompt, "generate_ns", generate, "load_ns",
                             (long long)result->load_ns, "model_bytes", (unsigned long long)result->model_bytes,
                             "parameters", (unsigned long long)result->parameters, "context",
                             (unsigned int)result->context);
    }
    Py_XDECREF(prompt);
    Py_XDECREF(generate);
    return dict;
}

static void raise_status(PyObject *module, luq_status status, const luq_decode_result *result) {
    const module_state *state = PyModule_GetState(module);
    PyObject *kind = status == LUQ_BAD_ARGUMENT ? PyExc_ValueError
                     : status == LUQ_NO_MEMORY  ? PyExc_MemoryError
                                                : state->decode_error;
    PyObject *message = PyUnicode_DecodeUTF8(result->error, (Py_ssize_t)strlen(result->error), "replace");
    if (message != NULL) {
        PyErr_SetObject(kind, message);
        Py_DECREF(message);
    }
}

PyDoc_STRVAR(decode_doc,
             "decode($module, /, model, *, prompt, generate, threads, repeat=3)\n--\n\n"
             "Time decoding with a GGUF on this CPU; every sample is in nanoseconds.\n\n"
             "Runs one round to warm up and `repeat` timed rounds: `prompt` fixed tokens in one batch, then\n"
             "`generate` single tokens. The GIL is released; Ctrl-C works. Raises ValueError for numbers out of\n"
             "range, DecodeError with llama.cpp's own words if it cannot load or run the file.");

static PyObject *decode(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"model", "prompt", "generate", "threads", "repeat", NULL};
    PyObject *path = NULL;
    PyObject *answer = NULL;
    luq_decode_request request = {.repeat = 3};
    luq_decode_result result;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$O&O&O&O&:decode", names, PyUnicode_FSConverter, &path, to_count,
                                     &request.prompt, to_count, &request.generate, to_count, &request.threads, to_count,
                                     &request.repeat)) {
        Py_XDECREF(path);
        return NULL;
    }
    const char *model = PyBytes_AsString(path);
    if (model != NULL) {
        PyThreadState *released = PyEval_SaveThread();
        request.interrupted = signals_raised;
        request.data = &released;
        const luq_status status = luq_decode(model, &request, &result);
        PyEval_RestoreThread(released);
        if (status == LUQ_OK) {
            answer = to_dict(&result);
        } else if (status != LUQ_INTERRUPTED) { /* else the handler's exception is set already */
            raise_status(module, status, &result);
        }
        luq_decode_clear(&result);
    }
    Py_DECREF(path);
    return answer;
}

static PyMethodDef methods[] = {
    {"decode", (PyCFunction)(void (*)(void))decode, METH_VARARGS | METH_KEYWORDS, decode_doc},
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
    .m_doc = "Times decoding through llama.cpp; imported by luq_gguf.bench, after llama_cpp.",
    .m_size = sizeof(module_state),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
