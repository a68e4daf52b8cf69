"""Write tests/golden/*.json: what llama.cpp's own converter makes of the pico and demo checkpoints.

    .venv/bin/python scripts/make_golden.py --llama-cpp llama_cpp_python-0.3.36/vendor/llama.cpp

The folder comes from the source archive of llama-cpp-python:
`pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36`, then unpack it. The converter is
not part of this repository. It knows tokenizers by a hash, so the home-made byte-level ones are declared to be
Llama 3's or Qwen2's; and it imports sentencepiece before it looks for tokenizer.model, so where that is not installed
the look comes first. For LLaVA-1.5 and Gemma 3 it must be installed.

A golden file holds, for every output type and for text model and mmproj: each tensor's shape, type and SHA-256,
and each metadata key's type and value (long arrays: length and SHA-256 of their JSON). There is no mmproj of text
models, nor of LLaVA-1.5, whose image part this converter refuses.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "luq_gguf" / "demo" / "Shapes-VL-11M"
GOLDEN = ROOT / "tests" / "golden"
OUTPUT_TYPES = ("f16", "bf16", "f32")
LONGEST_ARRAY = 32


def summarize(path: Path) -> dict[str, Any]:
    """Tensors and metadata of a GGUF, in a form that JSON can hold and two files can be compared by."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    tensors = {
        tensor.name: [
            [int(size) for size in reversed(tensor.shape)],
            tensor.tensor_type.name,
            hashlib.sha256(tensor.data.tobytes()).hexdigest(),
        ]
        for tensor in reader.tensors
    }
    metadata = {
        name: ["/".join(kind.name for kind in field.types), _shorten(field.contents())]
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    return {"tensors": dict(sorted(tensors.items())), "metadata": dict(sorted(metadata.items()))}


def _shorten(value: Any) -> Any:
    if isinstance(value, list) and len(value) > LONGEST_ARRAY:
        canonical = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
        return {"length": len(value), "sha256": hashlib.sha256(canonical.encode()).hexdigest()}
    return value


def load_converter(folder: Path) -> types.ModuleType:
    """llama.cpp's convert_hf_to_gguf, from its own folder and with its own gguf package."""
    sys.path[:0] = [str(folder), str(folder / "gguf-py")]
    converter = importlib.import_module("convert_hf_to_gguf")
    base = importlib.import_module("conversion.base")
    base.TextModel.get_vocab_base_pre = _tokenizer_name
    if importlib.util.find_spec("sentencepiece") is None:
        base.TextModel._create_vocab_sentencepiece = _no_sentencepiece
    return converter


def _tokenizer_name(model: Any, tokenizer: Any) -> str:
    return "llama-bpe" if model.hparams["model_type"] == "llama" else "qwen2"


def _no_sentencepiece(model: Any) -> None:
    """What the converter finds where sentencepiece is installed, for checkpoints that have no such tokenizer."""
    if (model.dir_model / "tokenizer.model").exists():
        raise SystemExit("this checkpoint has a tokenizer.model: install sentencepiece")
    raise FileNotFoundError("tokenizer.model")


def has_image_part(checkpoint: Path) -> bool:
    """Whether the converter makes an mmproj of this checkpoint."""
    config = json.loads((checkpoint / "config.json").read_text())
    return "vision_config" in config and config["model_type"] != "llava"


def run_converter(converter: types.ModuleType, checkpoint: Path) -> dict[str, Any]:
    """Every output type of one checkpoint, as "text-f16", "mmproj-f16", ..."""
    made = {}
    kinds = {"text": [], "mmproj": ["--mmproj"]} if has_image_part(checkpoint) else {"text": []}
    with tempfile.TemporaryDirectory() as work:
        for output_type in OUTPUT_TYPES:
            for kind, extra in kinds.items():
                target = Path(work) / f"{kind}-{output_type}.gguf"
                arguments = [str(checkpoint), "--outtype", output_type, "--outfile", str(target), *extra]
                sys.argv = ["convert_hf_to_gguf.py", *arguments]
                converter.main()
                made[target.stem] = summarize(target)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="llama.cpp's folder in the source archive")
    parser.add_argument("--only", help="one case: demo, or a name of GOLDEN_CASES or FAMILY_GOLDEN_CASES in tests")
    parser.add_argument("--out", type=Path, default=GOLDEN)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.pico import GOLDEN_CASES, build_golden_case
    from tests.picos import FAMILY_GOLDEN_CASES, build_family_golden_case

    cases = [options.only] if options.only else [*GOLDEN_CASES, *FAMILY_GOLDEN_CASES, "demo"]
    converter = load_converter(options.llama_cpp.resolve())
    options.out.mkdir(parents=True, exist_ok=True)
    for case in cases:
        with tempfile.TemporaryDirectory() as work:
            build = build_family_golden_case if case in FAMILY_GOLDEN_CASES else build_golden_case
            checkpoint = DEMO if case == "demo" else build(Path(work), case)
            made = run_converter(converter, checkpoint)
        target = options.out / f"{case}.json"
        target.write_text(json.dumps(made, indent=1, ensure_ascii=True) + "\n")
        print(f"{target}: {sum(len(file['tensors']) for file in made.values())} tensors")


if __name__ == "__main__":
    main()
