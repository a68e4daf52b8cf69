"""GGUF metadata that does not depend on the family: `general.*` and byte-level BPE tokenizers.

Values come from gguf's own readers (`Metadata`, `SpecialVocab`); what llama.cpp's converter does
beyond the released gguf package is done here, so that both write the same.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import CheckpointError
from luq_gguf.families.base import Dtype, MetadataEntry
from luq_gguf.families.model_card import require_sane_card
from luq_gguf.safetensors_index import require_inside
from luq_gguf.small_files import read_small
from luq_gguf.tokenizer_file import HINT, load_tokenizer, text_of_token, tokenizing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE_TYPES: dict[str, gguf.LlamaFileType] = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
}
CONFIGS = ("config.json", "generation_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.json")
MOST_UNUSED = 1 << 16
TEXTS = ("merges.txt", "chat_template.jinja")
"""Which files of the folder gguf's readers open by themselves: they are held against limits before."""


class MetadataRecorder:
    """A gguf writer that is never given a file: it only collects keys, values and types."""

    def __init__(self, architecture: str) -> None:
        self.writer = gguf.GGUFWriter(path=None, arch=architecture)

    def entries(self) -> list[MetadataEntry]:
        """What was added, in that order."""
        return [(key, item.value, item.type, item.sub_type) for key, item in self.writer.kv_data[0].items()]


def add_general(
    writer: gguf.GGUFWriter, checkpoint: Checkpoint, kind: gguf.GGUFType, parameters: int, dtype: Dtype
) -> None:
    """Add the model's type, name and origin, sampling advice, file type and quantization version.

    Names come from the model card and the folder's name, as llama.cpp's converter takes them.
    """
    writer.add_type(kind)
    require_sane_card(checkpoint)
    for name in CONFIGS:
        checkpoint.side_json(name)
    try:
        metadata = _load_metadata(checkpoint, parameters)
        metadata.set_gguf_meta_model(writer)
    except Exception as error:
        raise CheckpointError(
            f"cannot read the model card or generation_config.json of {checkpoint.folder}: {first_line(error)}",
            hint="repair the file or take it out of the folder",
        ) from error
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _load_metadata(checkpoint: Checkpoint, parameters: int) -> gguf.Metadata:
    metadata = gguf.Metadata.load(None, checkpoint.folder, None, parameters)
    if metadata.name is None:
        metadata.name = checkpoint.folder.name
    if metadata.size_label is None and parameters > 0:
        metadata.size_label = gguf.size_label(parameters, parameters, 0, 0)
    penalty = checkpoint.side_json("generation_config.json").get("repetition_penalty")
    if metadata.sampling_penalty_repeat is None and penalty is not None:
        metadata.sampling_penalty_repeat = penalty
    return metadata


def add_byte_level_bpe(
    writer: gguf.GGUFWriter, checkpoint: Checkpoint, vocabulary_size: int, *, pre: str, pattern: str
) -> None:
    """Add a byte-level BPE vocabulary with its merges, special tokens and chat template.

    `pre` is llama.cpp's name of the pre-tokenizer whose splitting pattern is `pattern`; a tokenizer that
    splits otherwise is refused, since llama.cpp would read texts in another way than the model.
    """
    require_sane_files(checkpoint)
    tokens, types = read_tokens(checkpoint, vocabulary_size, pattern)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if not add_special_tokens(writer, checkpoint, load_merges=True).merges:
        raise CheckpointError(f"the tokenizer of {checkpoint.folder} has no merges", hint=HINT)


def add_special_tokens(writer: gguf.GGUFWriter, checkpoint: Checkpoint, **options: Any) -> gguf.SpecialVocab:
    """Add special tokens, which of them begin and end a text, merges and chat template; raises CheckpointError."""
    content = checkpoint.side_json("tokenizer.json")
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # it warns of what is no matter here
    try:
        special = gguf.SpecialVocab(checkpoint.folder, **options)
        special.add_special_token |= added_by_processor(content.get("post_processor"))
        special.add_to_gguf(writer, quiet=True)
    except Exception as error:
        raise CheckpointError(
            f"cannot read the tokenizer files of {checkpoint.folder}: {first_line(error)}", hint=HINT
        ) from error
    return special


def require_sane_files(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where a file that gguf's readers open by themselves is too large, or no text."""
    for name in TOKENIZER_FILES:
        checkpoint.side_json(name)
    for name in TEXTS:
        path = checkpoint.side_file(name)
        if path is not None:
            _require_text(path)
    more = checkpoint.folder / "additional_chat_templates"
    if more.exists():
        require_inside(checkpoint.folder, more)
        for path in more.glob("*.jinja"):
            require_inside(checkpoint.folder, path)
            _require_text(path)


def _require_text(path: Path) -> None:
    """Raise CheckpointError where a file is no regular one, too large, or not UTF-8."""
    try:
        read_small(path).decode("utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", hint=HINT) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8", hint=HINT) from error


def read_tokens(checkpoint: Checkpoint, vocabulary_size: int, pattern: str) -> tuple[list[str], list[int]]:
    """All tokens by id and their llama.cpp types; ids without a token are named [PADn] and unused."""
    tokenizer = load_tokenizer(checkpoint, pattern)
    with tokenizing(checkpoint):
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        _check_ids(checkpoint, vocabulary, vocabulary_size)
        return _tokens_by_id(tokenizer, vocabulary, vocabulary_size)


def _check_ids(checkpoint: Checkpoint, vocabulary: dict[str, int], vocabulary_size: int) -> None:
    if not vocabulary:
        raise CheckpointError(f"the tokenizer of {checkpoint.folder} has no tokens", hint=HINT)
    if (last := max(vocabulary.values())) >= vocabulary_size:
        raise CheckpointError(
            f"the tokenizer of {checkpoint.folder} goes up to token {last}, vocab_size is {vocabulary_size}",
            hint="tokenizer and config belong to different models",
        )
    if vocabulary_size > 2 * len(vocabulary) + MOST_UNUSED:
        raise CheckpointError(
            f"the tokenizer of {checkpoint.folder} has {len(vocabulary)} tokens, vocab_size is {vocabulary_size}",
            hint="tokenizer and config belong to different models",
        )
    if len(set(vocabulary.values())) != len(vocabulary):
        (twice, _), *_ = Counter(vocabulary.values()).most_common(1)
        raise CheckpointError(f"the tokenizer of {checkpoint.folder} has two tokens with the id {twice}", hint=HINT)


def _tokens_by_id(
    tokenizer: Tokenizer, vocabulary: dict[str, int], vocabulary_size: int
) -> tuple[list[str], list[int]]:
    by_id = {rank: token for token, rank in vocabulary.items()}
    added = tokenizer.get_added_tokens_decoder()
    tokens: list[str] = []
    types: list[int] = []
    for rank in range(vocabulary_size):
        token, kind = by_id.get(rank), gguf.TokenType.NORMAL
        if token is None:
            token, kind = f"[PAD{rank}]", gguf.TokenType.UNUSED
        elif rank in added:
            if not added[rank].normalized:
                token = tokenizer.decode(
                    tokenizer.encode(token, add_special_tokens=False).ids, skip_special_tokens=False
                )
            special = added[rank].special or (token.startswith("<|") and token.endswith("|>"))
            kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
        tokens.append(token)
        types.append(kind)
    return tokens, types


def begins_texts(checkpoint: Checkpoint, *, default: bool) -> str:
    """The text of the token that begins every text of this model; empty where none does.

    The rule by which the GGUF's `tokenizer.ggml.add_bos_token` is written; `default` is llama.cpp's without that key.
    """
    stated = checkpoint.side_json("tokenizer_config.json").get("add_bos_token")
    added = added_by_processor(checkpoint.side_json("tokenizer.json").get("post_processor")).get("bos", stated)
    return text_of_token(checkpoint, "bos_token") if (default if added is None else added) else ""


def added_by_processor(processor: object) -> dict[str, bool]:
    """Which special tokens a post-processor adds by itself; it has the last word over tokenizer_config.json.

    The released gguf does not look at byte-level processors, llama.cpp's converter does.
    """
    if not isinstance(processor, dict):
        return {}
    parts: Sequence[Any] = processor.get("processors") or [processor]
    added: dict[str, bool] = {}
    for part in (part for part in parts if isinstance(part, dict)):
        if part.get("type") == "ByteLevel":
            added = {"bos": False, "eos": False} | added
        elif part.get("type") == "TemplateProcessing":
            single = part.get("single") or [{}]
            added |= {"bos": True} if "SpecialToken" in single[0] else {}
            added |= {"eos": True} if "SpecialToken" in single[-1] else {}
    return added


def first_line(error: Exception) -> str:
    """What an error says first, for a message of one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
