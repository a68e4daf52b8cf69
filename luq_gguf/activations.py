"""Sends the samples through the decoder one layer at a time and keeps what the later stages need.

Gives sums of squared inputs per weight and modality, the entropy of every layer, and the top
log-probabilities at the held-out answers. Only one layer is in memory, and all samples' states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from luq_gguf.artifacts import MODALITIES, EntropyRow, LayerScores
from luq_gguf.calibration import CalibrationSet
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.entropy import CLUSTERS, choose_tokens, measure_entropy, order_stability, token_rank
from luq_gguf.errors import CheckpointError
from luq_gguf.families.base import Family
from luq_gguf.imatrix import Sums
from luq_gguf.images import patchify
from luq_gguf.progress import Progress, silent
from luq_gguf.prompts import TEXT, PromptMaker, TokenizedSample
from luq_gguf.reference import TOP, Reference

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 4096
INPUTS = {"self_attn.q_proj": "attn_q", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
          "mlp.down_proj": "ffn_down"}  # fmt: skip
"""The modules whose inputs are summed, and the weight under whose name `Sums` keeps them."""
FAST_BF16 = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True)
class Analysis:
    """Everything that one pass gives."""

    scores: LayerScores
    sums: Sums
    reference: Reference


def resolve_compute_type(name: str) -> str:
    """ "auto" is bf16 where the CPU multiplies it in hardware, else f32."""
    if name != "auto":
        return name
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    return "bf16" if flags & set(FAST_BF16) else "f32"


@dataclass
class Batch:
    """Samples of similar length, padded on the right; `states` (batch, tokens, hidden) changes layer by layer."""

    samples: list[TokenizedSample]
    states: torch.Tensor
    rotary: tuple[torch.Tensor, torch.Tensor]
    modality: torch.Tensor
    """(3, batch * tokens), 1 where a token of a calibration sample is of that modality."""


@dataclass
class Collector:
    """Adds up what the hooks see."""

    squares: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, name: str, inputs: torch.Tensor, modality: torch.Tensor) -> None:
        """Add the squares of inputs (batch, tokens, channels) to each modality's sum."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        sums = (modality @ rows.square_()).double().numpy()
        tokens = modality.sum(1).tolist()
        squares = self.squares.setdefault(name, {key: np.zeros(sums.shape[1]) for key in MODALITIES})
        counts = self.counts.setdefault(name, dict.fromkeys(MODALITIES, 0))
        for index, key in enumerate(MODALITIES):
            squares[key] += sums[index]
            counts[key] += round(tokens[index])


def analyze(
    checkpoint: Checkpoint,
    family: Family,
    calibration: CalibrationSet,
    *,
    compute_type: str = "auto",
    seed: int = 0,
    progress: Progress = silent,
    input_entropy: bool = False,
) -> Analysis:
    """One pass over the decoder with all samples.

    Raises CheckpointError where activations are not finite, and whatever the checkpoint's tensors raise.
    """
    import torch

    with torch.inference_mode():
        return _Pass(checkpoint, family, calibration, resolve_compute_type(compute_type), seed, progress).run(
            input_entropy
        )


class _Pass:
    def __init__(
        self,
        checkpoint: Checkpoint,
        family: Family,
        calibration: CalibrationSet,
        compute_type: str,
        seed: int,
        progress: Progress,
    ) -> None:
        import torch

        self.family, self.calibration, self.seed, self.progress = family, calibration, seed, progress
        self.compute_type, self.digest = compute_type, checkpoint.digest
        dtype = torch.bfloat16 if compute_type == "bf16" else torch.float32
        self.modules = family.modules().Modules(checkpoint, family, dtype)
        maker = PromptMaker(checkpoint, family, image_token=self.modules.image_token, end_token=self.modules.end_token)
        self.counted, self.held_out = maker.all_of(calibration)
        self.tokens = {key: sum(int((s.kinds == i).sum()) for s in self.counted) for i, key in enumerate(MODALITIES)}
        self.collector = Collector()
        self.rows: dict[str, list[EntropyRow]] = {}

    def run(self, input_entropy: bool) -> Analysis:
        batches = self._batches()
        chosen = self._choose_tokens()
        total = self.family.layers
        for index in range(total):
            self.progress("analyze", index, total)
            module = self.modules.layer(index)
            inputs = self._run_layer(index, module, batches, input_entropy)
            self._measure("input", inputs, batches, chosen)
            self._measure("output", [batch.states for batch in batches], batches, chosen)
        self.progress("analyze", total, total)
        reference = self._finish(batches)
        sums = Sums(self.collector.squares, self.collector.counts, self.calibration.name)
        return Analysis(self._scores(), sums, reference)

    def _batches(self) -> list[Batch]:
        samples = sorted([*self.counted, *self.held_out], key=lambda sample: (len(sample.ids), sample.id))
        features = self._image_features(samples)
        counted = {sample.id for sample in self.counted}
        groups: list[list[TokenizedSample]] = [[]]
        for sample in samples:
            if groups[-1] and len(sample.ids) * (len(groups[-1]) + 1) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(sample)
        return [self._batch(group, features, counted) for group in groups]

    def _image_features(self, samples: Sequence[TokenizedSample]) -> dict[str, torch.Tensor]:
        """Features by sample; equal pictures go through the tower once."""
        vision, rule = self.family.vision, self.family.image_grid
        shape = (vision["patch_size"], vision["spatial_merge_size"], vision["temporal_patch_size"]) if vision else ()
        pictures = {
            sample.image.tobytes() + repr(sample.grid).encode(): sample.image for sample in samples if sample.image
        }
        patched = [patchify(image, rule, *shape) for image in pictures.values()]
        features = {}
        found = self.modules.image_features([rows for rows, _ in patched], [grid for _, grid in patched])
        for done, (key, rows) in enumerate(zip(pictures, found, strict=True)):
            features[key] = rows
            self.progress("images", done + 1, len(pictures))
        return {
            sample.id: features[sample.image.tobytes() + repr(sample.grid).encode()]
            for sample in samples
            if sample.image
        }

    def _batch(self, group: list[TokenizedSample], features: dict[str, torch.Tensor], counted: set[str]) -> Batch:
        import torch

        length = max(len(sample.ids) for sample in group)
        states = torch.zeros((len(group), length, self.family.hidden_size), dtype=self.modules.dtype)
        positions = torch.zeros((3, len(group), length), dtype=torch.long)
        modality = torch.zeros((len(MODALITIES), len(group), length))
        for row, sample in enumerate(group):
            count = len(sample.ids)
            embedded = self.modules.embed(sample.ids)
            is_image = sample.kinds == 0
            if sample.grid is not None:
                embedded[torch.from_numpy(is_image)] = features[sample.id]
            states[row, :count] = embedded
            places = self.family.modules().positions_of(is_image, sample.grid)
            positions[:, row, :count] = torch.from_numpy(places)
            if sample.id in counted:
                modality[torch.from_numpy(sample.kinds.astype(np.int64)), row, torch.arange(count)] = 1
        rotary = self.modules.rotary(positions)
        return Batch(group, states, rotary, modality.reshape(len(MODALITIES), -1))

    def _choose_tokens(self) -> dict[str, list[tuple[str, int]]]:
        """For multimodal and text-only tokens: (sample, position) of those that go into the entropy, by rank."""
        chosen = {}
        for tokens, wants_text in (("multimodal", False), ("text", True)):
            samples = [s for s in self.counted if bool(s.kinds[0] == TEXT) == wants_text]
            if not samples:
                continue
            ranks = np.concatenate([token_rank(s.id, len(s.ids), self.seed) for s in samples])
            owners = [(s.id, position) for s in samples for position in range(len(s.ids))]
            chosen[tokens] = [owners[index] for index in choose_tokens(ranks)]
        return chosen

    def _run_layer(
        self, index: int, module: torch.nn.Module, batches: list[Batch], keep_inputs: bool
    ) -> list[torch.Tensor]:
        """Send all batches through a layer; returns the input norm's outputs by batch when asked for."""
        import torch

        inputs: list[torch.Tensor] = []
        handles = []
        for batch in batches:
            for name, weight in INPUTS.items():
                hook = self._hook(f"blk.{index}.{weight}.weight", batch.modality)
                handles.append(module.get_submodule(name).register_forward_pre_hook(hook))
            if keep_inputs:
                handles.append(
                    module.input_layernorm.register_forward_hook(lambda _, __, output: inputs.append(output))
                )
            batch.states = module(batch.states, position_embeddings=batch.rotary, attention_mask=None)
            for handle in handles:
                handle.remove()
            handles.clear()
            if not torch.isfinite(batch.states).all():
                raise CheckpointError(
                    f"the activations after layer {index} are not finite",
                    hint="try --compute-type f32; if that does not help, the checkpoint is damaged",
                )
        return inputs

    def _hook(self, name: str, modality: torch.Tensor) -> Callable[..., None]:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self.collector.add(name, inputs[0], modality)

        return hook

    def _measure(
        self, site: str, states: Sequence[torch.Tensor], batches: list[Batch], chosen: dict[str, list[tuple[str, int]]]
    ) -> None:
        """Add a row for each kind of tokens to the entropies of a site; nothing where it was not kept."""
        if not states:
            return
        places = {
            sample.id: state[row]
            for batch, state in zip(batches, states, strict=True)
            for row, sample in enumerate(batch.samples)
        }
        for tokens, owners in chosen.items():
            vectors = np.stack([places[sample][position].float().numpy() for sample, position in owners])
            self.rows.setdefault(f"{site}_{tokens}", []).append(measure_entropy(vectors))

    def _finish(self, batches: list[Batch]) -> Reference:
        """Final norm, the sums of the output matrix' input, and the reference."""
        norm = self.modules.norm()
        held_out = {sample.id for sample in self.held_out}
        rows: dict[str, torch.Tensor] = {}
        for batch in batches:
            normed = norm(batch.states)
            if not self.family.tied_embeddings:
                self.collector.add("output.weight", normed, batch.modality)
            for row, sample in enumerate(batch.samples):
                if sample.id in held_out:
                    end = len(sample.ids)
                    rows[sample.id] = normed[row, end - sample.answer_tokens - 1 : end - 1].float()
        return self._reference(rows)

    def _reference(self, rows: dict[str, torch.Tensor]) -> Reference:
        import torch

        samples = [sample for sample in self.held_out if sample.id in rows]
        starts = np.cumsum([0, *(sample.answer_tokens for sample in samples)])
        answers = [sample.ids[len(sample.ids) - sample.answer_tokens :] for sample in samples]
        hidden = torch.cat([rows[s.id] for s in samples]) if samples else torch.zeros(0, self.family.hidden_size)
        logits = torch.cat([hidden @ part.T for part in self.modules.head()], dim=1)
        best = torch.log_softmax(logits.double(), dim=1).topk(min(TOP, logits.shape[1]), dim=1)
        context = {"calibration": self.calibration.name, "calibration_digest": self.calibration.digest,
                   "seed": self.seed, "checkpoint": self.digest}  # fmt: skip
        return Reference(
            tuple(sample.id for sample in samples),
            starts.astype(np.int64),
            np.concatenate(answers).astype(np.int32) if answers else np.zeros(0, np.int32),
            best.indices.numpy().astype(np.int32),
            best.values.numpy().astype(np.float32),
            context,
        )

    def _scores(self) -> LayerScores:
        rows = {key: tuple(values) for key, values in self.rows.items()}
        return LayerScores(
            checkpoint=self.digest,
            layers=self.family.layers,
            entropy=rows,
            stability={key: order_stability(values) for key, values in rows.items()},
            tokens=self.tokens,
            samples=len(self.counted),
            held_out=len(self.held_out),
            compute_type=self.compute_type,
            seed=self.seed,
            warnings=tuple(_warnings(rows, self.calibration)),
        )


def _warnings(rows: dict[str, tuple[EntropyRow, ...]], calibration: CalibrationSet) -> Iterator[str]:
    for key, values in rows.items():
        if values[0].clusters < CLUSTERS:
            yield (
                f"warning: {key.replace('_', ', ')}: only {values[0].vectors} tokens, so {values[0].clusters} clusters "
                f"instead of {CLUSTERS}; calibrate with more samples"
            )
    if calibration.skipped:
        yield f"warning: {calibration.skipped} rows of {calibration.name} could not be used and were left out"
