"""What `costs` wants to know, taken from a job: sizes of its model, tokens of its samples, and what was chosen.

Reads no weights and imports no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import prod

from gguf import GGMLQuantizationType

from luq_gguf import TOOL
from luq_gguf.artifacts import Plan
from luq_gguf.bundle import bundle_size
from luq_gguf.costs import Chosen, Load, Shape, Tower
from luq_gguf.durations import tries_of
from luq_gguf.evidence import probe_count
from luq_gguf.export import vision_file_size
from luq_gguf.families.base import Family, TensorSource
from luq_gguf.images import MAX_IMAGE_TOKENS
from luq_gguf.job import Job, Settings
from luq_gguf.layout import Layout
from luq_gguf.planning import MIX, Budget, TensorSpec, choose_order, layer_of
from luq_gguf.prompts import MAX_TOKENS, Prompts, TokenizedSample

COPIED_TYPES = {"Q4_K", "Q4_0", "IQ4_NL", "Q2_K"}
"""What llama.cpp's CPU backend puts into an order of its own (ggml-cpu/repack.cpp); elsewhere fewer, or none."""
IMATRIX_TENSOR_BYTES = 256
"""A weight's name and header in the importance matrix."""


def shape_of(family: Family) -> Shape:
    """The sizes of a family's model."""
    sizes, tensors = family.hparams, family.text_tensors()
    layer = [prod(tensor.shape) for tensor in tensors if layer_of(tensor.name) == 0]
    outside = [prod(tensor.shape) for tensor in tensors if layer_of(tensor.name) is None]
    axes = 3 if "mrope_section" in sizes else 1
    return Shape(
        hidden=family.hidden_size,
        ffn=sizes["intermediate_size"],
        query=sizes["num_attention_heads"] * sizes["head_dim"],
        kv=sizes["num_key_value_heads"] * sizes["head_dim"],
        rotary=2 * axes * sizes["head_dim"],
        layers=family.layers,
        vocabulary=sizes["vocab_size"],
        layer_weights=sum(layer),
        largest=max(layer),
        outside=max(outside),
        deep=len((family.vision or {}).get("deepstack_visual_indexes") or ()),
        tower=_tower_of(family),
    )


def _tower_of(family: Family) -> Tower | None:
    """The sizes of a vision tower, from the tensors of its file: a computed one counts as what it is made of."""
    if family.vision is None:
        return None
    tensors = family.vision_tensors()
    counts: Counter[int] = Counter()
    for tensor in tensors:
        if (number := _block_of(tensor)) is not None:
            counts[number] += prod(tensor.shape)
    patch = next(tensor.shape for tensor in tensors if tensor.name == "v.patch_embd.weight")
    ffn = max(max(tensor.shape) for tensor in tensors if _block_of(tensor) is not None)
    windowed = family.vision.get("fullatt_block_indexes")
    return Tower(
        weights=sum(prod(tensor.shape) for tensor in tensors),
        blocks=len(counts),
        block_weights=max(counts.values()),
        around=sum(prod(tensor.shape) for tensor in tensors if _block_of(tensor) is None),
        hidden=patch[0],
        ffn=ffn,
        patches=(family.image_factor // patch[-1]) ** 2,
        patch_numbers=prod(patch[1:]) * (2 if any(tensor.name == "v.patch_embd.weight.1" for tensor in tensors) else 1),
        full=len(windowed) if windowed else len(counts),
        window=(family.vision["window_size"] // patch[-1]) ** 2 if windowed else 0,
    )


def _block_of(tensor: TensorSource) -> int | None:
    place, _, rest = tensor.name.removeprefix("v.blk.").partition(".")
    return int(place) if rest and tensor.name.startswith("v.blk.") and place.isdecimal() else None


def unknown_load(settings: Settings) -> Load:
    """At most what judging takes where the samples were not tokenized: one picture, as large as they can be."""
    return Load((), (), judged=(MAX_TOKENS,), judged_pictures=(settings.image_max_tokens or MAX_IMAGE_TOKENS,))


def load_of(prompts: Prompts) -> Load:
    """How many tokens a calibration set has."""
    answered = [sample for sample in prompts.held_out if sample.answer_tokens]
    samples = [*prompts.counted, *prompts.held_out]
    return Load(
        lengths=tuple(sorted(len(sample.ids) for sample in samples)),
        pictures=_picture_tokens(samples),
        judged=tuple(len(sample.ids) for sample in answered),
        judged_pictures=_picture_tokens(answered),
        answers=sum(sample.answer_tokens for sample in answered),
    )


def _picture_tokens(samples: Iterable[TokenizedSample]) -> tuple[int, ...]:
    """Image tokens of distinct pictures."""
    found = {
        (sample.picture.key, sample.grid): prod(sample.grid) for sample in samples if sample.picture and sample.grid
    }
    return tuple(found.values())


def expected_plan(layout: Layout, settings: Settings, layers: int) -> Plan:
    """A plan of the size that the conversion's will have: with the order by depth in the place of what is measured.

    Where the number of low layers depends on a measurement it is the largest file that the budget allows. Raises
    BudgetError and RequestError as making the plan does.
    """
    depth = choose_order(None, "depth", layers)
    plan = layout.plan(depth, "depth", settings.budget, strict=settings.strict)
    open_ended = settings.low_layers is None and (settings.max_drop is not None or settings.min_tps is not None)
    if not open_ended:
        return plan
    return layout.plan(depth, "depth", Budget(None, settings.max_size or max(layout.sizes(depth))), strict=False)


def compute_bytes(compute_type: str) -> int:
    """Bytes of a number in which activations are computed."""
    return 2 if compute_type == "bf16" else 4


def chosen_of(job: Job, layout: Layout, plan: Plan, compute_type: str, *, analyzed: bool) -> Chosen:
    """What a job will make, in numbers."""
    settings = job.settings
    vision = 0
    if job.mmproj is not None:
        vision = vision_file_size(job.checkpoint, job.family, dtype=settings.mmproj_type, made_by=TOOL)
    sizes = layout.sizes(choose_order(None, "depth", plan.layers))
    mixes = settings.order == MIX
    text = _text_bytes(settings, plan)
    return Chosen(
        compute=compute_bytes(compute_type),
        text=text,
        high=sizes[0],
        low=sizes[-1],
        step=layout.largest_step(),
        header=layout.header_bytes,
        tensors=len(layout.specs),
        types=_numbers_by_type(layout.specs, plan),
        copied=sum(spec.bytes_as(kind) for spec, kind in _types(layout.specs, plan) if kind.name in COPIED_TYPES),
        inputs=_importance_bytes(layout.specs),
        mmproj=vision,
        bundle=bundle_size(text, vision) if settings.bundle else 0,
        keeps=not job.moves_parts(sizes[0]),
        evaluates=settings.evaluate,
        tries=tries_of(settings.order, plan.layers, probe_count(layout.weights), drop=settings.max_drop is not None),
        mixes=mixes,
        sequential=settings.sequential,
        analyzed=analyzed,
    )


def _text_bytes(settings: Settings, plan: Plan) -> int:
    """A mixture fills its budget as well as it can."""
    if settings.order == MIX and settings.max_size is not None and settings.low_layers is None:
        return max(plan.size_bytes, min(settings.max_size, plan.high_size_bytes))
    return plan.size_bytes


def _types(specs: Sequence[TensorSpec], plan: Plan) -> Iterator[tuple[TensorSpec, GGMLQuantizationType]]:
    return ((spec, GGMLQuantizationType[plan.types[spec.name]]) for spec in specs)


def _numbers_by_type(specs: Sequence[TensorSpec], plan: Plan) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for spec, kind in _types(specs, plan):
        counts[kind.name] += prod(spec.shape)
    return dict(counts)


def _importance_bytes(specs: Sequence[TensorSpec]) -> int:
    rows = [spec.shape[0] for spec in specs if spec.quantizable]
    return sum(4 * row + IMATRIX_TENSOR_BYTES for row in rows)
