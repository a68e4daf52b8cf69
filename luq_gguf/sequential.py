"""The importance matrix once more, measured along the quantized model: what reaches a layer came through those before
it as they will be in the file.

Takes a plan; layer by layer the samples go through the 16-bit weights, whose inputs are summed, the layer is quantized
by the plan with that, and the samples go on through what it has become. The file keeps its format and its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from luq_gguf.activations import analyze, resolve_compute_type
from luq_gguf.artifacts import Plan, scratch_folder
from luq_gguf.families.base import TensorSource
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.groundwork import Groundwork
from luq_gguf.imatrix import Sums, mix_importance, write_imatrix
from luq_gguf.job import IMATRIX, key_of
from luq_gguf.layout import part_names
from luq_gguf.making import Maker
from luq_gguf.manifest import versions
from luq_gguf.planning import is_weight, layer_of

Arrays = dict[str, NDArray[np.float32]]


def refine(ground: Groundwork, plan: Plan) -> Maker:
    """A maker whose importance matrix was measured along the plan's own quantized layers, now or in an earlier run.

    The quantized layers are the parts of the plan's file; raises whatever analyzing and quantizing raise.
    """
    job, maker = ground.maker.job, ground.maker
    settings = job.settings
    compute_type = resolve_compute_type(settings.compute_type)
    key = key_of(
        versions(), job.checkpoint.fingerprint, ground.calibration.digest, plan.types, settings.alpha, settings.seed,
        compute_type, settings.image_max_tokens,
    )  # fmt: skip
    target = job.work / f"refined-{key}" / IMATRIX
    if not target.is_file():
        with job.watch.measure("refine"), scratch_folder(job.work, "refine") as scratch:
            found = analyze(
                job.checkpoint,
                job.family,
                ground.calibration,
                compute_type=compute_type,
                seed=settings.seed,
                progress=lambda what, done, total: job.progress("refine" if what == "analyze" else what, done, total),
                image_tokens=settings.image_max_tokens,
                requantize=_Requantizer(maker, plan, scratch / "layer.gguf"),
                threads=settings.threads,
            )
            target.parent.mkdir(exist_ok=True)
            write_imatrix(target, mix_importance(found.sums, settings.alpha))
    return replace(maker, imatrix=target)


@dataclass(frozen=True)
class _Requantizer:
    """Quantizes one layer after the other by a plan, with what was summed of its inputs."""

    maker: Maker
    plan: Plan
    imatrix: Path

    def __call__(self, layer: int, sums: Sums) -> Arrays:
        """The layer's weights as they are in the plan's file, by the names that they have within the layer."""
        job = self.maker.job
        write_imatrix(self.imatrix, mix_importance(sums, job.settings.alpha))
        maker = replace(self.maker, imatrix=self.imatrix)
        sources = {tensor.name: tensor for tensor in job.family.text_tensors() if layer_of(tensor.name) == layer}
        found: Arrays = {}
        for names in part_names(self.plan):
            if layer_of(names[0]) == layer:
                found |= _weights_in(maker.make_part(self.plan, names), sources)
        prefix = f"model.layers.{layer}."
        return {name.removeprefix(prefix): values for name, values in found.items()}


def _weights_in(part: Path, sources: Mapping[str, TensorSource]) -> Arrays:
    """The matrices of a part in float32, by the names and in the order of rows that they have in the checkpoint."""
    found: Arrays = {}
    for tensor in GGUFFile.open(part).tensors.values():
        if len(tensor.shape) < 2 or not is_weight(tensor.name):
            continue
        stored = np.memmap(part, mode="r", offset=tensor.offset, shape=(tensor.nbytes,), dtype=np.uint8)
        values = gguf.quants.dequantize(stored.reshape(tensor.shape[1], -1), tensor.type)
        source = sources[tensor.name]
        found[source.source] = _as_in_checkpoint(values, source)
    return found


def _as_in_checkpoint(values: NDArray[np.float32], source: TensorSource) -> NDArray[np.float32]:
    """Rows in the checkpoint's order: LLaMA's heads have the halves of rotated pairs apart there, not side by side."""
    kind, _, heads = source.transform.partition(":")
    if kind != "rotary":
        return values
    pairs = values.reshape(int(heads), -1, 2, values.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
