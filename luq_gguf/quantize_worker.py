"""The child process that calls llama.cpp's quantizers: `python -m luq_gguf.quantize_worker`.

Reads one job a line (JSON) from stdin, writes llama.cpp's log to stdout and, after each job, one line
that begins with `RESULT`. An assertion of llama.cpp ends this process only. It ends by itself as soon as
stdin closes, so that it never outlives its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as llama

from luq_gguf import quantize_rates, row_errors
from luq_gguf.errors import LuqError
from luq_gguf.importance import read_means
from luq_gguf.quantizer import RESULT


def main() -> None:
    """Serve jobs until stdin closes."""
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    os.dup2(1, 2)  # assertions write to stderr; one stream keeps their place in the log
    on_log = llama.llama_log_callback(_log)
    llama.llama_log_set(on_log, ctypes.c_void_p(0))
    llama.llama_backend_init()
    while True:
        _serve(json.loads(jobs.get()))


def _listen(jobs: queue.SimpleQueue[str]) -> None:
    """Pass lines on; at the end of stdin leave at once, in the middle of a tensor if need be."""
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


def _log(level: int, text: bytes, user_data: object) -> None:
    os.write(1, text)


def _serve(job: Mapping[str, Any]) -> None:
    try:
        answer = _answer(job)
    except (LuqError, OSError, MemoryError, ValueError) as error:
        answer = {"code": -1, "error": f"{type(error).__name__}: {error}"}
    os.write(1, f"\n{RESULT}{json.dumps(answer)}\n".encode())


def _answer(job: Mapping[str, Any]) -> dict[str, Any]:
    """What a job asks for: errors of rows, rates of types, or a quantized file."""
    if "rows" in job:
        return {"code": 0, "errors": row_errors.answer_of(job)}
    if "kinds" in job:
        return {"code": 0, "rates": quantize_rates.answer_of(job)}
    return {"code": _quantize(job)}


def _quantize(job: Mapping[str, Any]) -> int:
    """One call of llama.cpp's quantizer; every buffer is a local here, so it lives as long as the call."""
    parameters = llama.llama_model_quantize_default_params()
    parameters.nthread = job["threads"]
    parameters.ftype = job["file_type"]
    parameters.dry_run = job["dry_run"]
    parameters.max_buf_size = job["buffer_bytes"]
    overrides = _overrides(job["types"])
    parameters.tt_overrides = ctypes.cast(overrides, type(parameters.tt_overrides))
    means = read_means(Path(job["imatrix"]), job["weights"]) if job["imatrix"] else {}
    importance = _importance(means)
    parameters.imatrix = ctypes.cast(importance, type(parameters.imatrix))
    metadata = _metadata(job["metadata"])
    parameters.kv_overrides = ctypes.cast(metadata, type(parameters.kv_overrides))
    return int(
        llama.llama_model_quantize(os.fsencode(job["source"]), os.fsencode(job["target"]), ctypes.byref(parameters))
    )


def _overrides(types: list[tuple[str, int]]) -> ctypes.Array[Any]:
    """Pattern and type of each weight; a null pattern ends the list."""
    structure = llama.llama_model_tensor_override
    rows = [structure(pattern.encode(), kind) for pattern, kind in types]
    array: ctypes.Array[Any] = (structure * (len(rows) + 1))(*rows, structure(None, 0))
    return array


def _importance(means: Mapping[str, Any]) -> ctypes.Array[Any]:
    """The matrix by weight name; a null name ends the list, which is there even when empty.

    llama.cpp chooses some types by whether there is a matrix, so a dry run must have one too.
    """
    structure = llama.llama_model_imatrix_data
    pointer = ctypes.POINTER(ctypes.c_float)
    rows = [structure(name.encode(), row.ctypes.data_as(pointer), row.size) for name, row in means.items()]
    array: ctypes.Array[Any] = (structure * (len(rows) + 1))(*rows, structure(None, None, 0))
    return array


def _metadata(pairs: list[tuple[str, int | str]]) -> ctypes.Array[Any]:
    """Keys to set in the result, in order; an empty key ends the list."""
    structure = llama.llama_model_kv_override
    array: ctypes.Array[Any] = (structure * (len(pairs) + 1))()
    for row, (key, value) in zip(array, pairs, strict=False):
        row.key = key.encode()
        if isinstance(value, str):
            row.tag = llama.LLAMA_KV_OVERRIDE_TYPE_STR
            row.value.val_str = value.encode()
        else:
            row.tag = llama.LLAMA_KV_OVERRIDE_TYPE_INT
            row.value.val_i64 = value
    return array


if __name__ == "__main__":
    main()
