"""Run llama.cpp's convert_hf_to_gguf on a checkpoint whose tokenizer it does not know by name.

    python scripts/convert_stock.py LLAMA_CPP MODEL OUT.gguf [--mmproj]

LLAMA_CPP is llama.cpp's folder in the source archive; for benchmarks that measure the converter as users run it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from make_golden import load_converter


def main() -> None:
    folder, model, target, *extra = sys.argv[1:]
    converter = load_converter(Path(folder).resolve())
    sys.argv = ["convert_hf_to_gguf.py", model, "--outtype", "bf16", "--outfile", target, *extra]
    converter.main()


if __name__ == "__main__":
    main()
