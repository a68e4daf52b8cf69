"""Runs a GGUF with its mmproj through llama.cpp: a prompt with an image in, logits or an answer out.

The only module that loads a model to run it. Takes a text GGUF and an mmproj, or a bundle of both;
knows nothing of plans and checkpoints. Images are brought to the model's grid by `images`, so that
llama.cpp takes their pixels as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from luq_gguf.bundle import extract_mmproj, is_bundle
from luq_gguf.chat import ChatRenderer
from luq_gguf.embeddings import EmbeddingStore
from luq_gguf.errors import RunError
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.images import fit_to_grid
from luq_gguf.llama_log import quiet_llama
from luq_gguf.loadable import open_loadable
from luq_gguf.processors import default_threads
from luq_gguf.projectors import doubt_pair, projector_of
from luq_gguf.samples import IMAGE_PART, Part, Turns, chat_messages, text_part

if TYPE_CHECKING:
    import llama_cpp
    from PIL import Image

PROBE, ANSWER = "luq-gguf", "luq-gguf answers"
BATCH_TOKENS = 2048
"""llama.cpp aborts the process where it is handed more at once."""


class Runtime:
    """A loaded model with a context of `context` tokens; use as a context manager.

    `mmproj` may be left out for text, and where `model` is a bundle; images are made smaller where they have more
    than `image_tokens`, None being the limit of the calibration, and larger where they have less than
    `least_image_tokens`, None being llama.cpp's own. Raises GGUFError where a file is no sound GGUF,
    RunError where llama.cpp refuses it. `doubt` is what speaks against model and mmproj belonging together. What the
    vision part makes of images is taken from `embeddings` where it stands there, and kept there.
    """

    def __init__(
        self,
        model: Path,
        mmproj: Path | None = None,
        *,
        threads: int | None = None,
        context: int = 4096,
        image_tokens: int | None = None,
        least_image_tokens: int | None = None,
        embeddings: EmbeddingStore | None = None,
    ) -> None:
        self._stack = contextlib.ExitStack()
        self._image_tokens, self._least_image_tokens = image_tokens, least_image_tokens
        self._embeddings = embeddings
        self.doubt: str | None = None
        try:
            self._open(model, mmproj, threads, context)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, model: Path, mmproj: Path | None, threads: int | None, context: int) -> None:
        import llama_cpp
        from llama_cpp import mtmd_cpp

        self._llama, self._mtmd = llama_cpp, mtmd_cpp
        self.log = self._stack.enter_context(quiet_llama())
        self.threads = threads or default_threads()
        self.metadata = open_loadable(model).metadata
        llama_cpp.llama_backend_init()
        self._model = self._load_model(model)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self._chat = self._stack.enter_context(self._renderer())
        self._plain: bool | None = None
        self._context = self._make_context(context)
        self.context = context
        self._vision: Any = None
        if mmproj is not None or is_bundle(model):
            self._load_vision(model, mmproj)
        self._position = self._used = self.prompt_tokens = 0

    def _renderer(self) -> ChatRenderer:
        tokens = {
            "bos_token": self._token_text(self._llama.llama_vocab_bos(self._vocab)),
            "eos_token": self._token_text(self._llama.llama_vocab_eos(self._vocab)),
        }
        return ChatRenderer(str(self.metadata.get("tokenizer.chat_template", "")), tokens=tokens)

    def _load_model(self, model: Path) -> Any:
        parameters = self._llama.llama_model_default_params()
        parameters.n_gpu_layers = 0
        loaded = self._llama.llama_model_load_from_file(str(model).encode(), parameters)
        if not loaded:
            raise RunError(f"llama.cpp cannot load {model}: {self.log.last()}", hint="check it with `luq-gguf verify`")
        self._stack.callback(self._llama.llama_model_free, loaded)
        return loaded

    def _make_context(self, context: int) -> Any:
        parameters = self._llama.llama_context_default_params()
        parameters.n_ctx = context
        parameters.n_batch = self._batch_tokens = min(context, BATCH_TOKENS)
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.no_perf = True
        made = self._llama.llama_init_from_model(self._model, parameters)
        if not made:
            raise RunError(f"llama.cpp cannot make a context of {context} tokens: {self.log.last()}")
        self._stack.callback(self._llama.llama_free, made)
        return made

    def _load_vision(self, model: Path, mmproj: Path | None) -> None:
        with _mmproj_file(model, mmproj) as path:
            metadata = GGUFFile.open(path).metadata
            self.doubt = doubt_pair(self.metadata, metadata, mmproj or path)
            self._projector = projector_of(metadata)
            self._width = int(self._llama.llama_model_n_embd_inp(self._model))
            self._mmproj = self._embeddings.digest(path, mmproj or model) if self._embeddings else ""
            self._limits = self._projector.limits(metadata, path, self._image_tokens, self._least_image_tokens)
            parameters = self._mtmd.mtmd_context_params_default()
            parameters.use_gpu = False
            parameters.print_timings = False
            parameters.warmup = False
            parameters.n_threads = self.threads
            self._vision = self._mtmd.mtmd_init_from_file(str(path).encode(), self._model, parameters)
        if not self._vision:
            raise RunError(
                f"llama.cpp cannot use {mmproj or model} as the vision part of {model}: {self.log.last()}",
                hint="take the mmproj that was made from the same checkpoint",
            )
        self._stack.callback(self._mtmd.mtmd_free, self._vision)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self, question: str, image: Image.Image | None = None, turns: Turns = ()) -> np.ndarray:
        """Evaluate a prompt in the model's chat template; return the next token's logits, float32 (vocabulary,).

        `turns` came before the question; the image belongs to the first of all questions. `prompt_tokens` is then how
        many tokens the prompt has, those of the image among them.
        """
        if image is not None and self._vision is None:
            raise RunError("this model was loaded without its vision part", hint="give its mmproj with --mmproj")
        prompt = self._prompt(question, turns, with_image=image is not None)
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        self._position = self._used = 0
        if self._vision is not None:
            return self._start_with_vision(prompt, image)
        tokens = self.tokenize(prompt, begin=self._begins(prompt))
        self.prompt_tokens = len(tokens)
        return self._evaluate(tokens)

    def _prompt(self, question: str, turns: Turns, *, with_image: bool) -> str:
        """The conversation in the model's chat template, with llama.cpp's marker in the place of the image."""
        if not with_image:
            return self._render(chat_messages(question, turns, plain=self._takes_plain_text()))
        marker = self._mtmd.mtmd_default_marker().decode()
        if self._projector.place:
            prompt = self._render(chat_messages(question, turns, image=IMAGE_PART))
            if self._projector.place in prompt:
                around = self._projector.around
                return prompt.replace(self._projector.place, f"{around}{marker}{around}", 1)
        return self._render(chat_messages(question, turns, image=text_part(marker)))

    def _render(self, messages: list[Part]) -> str:
        return self._chat.render([messages])[0]

    def _takes_plain_text(self) -> bool:
        """Whether the template takes contents that are strings: those of text models take nothing else."""
        if self._plain is None:
            self._plain = PROBE in self._render(chat_messages(PROBE, plain=True))
        return self._plain

    def _begins(self, prompt: str) -> bool:
        """Whether llama.cpp is to put the token that begins a text before a prompt."""
        beginning = self._token_text(self._llama.llama_vocab_bos(self._vocab))
        return bool(self._llama.llama_vocab_get_add_bos(self._vocab)) and not prompt.startswith(beginning)

    def _token_text(self, token: int) -> str:
        text = self._llama.llama_vocab_get_text(self._vocab, token) if token >= 0 else b""
        return (text or b"").decode(errors="replace")

    def _start_with_vision(self, prompt: str, image: Image.Image | None) -> np.ndarray:
        fitted = None if image is None else fit_to_grid(image, self._limits)
        with contextlib.ExitStack() as stack:
            bitmaps = [] if fitted is None else [self._bitmap(fitted, stack)]
            chunks = self._mtmd.mtmd_input_chunks_init()
            stack.callback(self._mtmd.mtmd_input_chunks_free, chunks)
            text = prompt.encode()
            begins = self._begins(prompt)
            source = self._mtmd.mtmd_input_text(text=text, text_len=len(text), add_special=begins, parse_special=True)
            array = (self._mtmd.mtmd_bitmap_p_ctypes * len(bitmaps))(*bitmaps)
            status = self._mtmd.mtmd_tokenize(self._vision, chunks, ctypes.byref(source), array, len(bitmaps))
            if status:
                raise RunError(f"llama.cpp cannot tokenize the prompt (status {status}): {self.log.last()}")
            self.prompt_tokens = int(self._mtmd.mtmd_helper_get_n_tokens(chunks))
            self._require_room(self.prompt_tokens)
            self._used = self.prompt_tokens
            for number in range(self._mtmd.mtmd_input_chunks_size(chunks)):
                self._evaluate_chunk(self._mtmd.mtmd_input_chunks_get(chunks, number), number, fitted)
        return self._logits(-1)

    def _evaluate_chunk(self, chunk: Any, number: int, image: Image.Image | None) -> None:
        """A piece of a prompt, text or image; what an image becomes is kept where there is a store for it."""
        reached = self._llama.llama_pos(self._position)
        is_text = self._mtmd.mtmd_input_chunk_get_type(chunk) == self._mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT
        if is_text or image is None or self._embeddings is None:
            status = self._mtmd.mtmd_helper_eval_chunk_single(
                self._vision, self._context, chunk, self._position, 0, self._batch_tokens, True, ctypes.byref(reached)
            )
        else:
            shape = (self._mtmd.mtmd_input_chunk_get_n_tokens(chunk), self._width)
            found = self._embeddings.get(self._mmproj, image, number, shape, lambda: self._encode(chunk, shape))
            nothing = self._mtmd.mtmd_helper_post_decode_callback()
            status = self._mtmd.mtmd_helper_decode_image_chunk(
                self._vision, self._context, chunk, found.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
                self._position, 0, self._batch_tokens, ctypes.byref(reached), nothing, None,
            )  # fmt: skip
        if status:
            raise RunError(f"llama.cpp cannot evaluate the prompt (status {status}): {self.log.last()}")
        self._position = int(reached.value)

    def _encode(self, chunk: Any, shape: tuple[int, int]) -> np.ndarray:
        """What the vision part makes of an image, float32 of this shape."""
        status = self._mtmd.mtmd_encode_chunk(self._vision, chunk)
        if status:
            raise RunError(f"llama.cpp cannot encode the image (status {status}): {self.log.last()}")
        return np.ctypeslib.as_array(self._mtmd.mtmd_get_output_embd(self._vision), shape=shape).copy()

    def _bitmap(self, image: Image.Image, stack: contextlib.ExitStack) -> Any:
        pixels = np.ascontiguousarray(np.asarray(image, dtype=np.uint8))
        pointer = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = self._mtmd.mtmd_bitmap_init(image.width, image.height, pointer)
        stack.callback(self._mtmd.mtmd_bitmap_free, bitmap)
        return bitmap

    def _require_room(self, tokens: int) -> None:
        if self._used + tokens > self.context:
            raise RunError(
                f"the prompt needs {self._used + tokens} tokens, the context has {self.context}",
                hint="ask less, or take a smaller image",
            )

    def tokenize(self, text: str, *, special: bool = True, begin: bool = False) -> list[int]:
        """Tokens of a text; special tokens written in it are taken as such when `special`.

        With `begin` the token that begins a text stands before them, for the models that have one.
        """
        data = text.encode()
        room = len(data) + 16
        buffer = (self._llama.llama_token * room)()
        count = self._llama.llama_tokenize(self._vocab, data, len(data), buffer, room, begin, special)
        if count < 0:
            raise RunError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        return list(buffer[:count])

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """Evaluate further tokens; return the logits after each, float32 (len(tokens), vocabulary)."""
        self._require_room(len(tokens))
        found = [self._decode(piece, every=True) for piece in self._batches(tokens)]
        return np.concatenate([*found, np.empty((0, self.vocabulary), np.float32)])

    def _evaluate(self, tokens: Sequence[int]) -> np.ndarray:
        """The logits after the last of further tokens, float32 (vocabulary,)."""
        self._require_room(len(tokens))
        for piece in self._batches(tokens):
            last: np.ndarray = self._decode(piece, every=False)[-1]
        return last

    def _batches(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        return (tokens[start : start + self._batch_tokens] for start in range(0, len(tokens), self._batch_tokens))

    def _decode(self, tokens: Sequence[int], *, every: bool) -> np.ndarray:
        """The logits after each of some tokens, or after the last one only; float32 (rows, vocabulary)."""
        wanted = range(len(tokens)) if every else range(len(tokens) - 1, len(tokens))
        batch = self._llama.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for index, token in enumerate(tokens):
                batch.token[index] = token
                batch.pos[index] = self._position + index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = index in wanted
            status = self._llama.llama_decode(self._context, batch)
        finally:
            self._llama.llama_batch_free(batch)
        if status:
            raise RunError(f"llama.cpp cannot decode {len(tokens)} tokens (status {status}): {self.log.last()}")
        self._position += len(tokens)
        self._used += len(tokens)
        return np.stack([self._logits(index) for index in wanted])

    def _logits(self, index: int) -> np.ndarray:
        pointer = self._llama.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(pointer, shape=(self.vocabulary,)).copy()

    def pieces(
        self, question: str, image: Image.Image | None = None, *, turns: Turns = (), max_tokens: int = 256
    ) -> Iterator[bytes]:
        """Answer greedily, one token's bytes at a time, until the model ends its turn."""
        logits = self.start(question, image, turns)
        for _ in range(max_tokens):
            token = int(logits.argmax())
            if self._llama.llama_vocab_is_eog(self._vocab, token):
                return
            yield self.piece(token)
            logits = self._evaluate([token])

    def answer(
        self, question: str, image: Image.Image | None = None, *, turns: Turns = (), max_tokens: int = 256
    ) -> str:
        """The whole greedy answer as text."""
        said = self.pieces(question, image, turns=turns, max_tokens=max_tokens)
        return b"".join(said).decode(errors="replace").strip()

    @property
    def sees(self) -> bool:
        """Whether it was loaded with its vision part."""
        return self._vision is not None

    @property
    def turn_end(self) -> str:
        """The token with which the model ends its turn, as text: what its template writes behind an answer.

        llama.cpp's own guess is any token of the vocabulary with a known name, for Qwen's <|endoftext|> too; it is
        taken where the template writes none.
        """
        said = self._render(chat_messages(PROBE, ((PROBE, ANSWER),), plain=self._takes_plain_text()))
        after = self.tokenize(said.partition(ANSWER)[2])
        ends = (token for token in after if self._llama.llama_vocab_is_eog(self._vocab, token))
        guess = self._llama.llama_vocab_eot(self._vocab)
        return self._token_text(next(ends, guess if guess >= 0 else self._llama.llama_vocab_eos(self._vocab)))

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The UTF-8 bytes of a token, which may begin in the midst of a letter; special ones have names or nothing."""
        buffer = ctypes.create_string_buffer(256)
        count = self._llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[: max(count, 0)]


def open_model(
    model: str | Path, mmproj: str | Path | None = None, *, context: int = 4096, **options: Any
) -> llama_cpp.Llama:
    """Open a text GGUF with its mmproj, or a bundle, as a ready llama-cpp-python `Llama` with vision.

    Further `options` go to `Llama`. Raises RunError where llama.cpp refuses a file.
    """
    import llama_cpp
    from llama_cpp.llama_chat_format import MTMDChatHandler

    path, vision = Path(model), Path(mmproj) if mmproj is not None else None
    open_loadable(path)
    try:
        llama = llama_cpp.Llama(str(path), n_ctx=context, **({"verbose": False} | options))
        if vision is not None or is_bundle(path):
            with _mmproj_file(path, vision) as vision_file:
                handler = MTMDChatHandler(str(vision_file), verbose=llama.verbose, use_gpu=False)
                handler._init_mtmd_context(llama)  # noqa: SLF001 - the file of a bundle's vision part is gone afterwards
            llama.chat_handler = handler
    except (ValueError, RuntimeError) as error:
        raise RunError(f"llama.cpp cannot open {path}: {error}") from error
    return llama


@contextlib.contextmanager
def _mmproj_file(model: Path, mmproj: Path | None) -> Iterator[Path]:
    """The mmproj as a file of its own; that of a bundle is unpacked for as long as it takes to load it."""
    if mmproj is not None:
        GGUFFile.open(mmproj)
        yield mmproj
        return
    with tempfile.TemporaryDirectory(prefix="luq-gguf-") as folder:
        path = Path(folder) / "mmproj.gguf"
        extract_mmproj(model, path)
        yield path
