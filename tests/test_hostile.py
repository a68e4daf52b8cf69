"""Bad model folders of every kind through the program: one clear line, exit 1, nothing under a final name.

Runs in this process, as `luq_gguf.guard` would run it in its child; what a killed process leaves is in test_machine.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.hostile import (
    FEW,
    Breaking,
    assert_nothing_made,
    assert_refused,
    change_json,
    device,
    entry,
    header,
    link_out,
    pipe,
    sparse,
    weights,
    write,
)  # fmt: skip
from tests.pico import CARD, build_pico


@pytest.fixture
def model(pico_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the pico checkpoint that a test may break."""
    return Path(shutil.copytree(pico_checkpoint, tmp_path / "pico"))


def empty_norm(folder: Path) -> None:
    """A tensor that the model needs, without elements."""
    weights(lambda values: values.update({"model.norm.weight": np.zeros(0, np.float32)}))(folder)


def wide_index(folder: Path) -> None:
    """An index that is a link to a file elsewhere."""
    index = folder / "model.safetensors.index.json"
    outside = folder.parent / "index.json"
    outside.write_text(json.dumps({"weight_map": {"model.norm.weight": "model.safetensors"}}))
    index.symlink_to(outside)


def two_shards(folder: Path, change: Breaking) -> None:
    shutil.rmtree(folder)
    build_pico(folder, shards=2)
    change(folder)


def duplicate_ids(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    words = [word for word in content["model"]["vocab"] if len(word) > 2]
    content["model"]["vocab"][words[0]] = content["model"]["vocab"][words[1]]
    path.write_text(json.dumps(content))


def more_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    last = content["added_tokens"][-1]
    content["added_tokens"] += [last | {"id": rank, "content": f"<more{rank}>"} for rank in range(last["id"] + 1, 520)]
    path.write_text(json.dumps(content))


def aliases(folder: Path) -> None:
    """A billion laughs: 10 lines that stand for 9^10 values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    (folder / "README.md").write_text("---\n" + "\n".join(lines) + "\ntags: *a9\n---\n")


DEEP = "[" * 50_000 + "]" * 50_000
HUGE_HEADER = (100_000_000).to_bytes(8, "little")
Cases = dict[str, tuple[Breaking, tuple[str, ...]]]
BAD_WEIGHTS: Cases = {
    "header longer than the file": (
        sparse("model.safetensors", 5000, (9999).to_bytes(8, "little")),
        ("model.safetensors", "cut"),
    ),
    "header length that overflows": (write("model.safetensors", b"\xff" * 64), ("model.safetensors", "cut short")),
    "header of 100 MB": (sparse("model.safetensors", 120_000_000, HUGE_HEADER), ("header of 100,000,000 bytes",)),
    "header of 30 MB of lists": (
        write("model.safetensors", (30_000_002).to_bytes(8, "little") + b'{"a":[' + b"[]," * 9_999_998 + b"0]}"),
        ("model.safetensors", "values"),
    ),
    "overlapping tensors": (entry(data_offsets=[0, 512]), ("overlap", "model.norm.weight")),
    "offsets beyond the end": (
        entry(data_offsets=[1 << 40, (1 << 40) + 512]),
        ("model.safetensors is cut short",),
    ),
    "offsets beyond 64 bits": (entry(data_offsets=[1 << 64, (1 << 64) + 512]), ("model.norm.weight", "broken entry")),
    "negative offsets": (entry(data_offsets=[-512, 0]), ("model.norm.weight", "broken entry")),
    "a thousand dimensions": (entry(shape=[1] * 1000), ("model.norm.weight", "broken entry")),
    "a shape that overflows": (entry(shape=[1 << 47] * 8), ("model.norm.weight", "do not fit")),
    "an unknown type": (entry(dtype="F4_E2M1X"), ("model.norm.weight", "F4_E2M1X")),
    "a type of quantized models": (entry(dtype="F8_E4M3", shape=[512]), ("model.norm.weight",)),
    "a name twice": (
        write("model.safetensors", (13).to_bytes(8, "little") + b'{"a":1,"a":2}'),
        ("stands twice",),
    ),
    "a name of control characters": (
        header(lambda entries: entries.update({"a\n\x1b[31mb": 7})),
        ("a\\n\\x1b[31mb", "broken entry"),
    ),
    "a name of a megabyte": (header(lambda entries: entries.update({"a" * 1_000_000: 7})), ("aaa", "broken entry")),
    "a tensor without elements": (empty_norm, ("model.norm.weight", "(0,)", "(256,)")),
    "another shape than the config's": (
        weights(lambda values: values.update({"lm_head.weight": np.zeros((512, 128), np.float32)})),
        ("lm_head.weight", "(512, 128)", "(512, 256)"),
    ),
    "a tensor that is missing": (
        header(lambda entries: entries.pop("model.layers.2.mlp.up_proj.weight")),
        ("model.layers.2.mlp.up_proj.weight",),
    ),
    "a shard listed but absent": (
        lambda folder: two_shards(folder, lambda f: (f / "model-00002-of-00002.safetensors").unlink()),
        ("model-00002-of-00002.safetensors",),
    ),
    "a shard cut in the middle": (
        lambda folder: two_shards(folder, lambda f: os.truncate(f / "model-00002-of-00002.safetensors", 60_000)),
        ("model-00002-of-00002.safetensors", "cut short"),
    ),
    "a shard that is a pipe": (pipe("model.safetensors"), ("model.safetensors", "no regular file")),
    "a shard that is a device": (device("model.safetensors"), ("model.safetensors", "link to /dev/zero")),
    "an index that climbs out": (
        write("model.safetensors.index.json", '{"weight_map": {"a": "../stolen.safetensors"}}'),
        ("../stolen.safetensors",),
    ),
    "an index that is a link out": (wide_index, ("model.safetensors.index.json", "link to", "outside")),
    "an index that is a pipe": (
        pipe("model.safetensors.index.json"),
        ("model.safetensors.index.json", "no regular file"),
    ),
    "an index with a strange name": (
        write("model.safetensors.index.json", '{"weight_map": {"a": "\\ud800.safetensors"}}'),
        ("as a shard",),
    ),
    "a shard that is a link out": (link_out("model.safetensors"), ("model.safetensors", "link to", "outside")),
    "NaN": (
        weights(lambda values: values["model.layers.1.mlp.up_proj.weight"].__setitem__((2, 3), np.nan)),
        ("model.layers.1.mlp.up_proj.weight", "NaN"),
    ),
    "infinity": (
        weights(lambda values: values["visual.merger.ln_q.weight"].__setitem__(5, np.inf)),
        ("visual.merger.ln_q.weight", "infinite"),
    ),
}
BAD_CONFIGS: Cases = {
    "config is a pipe": (pipe("config.json"), ("config.json", "no regular file")),
    "config is a device": (device("config.json"), ("config.json", "link to /dev/zero")),
    "config is a link out": (link_out("config.json"), ("config.json", "link to", "outside")),
    "config of a gigabyte": (sparse("config.json", 1 << 30), ("config.json", "1,073,741,824 bytes")),
    "config of 48 MB of lists": (write("config.json", b"[" + b"[]," * 16_000_000 + b"0]"), ("config.json", "values")),
    "config too deep": (write("config.json", DEEP), ("config.json",)),
    "config with NaN": (
        lambda folder: write("config.json", (folder / "config.json").read_text().replace("1e-06", "NaN"))(folder),
        ("config.json", "NaN"),
    ),
    "a number of 5,000 digits": (write("config.json", '{"a": ' + "9" * 5000 + "}"), ("config.json",)),
    "a billion layers": (change_json("config.json", num_hidden_layers=10**9), ("num_hidden_layers is 1000000000",)),
    "layers that are not there": (
        change_json("config.json", num_hidden_layers=500),
        ("model.layers.3.", "missing"),
    ),
    "more layers than llama.cpp takes": (
        change_json("config.json", num_hidden_layers=513),
        ("num_hidden_layers is 513",),
    ),
    "a negative number of layers": (change_json("config.json", num_hidden_layers=-3), ("num_hidden_layers is -3",)),
    "layers as a float": (change_json("config.json", num_hidden_layers=3.0), ("num_hidden_layers is 3.0",)),
    "layers as a text": (change_json("config.json", num_hidden_layers="3"), ("num_hidden_layers is '3'",)),
    "a vast hidden size": (change_json("config.json", hidden_size=1 << 30), ("hidden_size is 1073741824",)),
    "a vast vocabulary": (change_json("config.json", vocab_size=1 << 30), ("vocab_size is 1073741824",)),
    "no hidden size": (change_json("config.json", hidden_size=...), ("hidden_size is missing",)),
    "vision as a list": (change_json("config.json", vision_config=[1]), ("vision_config is [1]",)),
    "a vast patch": (change_json("config.json", vision_config__patch_size=1 << 20), ("patch_size is 1048576",)),
    "a vast merge": (change_json("config.json", vision_config__spatial_merge_size=16), ("patch_size is 14", "224")),
    "an epsilon beyond all": (change_json("config.json", rms_norm_eps=1e300), ("rms_norm_eps is 1e+300",)),
    "a nested list as a number": (
        write(
            "config.json",
            '{"architectures": ["Qwen2_5_VLForConditionalGeneration"], "num_hidden_layers": '
            + "[" * 900
            + "]" * 900
            + "}",
        ),
        ("num_hidden_layers is [[",),
    ),
    "processor is a pipe": (pipe("preprocessor_config.json"), ("preprocessor_config.json", "no regular file")),
    "processor is a link out": (link_out("preprocessor_config.json"), ("preprocessor_config.json", "link to")),
    "processor without a mean": (change_json("preprocessor_config.json", image_mean=...), ("image_mean is missing",)),
    "processor with a text": (change_json("preprocessor_config.json", max_pixels="many"), ("max_pixels is 'many'",)),
    "processor with vast pixels": (
        change_json("preprocessor_config.json", min_pixels=1 << 40, max_pixels=1 << 40),
        ("min_pixels is 1099511627776",),
    ),
    "processor with a vast scale": (change_json("preprocessor_config.json", image_std=[1e300] * 3), ("image_std is",)),
    "processor with a tiny scale": (change_json("preprocessor_config.json", image_std=[1e-300] * 3), ("image_std is",)),
    "processor is a list": (write("preprocessor_config.json", "[]"), ("preprocessor_config.json", "no JSON object")),
}
BAD_TOKENIZERS: Cases = {
    "tokenizer is a pipe": (pipe("tokenizer.json"), ("tokenizer.json",)),
    "tokenizer is a link out": (link_out("tokenizer.json"), ("tokenizer.json", "link to", "outside")),
    "tokenizer of a gigabyte": (sparse("tokenizer.json", 1 << 30), ("tokenizer.json", "1,073,741,824 bytes")),
    "tokenizer cut": (lambda folder: os.truncate(folder / "tokenizer.json", 3000), ("tokenizer.json", "no valid JSON")),
    "tokenizer too deep": (write("tokenizer.json", DEEP), ("tokenizer.json",)),
    "tokenizer of another model": (
        change_json("tokenizer.json", model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}),
        ("no BPE",),
    ),
    "tokenizer without merges": (
        lambda folder: [
            change_json("tokenizer.json", model__merges=[])(folder),
            (folder / "merges.txt").unlink(),
        ],
        ("tokenizer", "no merges"),
    ),
    "tokenizer with merges of nothing": (
        change_json("tokenizer.json", model__merges=[["zz", "yy"]]),
        ("tokenizer.json",),
    ),
    "tokenizer larger than the vocabulary": (
        more_tokens,
        ("token 519", "vocab_size is 512"),
    ),
    "two tokens with one id": (duplicate_ids, ("two tokens with the id",)),
    "a token that shifts the special ones": (
        change_json("tokenizer.json", model__vocab__quite=70_000),
        ("tokenizer.json says that <|endoftext|> is token 480",),
    ),
    "negative id": (change_json("tokenizer.json", model__vocab__quite=-1), ("tokenizer.json",)),
    "no vocabulary": (change_json("tokenizer.json", model__vocab={}, model__merges=[]), ("tokenizer.json says that",)),
    "a pattern that never ends": (
        change_json("tokenizer.json", pre_tokenizer__pretokenizers__0__pattern={"Regex": "(a+)+$"}),
        ("split texts",),
    ),
    "a second pattern": (
        change_json(
            "tokenizer.json",
            pre_tokenizer__pretokenizers__1={
                "type": "Split",
                "pattern": {"Regex": "(x+x+)+y"},
                "behavior": "Isolated",
                "invert": False,
            },
        ),
        ("split texts",),
    ),
    "a pattern before all": (
        change_json("tokenizer.json", normalizer={"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": "z"}),
        ("normalizer", "pattern"),
    ),
    "tokenizer_config a list": (write("tokenizer_config.json", "[]"), ("tokenizer_config.json", "no JSON object")),
    "tokenizer_config is a device": (device("tokenizer_config.json"), ("tokenizer_config.json", "link to /dev/zero")),
    "negative special token": (change_json("config.json", eos_token_id=-7), ("tokenizer files", "-7")),
    "vast special token": (
        lambda folder: [
            change_json("config.json", eos_token_id=1 << 70)(folder),
            change_json("tokenizer_config.json", eos_token=None)(folder),
        ],
        ("GGUF cannot hold",),
    ),
    "a temperature that is a list": (change_json("generation_config.json", temperature=[1]), ("GGUF cannot hold",)),
    "a top_k beyond 32 bits": (change_json("generation_config.json", top_k=1 << 40), ("GGUF cannot hold",)),
}
BAD_TEXTS: Cases = {
    "a card of aliases": (aliases, ("README.md", "aliases")),
    "a card within itself": (write("README.md", "---\ntags: &a [x, *a]\n---\n"), ("README.md", "aliases")),
    "a card that builds objects": (
        write("README.md", "---\nname: !!python/object/apply:os.system [exit]\n---\n"),
        ("model card",),
    ),
    "a huge card": (sparse("README.md", 1 << 30, b"---\n"), ("README.md", "1,073,741,824 bytes")),
    "a huge head": (write("README.md", "---\n" + "tags: [a]\n" * 50_000 + "---\n"), ("README.md", "characters")),
    "a card in no encoding": (write("README.md", b"---\nname: \xff\xfe\n---\n"), ("README.md", "UTF-8")),
    "a name that is a number": (
        write("README.md", CARD.replace("license: apache-2.0", "name: [1, 2]")),
        ("GGUF cannot",),
    ),
    "an endless template": (
        write("chat_template.jinja", "{% for i in range(90000) %}" * 4 + "{% endfor %}" * 4),
        ("chat template", "seconds"),
    ),
    "a template of ten billion letters": (
        write("chat_template.jinja", "{{ 'a' * 10**10 }}"),
        ("chat template", "memory"),
    ),
    "a template that grows": (
        write(
            "chat_template.jinja",
            "{% set n = namespace(a='x') %}{% for i in range(50) %}{% set n.a = n.a + n.a %}{% endfor %}",
        ),
        ("chat template", "it takes"),
    ),
    "a template that looks for files": (
        write("chat_template.jinja", "{{ cycler.__init__.__globals__.os.popen('id').read() }}"),
        ("chat template", "unsafe"),
    ),
    "a template that includes a file": (
        write("chat_template.jinja", "{% include '/etc/passwd' %}"),
        ("chat template",),
    ),
    "a template without end": (write("chat_template.jinja", "{% for m in messages %}"), ("chat template",)),
    "a template that is no text": (write("chat_template.jinja", b"\xff\xfe"), ("chat_template.jinja",)),
    "a template of two megabytes": (write("chat_template.jinja", "x" * 2_100_000), ("chat_template.jinja", "bytes")),
    "no template": (
        lambda folder: [
            (folder / "chat_template.json").unlink(),
            change_json("tokenizer_config.json", chat_template=...)(folder),
        ],
        ("no chat template",),
    ),
}
BAD_CHECKPOINTS = BAD_WEIGHTS | BAD_CONFIGS | BAD_TOKENIZERS | BAD_TEXTS


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_one_clear_line(model: Path, tmp_path: Path, capfd, monkeypatch, case: str) -> None:
    monkeypatch.setattr("luq_gguf.chat.SECONDS", 2.0)
    breaking, words = BAD_CHECKPOINTS[case]
    breaking(model)
    assert_refused(capfd, ("convert", model, "--out", tmp_path / "out", *FEW), *words)
    assert_nothing_made(tmp_path / "out")
