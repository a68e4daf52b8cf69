"""Pico LLaVA-1.5 checkpoints in the form in which the hub has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.pico_files import TORCH_DTYPES, added_token, draw_weights, write_checkpoint
from tests.pico_sentencepiece import (
    CONTROL,
    SPACE,
    UNKNOWN,
    Piece,
    model_file,
    piece_tokenizer_json,
    sentence_pieces,
)
from tests.pico_shapes import Decoder, Shapes, decoder_shapes, encoder_shapes, with_bias
from tests.published import LLAVA_7B, LLAVA_13B

TEXT = Decoder(kv_heads=4)
VISION_HIDDEN = 64
VISION_FFN = 128
VISION_HEADS = 2
VISION_DEPTH = 4
PATCH = 14
PIECES = 480
ADDED_TOKENS = ("<image>", "<pad>")
IMAGE_MEAN = [0.48145466, 0.4578275, 0.40821073]
IMAGE_STD = [0.26862954, 0.26130258, 0.27577711]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Images before text #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_llava(
    folder: Path,
    *,
    dtype: str = "bf16",
    tied: bool = False,
    shards: int = 1,
    seed: int = 0,
    layers: int = 3,
    image_size: int = 56,
) -> Path:
    """Write a checkpoint into `folder` and return it; the same arguments give the same bytes."""
    pieces = sentence_pieces([("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)], PIECES)
    files = tokenizer_files(pieces) | image_files(image_size)
    files["config.json"] = llava_config(len(pieces), layers, tied, dtype, image_size)
    files["generation_config.json"] = {
        "_from_model_config": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": len(pieces) + 1,
        "transformers_version": "4.36.0.dev0",
    }
    return write_checkpoint(folder, draw_weights(llava_shapes(layers, tied, image_size), seed), files, dtype, shards)


def llava_shapes(layers: int, tied: bool, image_size: int) -> Shapes:
    vision: Shapes = {
        "embeddings.class_embedding": (VISION_HIDDEN,),
        "embeddings.patch_embedding.weight": (VISION_HIDDEN, 3, PATCH, PATCH),
        "embeddings.position_embedding.weight": ((image_size // PATCH) ** 2 + 1, VISION_HIDDEN),
    }
    vision |= with_bias({"pre_layrnorm": (VISION_HIDDEN,)}) | encoder_shapes(VISION_HIDDEN, VISION_FFN, VISION_DEPTH)
    projector = with_bias({"linear_1": (TEXT.hidden, VISION_HIDDEN), "linear_2": (TEXT.hidden, TEXT.hidden)})
    text = decoder_shapes(TEXT, layers, "language_model.model.", None if tied else "language_model.lm_head.weight")
    named = {f"multi_modal_projector.{name}": shape for name, shape in projector.items()}
    return text | named | {f"vision_tower.vision_model.{name}": shape for name, shape in vision.items()}


def llava_config(pieces: int, layers: int, tied: bool, dtype: str, image_size: int) -> dict[str, Any]:
    """The hub's `config.json`, with the sizes that its 7B model leaves out."""
    text = LLAVA_13B["text_config"] | {
        "_name_or_path": "example/pico",
        "hidden_size": TEXT.hidden,
        "intermediate_size": TEXT.ffn,
        "max_position_embeddings": 1024,
        "num_attention_heads": TEXT.heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": TEXT.kv_heads,
        "torch_dtype": TORCH_DTYPES[dtype],
        "vocab_size": TEXT.vocabulary,
    }
    vision = LLAVA_7B["vision_config"] | {
        "hidden_size": VISION_HIDDEN,
        "image_size": image_size,
        "intermediate_size": VISION_FFN,
        "num_attention_heads": VISION_HEADS,
        "num_hidden_layers": VISION_DEPTH,
        "projection_dim": 32,
    }
    return LLAVA_7B | {
        "image_seq_length": (image_size // PATCH) ** 2,
        "image_token_index": pieces,
        "pad_token_id": pieces + 1,
        "text_config": text | ({"tie_word_embeddings": True} if tied else {}),
        "tie_word_embeddings": tied,
        "torch_dtype": TORCH_DTYPES[dtype],
        "vision_config": vision,
        "vocab_size": TEXT.vocabulary,
    }


def tokenizer_files(pieces: list[Piece]) -> dict[str, Any]:
    """LLaMA's tokenizer with an image token, in every form in which the hub has it."""
    extra = {token: len(pieces) + rank for rank, token in enumerate(ADDED_TOKENS)}
    added = {piece.text: (rank, True) for rank, piece in enumerate(pieces[:3])}
    added |= {token: (rank, True) for token, rank in extra.items()}
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizer = {"type": "Sequence", "normalizers": [prepend, replace]}
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    described = {name: dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False) for name in named}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(rank): added_token(token, special) for token, (rank, special) in added.items()},
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {"image_token": "<image>"},
        "image_token": "<image>",
        "legacy": False,
        "model_max_length": 1000000000000000019884624838656,
        "padding_side": "left",
        "processor_class": "LlavaProcessor",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "trust_remote_code": False,
        "use_default_system_prompt": False,
    }
    return {
        "tokenizer.model": model_file(pieces, {"unk": 0, "bos": 1, "eos": 2}, dummy_prefix=True),
        "tokenizer.json": piece_tokenizer_json(
            pieces, added, "<s>", normalizer=normalizer, pre_tokenizer=None, strip=True
        ),
        "added_tokens.json": extra,
        "special_tokens_map.json": {name: {"content": named[name]} | described[name] for name in named},
        "tokenizer_config.json": config | named,
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }


def image_files(image_size: int) -> dict[str, Any]:
    """What the processor does with images, and how many tokens it gives them."""
    image = {
        "crop_size": {"height": image_size, "width": image_size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": IMAGE_MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": IMAGE_STD,
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": image_size},
    }
    processor = {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": PATCH,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "default",
    }
    return {"preprocessor_config.json": image, "processor_config.json": processor}
