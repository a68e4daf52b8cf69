"""Sends the samples through the decoder one layer at a time and keeps what the later stages need.

Gives sums of squared inputs per weight and modality, the entropy of every layer, and the top
log-probabilities at the held-out answers. Only one layer is in memory, and all samples' states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luq_gguf.analysis_state import AnalysisState, LayerState, shape_of
from luq_gguf.artifacts import MODALITIES, EntropyRow, LayerScores
from luq_gguf.changes import Additions
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.chosen_tokens import ChosenTokens, locate_tokens
from luq_gguf.entropy import entropy_warning, measure_entropy, order_stability, token_rank
from luq_gguf.errors import CheckpointError
from luq_gguf.families.base import Family
from luq_gguf.heap import reused_heap
from luq_gguf.imatrix import Sums
from luq_gguf.input_sums import InputSums
from luq_gguf.processors import fast_bf16, torch_threads
from luq_gguf.progress import Progress, silent
from luq_gguf.prompts import IMAGE, Prompts, TokenizedSample, tokenize_calibration
from luq_gguf.reference import Reference, score_answers
from luq_gguf.samples import CalibrationSet, without_pictures

if TYPE_CHECKING:
    import torch

Requantize = Callable[[int, Sums], Mapping[str, NDArray[np.float32]]]
"""Gives the weights that a layer goes on with, by their names in it, from what was summed of its inputs."""
BATCH_TOKENS = 2048
GROUP_TOKENS = 1024


@dataclass(frozen=True)
class Analysis:
    """Everything that one pass gives."""

    scores: LayerScores
    sums: Sums
    reference: Reference


def resolve_compute_type(name: str) -> str:
    """The type to compute in; "auto" is bf16 where the CPU multiplies it faster than float32, else f32."""
    if name != "auto":
        return name
    return "bf16" if fast_bf16() else "f32"


def analyze(
    checkpoint: Checkpoint,
    family: Family,
    calibration: CalibrationSet,
    *,
    compute_type: str = "auto",
    seed: int = 0,
    progress: Progress = silent,
    input_entropy: bool = False,
    keep: Path | None = None,
    image_tokens: int | None = None,
    requantize: Requantize | None = None,
    prompts: Prompts | None = None,
    threads: int = 0,
) -> Analysis:
    """One pass over the decoder with all samples; the order of the samples does not change the result.

    Held-out samples go into the reference only; images have at most `image_tokens`. In the folder `keep` the state is
    kept after every picture and layer, and an earlier one is gone on from: its name must change with everything that
    the result depends on. With `requantize` the samples go on from each layer through the weights that it gives, and no
    entropy is measured: the reference is then what such a model says. Raises CheckpointError where activations are not
    finite, and whatever the checkpoint's tensors raise. `prompts` are the calibration set's, where it was tokenized
    before. `threads` 0 takes one for each core.
    """
    import torch

    with torch.inference_mode(), reused_heap(), torch_threads(threads):
        analysis = _Pass(
            checkpoint, family, calibration, resolve_compute_type(compute_type), seed, progress, keep, image_tokens,
            requantize, prompts, threads,
        )  # fmt: skip
        return analysis.run(input_entropy=input_entropy)


@dataclass
class Batch:
    """Samples of similar length, padded on the right; `states` (batch, tokens, hidden) changes layer by layer, into
    the room of `spare`.

    `modality` (3, batch * tokens) is 1 where a token of a calibration sample is of that modality: all others,
    padding too, are counted nowhere. `is_image` (batch, tokens) is 1 where an image is; `deep` holds the features that
    are added there after the first layers, (places, hidden) for each. No text sees what is to its right, so padding
    changes nothing.
    """

    samples: list[TokenizedSample]
    states: torch.Tensor
    spare: torch.Tensor
    rotary: Any
    modality: torch.Tensor
    is_image: torch.Tensor
    deep: tuple[torch.Tensor, ...] = ()

    def go_on(self, states: torch.Tensor) -> None:
        """Take the states after a layer for those before it, which stay in the spare room until the next."""
        self.spare.copy_(states)
        self.go_back()

    def go_back(self) -> None:
        """Take the states that were there before."""
        self.states, self.spare = self.spare, self.states


class _Pass:
    def __init__(
        self,
        checkpoint: Checkpoint,
        family: Family,
        calibration: CalibrationSet,
        compute_type: str,
        seed: int,
        progress: Progress,
        keep: Path | None,
        image_tokens: int | None,
        requantize: Requantize | None = None,
        prompts: Prompts | None = None,
        threads: int = 0,
    ) -> None:
        import torch

        if family.vision is None:
            calibration = without_pictures(calibration)
        self.family, self.calibration, self.seed, self.progress = family, calibration, seed, progress
        self.compute_type, self.digest, self.requantize = compute_type, checkpoint.digest, requantize
        self.threads = threads
        dtype = torch.bfloat16 if compute_type == "bf16" else torch.float32
        self.modules = family.modules()(checkpoint, family, dtype)
        prompts = prompts or tokenize_calibration(checkpoint, family, calibration, image_tokens)
        self.image_tokens, self.least_image_tokens = prompts.image_tokens, prompts.least_image_tokens
        self.left_out = prompts.left_out
        self.counted, self.held_out = list(prompts.counted), list(prompts.held_out)
        self.sums = InputSums()
        self.rows: dict[str, list[EntropyRow]] = {}
        self.changes: dict[str, list[float]] = {}
        self.kept = AnalysisState(keep)
        self.room: dict[str, torch.Tensor] = {}

    def run(self, *, input_entropy: bool) -> Analysis:
        state = self.kept.layers()
        if state is not None:
            self._go_on(state)
        batches = self._batches(state)
        chosen = self._choose_tokens(batches)
        total = self.family.layers
        for index in range(state.done if state else 0, total):
            self.progress("analyze", index, total)
            if self.requantize is None:
                self._analyze_layer(index, batches, chosen, input_entropy=input_entropy)
            else:
                self._requantize_layer(index, batches, self.requantize)
            self._keep(index + 1, batches)
        self.progress("analyze", total, total)
        reference = self._finish(batches)
        sums = Sums(self.sums.squares, self.sums.counts, self.calibration.name)
        return Analysis(self._scores(), sums, reference)

    def _analyze_layer(
        self, index: int, batches: list[Batch], chosen: dict[str, ChosenTokens], *, input_entropy: bool
    ) -> None:
        """Send all samples through a layer, and measure what it does to them."""
        before = {tokens: places.take([batch.states for batch in batches]) for tokens, places in chosen.items()}
        additions = Additions(
            {tokens: places.places for tokens, places in chosen.items()},
            {tokens: places.count for tokens, places in chosen.items()},
        )
        module = self._open_layer(index)

        def watch(number: int, batch: Batch) -> list[Any]:
            return self.sums.watch(index, module, batch.modality) + additions.watch(module, number)

        inputs = self._run_layer(index, module, batches, watch, keep_inputs=input_entropy)
        after = {tokens: places.take([batch.states for batch in batches]) for tokens, places in chosen.items()}
        if input_entropy:
            self._measure("input", {tokens: places.take(inputs) for tokens, places in chosen.items()})
        self._measure("output", after)
        for name, value in additions.figures(before, after).items():
            self.changes.setdefault(name, []).append(value)

    def _requantize_layer(self, index: int, batches: list[Batch], requantize: Requantize) -> None:
        """Sum a layer's inputs, change its weights, and send all samples through what it has become."""
        import torch

        module = self._open_layer(index)
        self._run_layer(index, module, batches, lambda _, batch: self.sums.watch(index, module, batch.modality))
        for batch in batches:
            batch.go_back()
        mine = {name for name in self.sums.squares if name.startswith(f"blk.{index}.")}
        sums = Sums(
            {name: self.sums.squares[name] for name in mine},
            {name: self.sums.counts[name] for name in mine},
            self.calibration.name,
        )
        changed = requantize(index, sums)
        weights = {name: torch.from_numpy(values).to(self.modules.dtype) for name, values in changed.items()}
        module.load_state_dict(weights, strict=False, assign=True)
        self._run_layer(index, module, batches)

    def _open_layer(self, index: int) -> torch.nn.Module:
        """A layer with its weights; those of the next are read while it computes."""
        module = self.modules.layer(index, self.room)
        self.modules.read_ahead(index + 1)
        return module

    def _keep(self, done: int, batches: list[Batch]) -> None:
        squares = {
            f"{name}|{key}": _as_tensor(row)
            for name, by_modality in self.sums.squares.items()
            for key, row in by_modality.items()
        }
        shapes = [shape_of(batch.states) for batch in batches]
        state = LayerState(done, shapes, squares, self.sums.counts, self.rows, self.changes)
        self.kept.keep_layers(state, features_done=done >= self.modules.deep_layers)

    def _go_on(self, state: LayerState) -> None:
        """Take the place of a run that was killed after some layers."""
        for key, row in state.squares.items():
            name, _, modality = key.rpartition("|")
            self.sums.squares.setdefault(name, {})[modality] = row.numpy()
        self.sums.counts, self.rows, self.changes = state.counts, state.rows, state.changes

    def _batches(self, state: LayerState | None) -> list[Batch]:
        """All samples by length, so that little is padding; equal lengths by id, so that their order is their own.

        Where a run has done some layers, the features of the pictures are in its states already.
        """
        done = state.done if state else 0
        needed = done == 0 or done < self.modules.deep_layers
        features = self._image_features([*self.counted, *self.held_out]) if needed else {}
        self.counted, self.held_out = _without_images(self.counted), _without_images(self.held_out)
        samples = sorted([*self.counted, *self.held_out], key=lambda sample: (len(sample.ids), sample.id))
        counted = {sample.id for sample in self.counted}
        groups: list[list[TokenizedSample]] = [[]]
        for sample in samples:
            if groups[-1] and len(sample.ids) * (len(groups[-1]) + 1) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(sample)
        shapes = [(len(group), max(len(sample.ids) for sample in group), self.family.hidden_size) for group in groups]
        rooms = self.kept.states(shapes, self.modules.dtype, state)
        batches = [self._batch(group, features, counted, room) for group, room in zip(groups, rooms, strict=True)]
        if done == 0:
            for batch in batches:
                self._embed(batch, features)
        return batches

    def _image_features(self, samples: Sequence[TokenizedSample]) -> dict[str, torch.Tensor]:
        """Features by sample; equal pictures go through the vision tower once.

        Which pictures go through it together does not depend on what an earlier run had done.
        """
        keys = {s.id: hashlib.sha256(f"{s.grid} {s.picture.key}".encode()).hexdigest() for s in samples if s.picture}
        pictures = {keys[sample.id]: sample for sample in samples if sample.picture}
        groups = [(hashlib.sha256("".join(group).encode()).hexdigest(), group) for group in group_pictures(pictures)]
        features = {name: rows for name, _ in groups if (rows := self.kept.features(name)) is not None}
        missing = [(name, group) for name, group in groups if name not in features]
        images = {keys[sample.id]: sample.picture for sample in samples if sample.picture}
        patches = ([self.modules.prepare(images[key].read()) for key in group] for _, group in missing)
        for (name, group), rows in zip(missing, self.modules.image_features(patches) if missing else (), strict=True):
            self._require_finite(rows, [pictures[key].id for key in group])
            features[name] = rows
            self.kept.keep_features(name, rows)
            self.progress("images", sum(map(len, features.values())), len(pictures))
        by_key = {key: row for name, group in groups for key, row in zip(group, features[name], strict=True)}
        return {name: by_key[key] for name, key in keys.items()}

    def _require_finite(self, features: Sequence[torch.Tensor], samples: Sequence[str]) -> None:
        import torch

        for rows, sample in zip(features, samples, strict=True):
            if not torch.isfinite(rows).all():
                raise self._not_finite(f"the vision tower's output for sample {sample}")

    def _batch(
        self,
        group: list[TokenizedSample],
        features: dict[str, torch.Tensor],
        counted: set[str],
        room: tuple[torch.Tensor, torch.Tensor],
    ) -> Batch:
        import torch

        states, spare = room
        count, length, hidden = states.shape
        positions = torch.zeros((self.modules.position_axes, count, length), dtype=torch.long)
        modality = torch.zeros((len(MODALITIES), count, length))
        images = torch.zeros((count, length), dtype=torch.long)
        for row, sample in enumerate(group):
            tokens = len(sample.ids)
            is_image = sample.kinds == IMAGE
            images[row, :tokens] = torch.from_numpy(is_image)
            places = self.modules.positions_of(is_image, sample.grid)
            positions[:, row, :tokens] = torch.from_numpy(places)
            if sample.id in counted:
                modality[torch.from_numpy(sample.kinds.astype(np.int64)), row, torch.arange(tokens)] = 1
        deep = [features[sample.id][:, hidden:] for sample in group if sample.id in features]
        layers = torch.split(torch.cat(deep), hidden, dim=1) if deep and self.modules.deep_layers else ()
        rotary = self.modules.rotary(positions)
        return Batch(group, states, spare, rotary, modality.reshape(len(MODALITIES), -1), images, tuple(layers))

    def _embed(self, batch: Batch, features: dict[str, torch.Tensor]) -> None:
        """Put what enters the first layer into a batch's states: embeddings, and features in the place of images."""
        batch.states.zero_()
        for row, sample in enumerate(batch.samples):
            embedded = self.modules.embed(sample.ids)
            if sample.id in features:
                embedded[batch.is_image[row, : len(sample.ids)].bool()] = features[sample.id][:, : embedded.shape[1]]
            batch.states[row, : len(sample.ids)] = embedded

    def _choose_tokens(self, batches: list[Batch]) -> dict[str, ChosenTokens]:
        """The tokens that go into the entropies, by a hash of sample and position: multimodal and text-only ones."""
        chosen = {}
        counted = {sample.id for sample in self.counted}
        for tokens, multimodal in (("multimodal", True), ("text", False)):
            found = [
                (token_rank(sample.id, len(sample.ids), self.seed), number, row * batch.states.shape[1])
                for number, batch in enumerate(batches)
                for row, sample in enumerate(batch.samples)
                if sample.id in counted and (sample.grid is not None) == multimodal
            ]
            if found:
                chosen[tokens] = locate_tokens(found, len(batches))
        return chosen

    def _run_layer(
        self,
        index: int,
        module: torch.nn.Module,
        batches: list[Batch],
        watch: Callable[[int, Batch], list[Any]] = lambda *_: [],
        *,
        keep_inputs: bool = False,
    ) -> list[torch.Tensor]:
        """Send all batches through a layer; `watch` listens to it for a batch and gives the handles that end that.

        Returns the input norm's outputs by batch when asked for.
        """
        import torch

        inputs: list[torch.Tensor] = []
        if keep_inputs:
            norm = module.get_submodule("input_layernorm")
            norm.register_forward_hook(lambda _, __, output: inputs.append(output))
        for number, batch in enumerate(batches):
            self.progress("batches", number, len(batches))
            handles = watch(number, batch)
            batch.go_on(self.modules.run(module, batch.states, batch.rotary, batch.is_image))
            for handle in handles:
                handle.remove()
            if index < len(batch.deep):
                batch.states[batch.is_image.bool()] += batch.deep[index]
            if not torch.isfinite(batch.states).all():
                raise self._not_finite(f"the output of layer {index}")
        self.progress("batches", len(batches), len(batches))
        return inputs

    def _not_finite(self, what: str) -> CheckpointError:
        hint = "the checkpoint is damaged" if self.compute_type == "f32" else "try --compute-type f32"
        return CheckpointError(f"{what} is not finite, computed in {self.compute_type}", hint=hint)

    def _measure(self, site: str, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Add a row for each kind of tokens to the entropies of a site."""
        for tokens, chosen in vectors.items():
            self.rows.setdefault(f"{site}_{tokens}", []).append(measure_entropy(chosen, threads=self.threads))

    def _finish(self, batches: list[Batch]) -> Reference:
        """Final norm, the sums of the output matrix' input, and the reference."""
        norm = self.modules.norm()
        held_out = {sample.id for sample in self.held_out if sample.answer_tokens}
        found: dict[str, torch.Tensor] = {}
        for batch in batches:
            normed = norm(batch.states)
            if not self.family.tied_embeddings:
                self.sums.add("output.weight", normed, batch.modality)
            for row, sample in enumerate(batch.samples):
                if sample.id in held_out:
                    end = len(sample.ids) - 1  # the state before a token predicts it
                    found[sample.id] = normed[row, end - sample.answer_tokens : end].float()
        return self._reference([sample for sample in self.held_out if sample.id in held_out], found)

    def _reference(self, samples: list[TokenizedSample], found: dict[str, torch.Tensor]) -> Reference:
        import torch

        hidden = torch.cat([torch.empty(0, self.family.hidden_size), *(found[sample.id] for sample in samples)])
        top, log_probabilities, rest = score_answers(hidden, self.modules.head())
        answers = [sample.ids[len(sample.ids) - sample.answer_tokens :] for sample in samples]
        return Reference(
            samples=tuple(sample.id for sample in samples),
            starts=np.cumsum([0, *(sample.answer_tokens for sample in samples)], dtype=np.int64),
            prompts=np.array([len(sample.ids) - sample.answer_tokens for sample in samples], dtype=np.int32),
            answers=np.concatenate([np.zeros(0), *answers]).astype(np.int32),
            top=top,
            log_probabilities=log_probabilities,
            rest=rest,
            context={
                "checkpoint": self.digest,
                "calibration": self.calibration.name,
                "calibration_digest": self.calibration.digest,
                "recipe": self.calibration.recipe,
                "turn_end": self.family.turn_end,
                "image_tokens": self.image_tokens,
                "least_image_tokens": self.least_image_tokens,
                "compute_type": self.compute_type,
                "seed": self.seed,
            },
        )

    def _scores(self) -> LayerScores:
        rows = {key: tuple(values) for key, values in self.rows.items()}
        return LayerScores(
            checkpoint=self.digest,
            layers=self.family.layers,
            entropy=rows,
            stability={key: order_stability(values) for key, values in rows.items()},
            changes={key: tuple(values) for key, values in self.changes.items()},
            tokens={key: sum(int((s.kinds == i).sum()) for s in self.counted) for i, key in enumerate(MODALITIES)},
            samples=_count(self.counted),
            held_out=_count(self.held_out),
            compute_type=self.compute_type,
            seed=self.seed,
            least_image_tokens=self.least_image_tokens,
            image_tokens=self.image_tokens,
            warnings=tuple(_warnings(rows, self.calibration, self.left_out)),
        )


def group_pictures(pictures: Mapping[str, TokenizedSample]) -> list[list[str]]:
    """The keys of the pictures in groups of some hundred tokens, which make a call of the tower worth while."""
    groups: list[list[str]] = []
    room = 0
    for key in sorted(pictures):
        rows, columns = pictures[key].grid or (0, 0)
        if rows * columns > room:
            groups.append([])
            room = GROUP_TOKENS
        groups[-1].append(key)
        room -= rows * columns
    return groups


def _count(pieces: Iterable[TokenizedSample]) -> int:
    """How many samples they are of: a long text is cut into several."""
    return len({piece.id.partition("/")[0] for piece in pieces})


def _without_images(samples: Iterable[TokenizedSample]) -> list[TokenizedSample]:
    """The same samples, whose images have become features and need no memory any more."""
    return [replace(sample, picture=None) for sample in samples]


def _as_tensor(row: NDArray[np.float64]) -> torch.Tensor:
    """A row as a tensor, without a copy."""
    import torch

    return torch.from_numpy(row)


def _warnings(
    rows: dict[str, tuple[EntropyRow, ...]], calibration: CalibrationSet, left_out: Sequence[str]
) -> Iterator[str]:
    for key, values in rows.items():
        if (warning := entropy_warning(key, values[0])) is not None:
            yield warning
    if calibration.skipped:
        reason = f", the first: {calibration.skipped_reasons[0]}" if calibration.skipped_reasons else ""
        yield f"{calibration.skipped} rows of {calibration.name} could not be used and were left out{reason}"
    if left_out:
        yield f"{len(left_out)} samples of {calibration.name} do not fit the model, the first: {left_out[0]}"
