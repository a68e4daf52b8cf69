"""Write a GGUF of the exact shapes of a published model with random blocks in the types of a plan.

python -m benchmarks.shape_gguf Qwen2.5-VL-7B --out q4.gguf
python -m benchmarks.shape_gguf Qwen2.5-VL-7B --low-layers 12 --low-type IQ1_M --out luq12.gguf
python -m benchmarks.shape_gguf Qwen2.5-VL-7B --layers 2 --high-type F16 --out two-layers.gguf
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from gguf import GGMLQuantizationType as Q

from luq_gguf.families import Family, find_family
from luq_gguf.job import Settings
from luq_gguf.layout import layout_of_config
from luq_gguf.planning import Budget, choose_order, layer_of
from luq_gguf.random_gguf import write_random_gguf
from luq_gguf.speed import Tensor
from tests.published import PUBLISHED

FLOATS = ("F32", "F16", "BF16")
REPORTED = (27, 26, 18, 24, 23, 20, 22, 21, 19, 17, 25, 16, 15, 14, 13, 12, 11, 10, 9, 8, 1, 0, 3, 2, 6, 5, 7, 4)
"""The order of layers that was published for Qwen2.5-VL-7B."""


def types_of(model: str, high_type: str, low_type: str, low_layers: int) -> tuple[Family, dict[str, Q]]:
    """The family of a published model and the types of its tensors in a plan; floats are the same in all matrices."""
    family = find_family(PUBLISHED[model][0])
    if high_type in FLOATS:
        whole = {tensor.name: len(tensor.shape) > 1 for tensor in family.text_tensors()}
        return family, {name: Q[high_type] if matrix else Q.F32 for name, matrix in whole.items()}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(PUBLISHED[model][0]))
        settings = Settings(high_type=high_type, low_type=low_type)
        family, layout, _ = layout_of_config(Path(folder), settings, "random")
    order = REPORTED if len(REPORTED) == family.layers else choose_order(None, "depth", family.layers)
    plan = layout.plan(order, "depth", Budget(low_layers=low_layers), strict=False)
    return family, {name: Q[kind] for name, kind in plan.types.items()}


def matrices_of(family: Family, types: dict[str, Q], layers: int | None = None) -> list[Tensor]:
    """What `speed.predict` takes: the matrices of the whole text model, or of that with only so many layers."""
    count = family.layers if layers is None else layers
    return [
        Tensor(tensor.name, tuple(reversed(tensor.shape)), types[tensor.name].name)
        for tensor in family.text_tensors()
        if len(tensor.shape) > 1 and (layer_of(tensor.name) or 0) < count
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=PUBLISHED)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--high-type", default="Q4_K_M")
    parser.add_argument("--low-type", default="IQ1_M")
    parser.add_argument("--low-layers", type=int, default=0)
    parser.add_argument("--layers", type=int, help="write only so many layers")
    options = parser.parse_args()
    family, types = types_of(options.model, options.high_type, options.low_type, options.low_layers)
    path = write_random_gguf(options.out, family, types, layers=options.layers)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
