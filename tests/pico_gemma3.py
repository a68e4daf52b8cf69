"""Pico Gemma 3 checkpoints in the form in which the hub has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.pico_files import TORCH_DTYPES, added_token, draw_weights, write_checkpoint
from tests.pico_sentencepiece import (
    CONTROL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    model_file,
    piece_tokenizer_json,
    sentence_pieces,
)
from tests.pico_shapes import Decoder, Shapes, decoder_shapes, encoder_shapes, with_bias
from tests.published import GEMMA3_4B

NORMS = ("input_layernorm", "post_attention_layernorm", "post_feedforward_layernorm", "pre_feedforward_layernorm")
TEXT = Decoder(heads=8, qk_norm=True, norms=NORMS)
VISION_HIDDEN = 64
VISION_FFN = 112
VISION_HEADS = 2
VISION_DEPTH = 3
IMAGE_SIZE = 56
PATCH = 14
IMAGE_TOKENS = 4
PIECES = 480
LAYOUT_TOKENS = ("\n", "\n\n", *(SPACE * count for count in range(2, 32)))
PLAIN_TOKENS = ("<mask>", "<unused0>", *LAYOUT_TOKENS)
FIRST_PIECES = {
    **dict.fromkeys(("<pad>", "<eos>", "<bos>"), CONTROL),
    "<unk>": UNKNOWN,
    **dict.fromkeys(("<mask>", "<unused0>", "<start_of_turn>", "<end_of_turn>"), USER_DEFINED),
    **dict.fromkeys((*LAYOUT_TOKENS, "<start_of_image>", "<end_of_image>"), USER_DEFINED),
}
IDS = {token: rank for rank, token in enumerate(FIRST_PIECES)}
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- if messages[0]['content'] is string -%}{%- set opening = messages[0]['content'] + '\n\n' -%}"
    "{%- else -%}{%- set opening = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}"
    "{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set opening = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for message in turns -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' + (opening if loop.first else '') }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}"
    "{%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}"
    "{%- else -%}{{ raise_exception('Invalid content type') }}{%- endif -%}"
    "{{ '<end_of_turn>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


def build_gemma3(folder: Path, *, dtype: str = "bf16", shards: int = 1, seed: int = 0, layers: int = 6) -> Path:
    """Write a checkpoint (embeddings are always tied) into `folder` and return it; the sixth layer is a global one."""
    pieces = sentence_pieces(FIRST_PIECES.items(), PIECES)
    files = tokenizer_files(pieces) | image_files()
    files["config.json"] = gemma3_config(len(pieces), layers, dtype)
    files["generation_config.json"] = {
        "bos_token_id": IDS["<bos>"],
        "cache_implementation": "hybrid",
        "do_sample": True,
        "eos_token_id": [IDS["<eos>"], IDS["<end_of_turn>"]],
        "pad_token_id": IDS["<pad>"],
        "top_k": 64,
        "top_p": 0.95,
        "transformers_version": "4.50.0.dev0",
    }
    return write_checkpoint(folder, gemma3_weights(seed=seed, layers=layers), files, dtype, shards)


def gemma3_weights(*, seed: int, layers: int) -> Iterator[tuple[str, np.ndarray]]:
    """The model adds one to its own norms, and multiplies embeddings by the root of their size."""
    for name, value in draw_weights(gemma3_shapes(layers), seed):
        if name.endswith("norm.weight") and "vision_tower" not in name:
            yield name, value - np.float32(1)
        elif name.endswith("embed_tokens.weight"):
            yield name, value * np.float32(TEXT.hidden**-0.5)
        else:
            yield name, value


def gemma3_shapes(layers: int) -> Shapes:
    vision = with_bias({"embeddings.patch_embedding": (VISION_HIDDEN, 3, PATCH, PATCH)})
    vision["embeddings.position_embedding.weight"] = ((IMAGE_SIZE // PATCH) ** 2, VISION_HIDDEN)
    vision |= encoder_shapes(VISION_HIDDEN, VISION_FFN, VISION_DEPTH)
    projector: Shapes = {
        "multi_modal_projector.mm_input_projection_weight": (VISION_HIDDEN, TEXT.hidden),
        "multi_modal_projector.mm_soft_emb_norm.weight": (VISION_HIDDEN,),
    }
    text = decoder_shapes(TEXT, layers, "language_model.model.", None)
    return text | projector | {f"vision_tower.vision_model.{name}": shape for name, shape in vision.items()}


def gemma3_config(pieces: int, layers: int, dtype: str) -> dict[str, Any]:
    """The hub's `config.json`, with the sizes that it leaves out."""
    text = GEMMA3_4B["text_config"] | {
        "head_dim": TEXT.head,
        "hidden_size": TEXT.hidden,
        "intermediate_size": TEXT.ffn,
        "max_position_embeddings": 1024,
        "num_attention_heads": TEXT.heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": TEXT.kv_heads,
        "query_pre_attn_scalar": TEXT.head,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
        "sliding_window": 64,
        "sliding_window_pattern": 6,
        "vocab_size": TEXT.vocabulary,
    }
    vision = GEMMA3_4B["vision_config"] | {
        "hidden_size": VISION_HIDDEN,
        "image_size": IMAGE_SIZE,
        "intermediate_size": VISION_FFN,
        "num_attention_heads": VISION_HEADS,
        "num_hidden_layers": VISION_DEPTH,
        "patch_size": PATCH,
    }
    return GEMMA3_4B | {
        "boi_token_index": IDS["<start_of_image>"],
        "eoi_token_index": IDS["<end_of_image>"],
        "eos_token_id": [IDS["<eos>"], IDS["<end_of_turn>"]],
        "image_token_index": pieces,
        "mm_tokens_per_image": IMAGE_TOKENS,
        "text_config": text,
        "torch_dtype": TORCH_DTYPES[dtype],
        "vision_config": vision,
    }


def tokenizer_files(pieces: list[Piece]) -> dict[str, Any]:
    """Gemma's tokenizer in every form in which the hub has it; the image token stands beyond tokenizer.model."""
    added = {token: (rank, token not in PLAIN_TOKENS) for token, rank in IDS.items()}
    added["<image_soft_token>"] = (len(pieces), True)
    images = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    described = {name: added_token(token, True) for name, token in named.items()}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(rank): added_token(token, special) for token, (rank, special) in added.items()},
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": images,
        "model_max_length": 1000000000000000019884624838656,
        "processor_class": "Gemma3Processor",
        "sp_model_kwargs": None,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "use_default_system_prompt": False,
    }
    roles = {"unk": IDS["<unk>"], "bos": IDS["<bos>"], "eos": IDS["<eos>"], "pad": IDS["<pad>"]}
    return {
        "tokenizer.model": model_file(pieces, roles, dummy_prefix=False),
        "tokenizer.json": piece_tokenizer_json(
            pieces,
            added,
            "<bos>",
            normalizer={"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            pre_tokenizer={
                "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
            },
            strip=False,
        ),
        "added_tokens.json": {"<image_soft_token>": len(pieces)},
        "special_tokens_map.json": images | {
            name: {key: value for key, value in token.items() if key != "special"} for name, token in described.items()
        },
        "tokenizer_config.json": config | images | named,
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }  # fmt: skip


def image_files() -> dict[str, Any]:
    """What the processor does with images, and how many tokens it gives them."""
    panning = ("do_convert_rgb", "do_pan_and_scan", "pan_and_scan_max_num_crops", "pan_and_scan_min_crop_size")
    image = dict.fromkeys((*panning, "pan_and_scan_min_ratio_to_activate")) | {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": IMAGE_TOKENS,
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Gemma3Processor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    processor = {"image_seq_length": IMAGE_TOKENS, "processor_class": "Gemma3Processor"}
    return {"preprocessor_config.json": image, "processor_config.json": processor}
