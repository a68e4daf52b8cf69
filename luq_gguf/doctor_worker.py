"""A child of the doctor: uses one library and prints what it found as JSON, so that a crash ends this child alone.

Takes the library's name; nothing that goes wrong is more than a line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

Found = dict[str, Any]
ENDED = "it ended the process"


def _try_torch() -> Found:
    import torch

    ones = torch.ones((64, 64), dtype=torch.bfloat16)
    if float((ones @ ones)[0, 0]) != 64:
        raise ArithmeticError("64 ones do not make 64")
    return {"version": torch.__version__}


def _try_transformers() -> Found:
    import transformers

    transformers.AutoConfig.for_model("qwen2")
    return {"version": transformers.__version__}


def _try_sklearn() -> Found:
    import numpy as np
    import sklearn
    from sklearn.cluster import KMeans

    KMeans(2, n_init=1, random_state=0).fit(np.eye(4))
    return {"version": sklearn.__version__}


def _try_llama() -> Found:
    """llama.cpp, and then the native module on its libraries."""
    import llama_cpp
    import llama_cpp.mtmd_cpp
    from gguf.constants import GGMLQuantizationType

    said = llama_cpp.llama_print_system_info().decode(errors="replace")
    found: Found = {"version": llama_cpp.__version__, "build": _build(llama_cpp), "instructions": _instructions(said)}
    try:
        from luq_gguf import _native

        found["native_for"] = _native.LLAMA_CPP_PYTHON
        if llama_cpp.__version__ == _native.LLAMA_CPP_PYTHON:
            say(found | {"native_problem": ENDED})  # stays the last word where the next line ends the process
            _native.kernel(int(GGMLQuantizationType.Q4_K), 256, 256, 1, threads=1, min_seconds=0.001, working_set=1)
    except Exception as error:
        found["native_problem"] = describe(error)
    return found


def _instructions(said: str) -> list[str]:
    """Names with a 1 in llama.cpp's line "CPU : SSE3 = 1 | AVX2 = 1 | "."""
    pairs = (part.rpartition(":")[2].partition("=") for part in said.split("|"))
    return [name.strip() for name, _, value in pairs if value.strip() == "1"]


def _build(llama_cpp: Any) -> str | None:
    """ggml's version and commit; older libraries do not tell them."""
    import ctypes
    from pathlib import Path

    folder = Path(llama_cpp.__file__).parent / "lib"
    path = next(
        (path for path in sorted(folder.glob("*ggml-base.*")) if path.suffix in {".so", ".dylib", ".dll"}), None
    )
    if path is None:
        return None
    library, words = ctypes.CDLL(str(path)), []
    for name in ("ggml_version", "ggml_commit"):
        function = getattr(library, name, None)
        if function is not None:
            function.restype = ctypes.c_char_p
            words.append(function().decode(errors="replace"))
    return f"ggml {', commit '.join(words)}" if words else None


def describe(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def say(found: Found) -> None:
    """One line of JSON for the owner."""
    sys.stdout.write(f"\n{json.dumps(found)}\n")
    sys.stdout.flush()


TRIALS: dict[str, Callable[[], Found]] = {
    "torch": _try_torch,
    "transformers": _try_transformers,
    "scikit-learn": _try_sklearn,
    "llama-cpp-python": _try_llama,
}


def main() -> None:
    """Use the library that the command line names."""
    try:
        found = TRIALS[sys.argv[1]]()
    except BaseException as error:  # whatever a library throws is what was asked for
        found = {"problem": describe(error)}
    say(found)


if __name__ == "__main__":
    main()
