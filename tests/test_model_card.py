"""The model card, its plots, and the Modelfile: in the hub's form, escaped, runnable, and never over someone else's."""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment
from PIL import Image

from luq_gguf.artifacts import read_record
from luq_gguf.audit import audit_folder
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.families import find_family
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.job import SCORES, Settings, hub_source
from luq_gguf.manifest import Manifest
from luq_gguf.report import write_report
from luq_gguf.report.card import escape, head, make_card
from luq_gguf.report.chat_formats import AGAIN, ANSWER, FORMATS, QUESTION, ChatFormat, find_format
from luq_gguf.report.folder import read_finished
from luq_gguf.report.memory import cache_bytes, caches
from luq_gguf.report.redo import command_line
from luq_gguf.report.sealed import HASH, HTML, is_sealed, seal, write_sealed
from tests.exported import export_both
from tests.pico import build_pico
from tests.picos import FAMILIES, build_family
from tests.program import QUICK, Run, result_of, run_program
from tests.test_audit import admit, edit_json
from tests.test_report import HOSTILE, folder_of

KNOWN = {
    "qwen2.5-vl": "ChatML", "qwen2-vl": "ChatML", "qwen3-vl": "ChatML", "llava-1.5": "LLaVA 1.5", "gemma-3": "Gemma",
    "qwen2.5": "ChatML", "qwen3": "ChatML", "llama": "Llama 3",
}  # fmt: skip
BAD_HEAD = """---
license: other
license_name: "<script>alert(1)</script>\\n# x"
license_link: javascript:alert(1)
language: [en, "de\\n- x", zh-Hant]
model_name: "[click](javascript:alert(1)) | <img src=x> \\n## Injected"
base_model: evil/model
tags: ["a: b"]
---
# Pico
"""


def parts_of(card: str) -> tuple[dict[str, Any], str]:
    """The head, read as YAML, and the rest."""
    assert card.startswith("---\n")
    above, _, rest = card.removeprefix("---\n").partition("\n---\n")
    return yaml.safe_load(above), rest


def metadata_of(checkpoint: Path) -> dict[str, Any]:
    opened = Checkpoint.open(checkpoint)
    entries = find_family(opened.config, opened).text_metadata(opened, dtype="f16")
    return {key: value for key, value, *_ in entries}


def test_its_head_is_the_hubs_and_its_numbers_are_the_records(converted: Run) -> None:
    folder = folder_of(converted)
    fields, text = parts_of((folder / "README.md").read_text())
    assert fields["library_name"] == "gguf"
    assert fields["pipeline_tag"] == "image-text-to-text"
    assert "base_model" not in fields
    assert "`base_model` is not known" in text
    assert {"gguf", "luq"} <= set(fields["tags"])
    found = read_finished(folder)
    assert found.quality is not None
    for name in (found.model, found.mmproj):
        assert name is not None
        record = found.manifest.files[name]
        assert re.search(
            rf"^\| `{re.escape(name)}` \| .* \| {record.bytes:,} \| `{record.sha256}` \|$", text, re.MULTILINE
        )
    agreement = found.quality.all.figures["agreement"]
    assert f"{100 * agreement.value:.1f} % ({100 * agreement.low:.1f} % to {100 * agreement.high:.1f} %)" in text
    assert f"{found.quality.all.figures['divergence'].value:.4f}" in text
    for plot in re.findall(r"!\[.*?\]\((.*?)\)", text):
        with Image.open(folder / plot) as image:
            assert image.format == "PNG"
            assert image.width > 800


def test_a_checkpoints_card_gives_licence_and_names_but_no_markup(tmp_path: Path) -> None:
    checkpoint = build_pico(tmp_path / "models--Some-One--Pico-VL" / "snapshots" / "0123abcd")
    (checkpoint / "README.md").write_text(BAD_HEAD)
    out = tmp_path / "out"
    result_of(run_program("convert", checkpoint, "--out", out, "--low-layers", 1, *QUICK, "--no-eval", "--json"))
    fields, text = parts_of((out / "README.md").read_text())
    assert fields["base_model"] == "Some-One/Pico-VL"
    assert fields["base_model_relation"] == "quantized"
    assert fields["license"] == "other"
    assert fields["license_name"].startswith("<script>")  # a string of YAML, on one line
    assert "\n" not in fields["license_name"]
    assert "license_link" not in fields
    assert fields["language"] == ["en", "zh-Hant"]
    assert not re.search(r"<(script|img)", text)
    assert not re.search(r"(?<!\\)\]\(javascript", text)
    assert not re.search(r"^## Injected", text, re.MULTILINE)
    assert json.loads((out / "manifest.json").read_text())["source"] == "Some-One/Pico-VL@0123abcd"
    assert "luq-gguf convert Some-One/Pico-VL --out pico-vl" in text


def test_texts_are_escaped_for_markdown() -> None:
    assert escape("a|b\n# c [x](y) `z` <b> & *d* $e$ https://f") == (
        r"a\|b \# c \[x\](y) \`z\` &lt;b&gt; &amp; \*d\* \$e\$ https\://f"
    )
    assert escape("x" * 1000) == f"{'x' * 300} ..."


def test_hostile_records_do_not_leave_their_place(copy_of_converted: Path) -> None:
    source = "```\n# Injected\n---\nlicense: x"
    edit_json(copy_of_converted / "manifest.json", {"source": source, "versions": {f"{HOSTILE}\n# Injected": "1"}})
    found = read_finished(copy_of_converted)
    fields, text = parts_of(make_card(found, None, ()))
    assert fields["base_model"] == source
    assert fields.keys() <= {
        "base_model",
        "base_model_relation",
        "library_name",
        "pipeline_tag",
        "tags",
        "quantized_by",
    }
    assert not re.search(r"^# Injected", text, re.MULTILINE)
    assert "<script" not in text
    assert text.count("```") % 2 == 0


def test_a_licence_that_is_not_stated_is_asked_for(converted: Run) -> None:
    found = read_finished(folder_of(converted))
    assert "general.license" not in found.text.metadata
    assert "license" not in yaml.safe_load(head(found))
    assert "states no licence" in make_card(found, None, ())


@pytest.mark.parametrize("name", ["README.md", "Modelfile"])
def test_what_someone_else_wrote_stays(copy_of_converted: Path, name: str) -> None:
    path = copy_of_converted / name
    edited = path.read_text().replace("Pico", "My", 1)
    path.write_text(edited)
    assert [line.partition(" ")[0] for line in audit_folder(copy_of_converted)] == [name]
    done = run_program("report", copy_of_converted)
    assert done.returncode == 0, done.stderr
    assert path.read_text() == edited
    assert f"{path} was not written by this tool, or was edited since: it is left as it is" in done.stderr
    assert name not in read_record(copy_of_converted / "manifest.json", Manifest).files
    assert audit_folder(copy_of_converted) == []
    path.unlink()
    again = run_program("report", copy_of_converted)
    assert (again.returncode, again.stderr) == (0, "")
    assert path.exists()


def test_a_seal_breaks_with_any_letter(tmp_path: Path) -> None:
    for comment in (HTML, HASH):
        path = tmp_path / "file"
        notes: list[str] = []
        assert write_sealed(path, "one\ntwo", comment, notes) == path
        assert is_sealed(path, comment)
        assert write_sealed(path, "three", comment, notes) == path
        path.write_text(path.read_text().replace("three", "tree"))
        assert not is_sealed(path, comment)
        assert write_sealed(path, "four", comment, notes) is None
        assert len(notes) == 1
        path.write_bytes(b"\xff")
        assert not is_sealed(path, comment)
        path.write_text(seal("", comment))
        assert write_sealed(path, None, comment, notes) is None
        assert not path.exists()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert write_sealed(tmp_path / "link", "x", HASH, notes) is None


@pytest.mark.parametrize(("least", "said"), [(64, True), (8, False), (None, False), (1024, False)])
def test_commands_make_small_pictures_as_large_as_they_were(
    copy_of_converted: Path, least: int | None, said: bool
) -> None:
    """1,024 is the most, too: then every picture has the same size."""
    edit_json(copy_of_converted / SCORES, {"least_image_tokens": least, "image_tokens": 1024})
    admit(copy_of_converted, SCORES)
    write_report(copy_of_converted)
    option = f" --image-min-tokens {least}"
    for document in ("README.md", "report.html"):
        text = (copy_of_converted / document).read_text()
        assert text.count(option) == 2 * said
        assert text.count("--image-min-tokens") == 2 * said


def test_the_modelfile_names_both_files_and_the_template(converted: Run) -> None:
    folder = folder_of(converted)
    lines = (folder / "Modelfile").read_text().splitlines()
    named = [line.removeprefix("FROM ./") for line in lines if line.startswith("FROM")]
    assert named == [Path(result_of(converted)[part]).name for part in ("model", "mmproj")]
    assert [line for line in lines if line.startswith("PARAMETER")] == ['PARAMETER stop "<|im_end|>"']
    assert 'TEMPLATE """{{ with .System }}<|im_start|>system' in lines


@pytest.mark.parametrize("family", FAMILIES)
def test_the_chat_format_of_every_family_is_found_by_trial(family: str, tmp_path: Path) -> None:
    metadata = metadata_of(build_family(tmp_path, family))
    found = find_format(metadata)
    assert (found.name if found else None) == KNOWN[family]
    template = metadata["tokenizer.chat_template"]
    assert find_format(metadata | {"tokenizer.chat_template": f"{template}!"}) is None


@pytest.mark.parametrize("template", [None, 7, "", "{{", "{% for x in range(10**9) %}{{ x }}{% endfor %}"])
def test_a_template_that_is_none_or_harms_is_not_known(template: object) -> None:
    assert find_format({"tokenizer.chat_template": template}) is None


def test_a_system_message_that_would_break_the_modelfile_is_not_taken() -> None:
    evil = '<|im_start|>system\nx"""\nFROM /etc/passwd\n"""<|im_end|>\n'
    turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[0].text }}<|im_end|>\n{% endfor %}"
    opening = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    assert find_format({"tokenizer.chat_template": evil + turns + opening}) is None
    kind = evil.replace('x"""\nFROM /etc/passwd\n"""', "Be kind.")
    found = find_format({"tokenizer.chat_template": kind + turns + opening})
    assert found is not None
    assert found.system == "Be kind."


WORDS = {
    "with .System": "{% if System %}", "$system := .System": "{% set kept = namespace(system=System) %}",
    "with $system": "{% if kept.system %}", '$system = ""': '{% set kept.system = "" %}', ".": "{{ System }}",
    "range .Messages": "{% for message in Messages %}", ".Content": "{{ message.Content }}", "end": "",
    'if eq .Role "user"': '{% if message.Role == "user" %}',
    'else if eq .Role "assistant"': '{% elif message.Role == "assistant" %}',
}  # fmt: skip


def as_jinja(go: str) -> str:
    """A template in Go's syntax, of these words only, in Jinja's."""
    made, open_blocks = "", []
    for number, part in enumerate(re.split(r"\{\{ (.*?) \}\}", go)):
        if number % 2 == 0:
            made += part
            continue
        made += WORDS[part] if part != "end" else f"{{% end{open_blocks.pop()} %}}"
        if part.startswith(("with", "range", "if")):
            open_blocks.append("for" if part.startswith("range") else "if")
    assert not open_blocks
    return made


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("system", ["", "Be kind."])
def test_the_go_template_gives_the_formats_prompts(form: ChatFormat, system: str) -> None:
    chat = [{"Role": "user", "Content": QUESTION}, {"Role": "assistant", "Content": ANSWER}]
    chat = [*([{"Role": "system", "Content": system}] if system else []), *chat, {"Role": "user", "Content": AGAIN}]
    template = Environment(keep_trailing_newline=True).from_string(as_jinja(form.go_template()))
    given = template.render(System=system, Messages=chat)
    plain = form.prompt(((QUESTION, ANSWER),), AGAIN)
    if not system:
        assert given == plain
    elif form.system_in_turn:
        assert given == plain.replace(form.user_before, f"{form.user_before}{system}{form.system_after}", 1)
    else:
        assert given == f"{form.system_before}{system}{form.system_after}{plain}"


def test_an_unknown_template_is_said_and_left_out(copy_of_converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luq_gguf.report.chat_formats.FORMATS", ())
    made = write_report(copy_of_converted)
    assert made.modelfile is not None
    assert made.card is not None
    assert 'TEMPLATE "' not in made.modelfile.read_text()
    assert "not known to the tool" in made.card.read_text()


def test_the_python_lines_of_the_card_run(converted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(converted)
    lines = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert lines is not None
    photo = tmp_path / "photo.png"
    Image.effect_noise((112, 112), 40).convert("RGB").save(photo)
    monkeypatch.chdir(folder)
    code = (
        lines[1].replace("file:///path/to/photo.jpg", photo.as_uri()).replace('")\nllama', '", verbose=False)\nllama')
    )
    code = code.replace("n_ctx=4096", "n_ctx=512, verbose=False").replace("messages=", "max_tokens=4, messages=")
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["answer"]["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("family", ["qwen2.5-vl", "gemma-3"])
def test_the_cache_is_what_llama_cpp_makes(family: str, tmp_path: Path) -> None:
    import llama_cpp

    text = export_both(build_family(tmp_path / "model", family), tmp_path / "out")[0]
    metadata = GGUFFile.open(text).metadata
    lines: list[str] = []
    callback = llama_cpp.llama_log_callback(lambda _level, said, _data: lines.append(said.decode()))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        model = llama_cpp.llama_model_load_from_file(str(text).encode(), llama_cpp.llama_model_default_params())
        for context in (512, 1000, 4096):
            parameters = llama_cpp.llama_context_default_params()
            parameters.n_ctx, parameters.swa_full = context, False
            lines.clear()
            made = llama_cpp.llama_init_from_model(model, parameters)
            sizes = re.findall(r"KV buffer size = +([\d.]+) MiB", "".join(lines))
            assert sizes
            assert sum(map(float, sizes)) == pytest.approx((cache_bytes(metadata, context) or 0) / 2**20, abs=0.02)
            llama_cpp.llama_free(made)
        llama_cpp.llama_model_free(model)
    finally:
        from llama_cpp._logger import llama_log_callback

        llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


def test_contexts_beyond_the_models_are_not_shown() -> None:
    sizes = {"block_count": 2, "attention.head_count": 4, "attention.head_count_kv": 2, "embedding_length": 256}
    metadata = {"general.architecture": "x"} | {f"x.{name}": value for name, value in sizes.items()}
    assert caches(metadata) == []
    found = caches(metadata | {"x.context_length": 2048})
    assert [(cache.context, cache.bytes, cache.whole) for cache in found] == [(2048, 2 * 2 * 128 * 2 * 2048, True)]
    both = caches(metadata | {"x.context_length": 40960})
    assert [(cache.context, cache.whole) for cache in both] == [(4096, False), (32768, False)]
    assert caches(metadata | {"x.context_length": 4096, "x.block_count": 10**9}) == []


def test_the_command_makes_the_same_settings(converted: Run, tmp_path: Path) -> None:
    manifest = read_record(folder_of(converted) / "manifest.json", Manifest)
    assert command_line(manifest) == (
        "luq-gguf convert Pico-VL-Instruct --out pico-vl-instruct --low-layers 1 --low-type Q2_K --samples 10 "
        "--calib shapes"
    )
    chosen = {
        "bundle": True, "evaluate": False, "max_size": 5, "max_drop": 0.1, "alpha": 0.25, "skip_bad": True,
        "imatrix": "0a:x.gguf 0b:y.dat", "calib": "/home/me/my rows.jsonl", "mmproj_type": "bf16", "order": "depth",
    }  # fmt: skip
    plain = {name: value for name, value in vars(Settings()).items() if name != "imatrix"}
    line = command_line(manifest.model_copy(update={"settings": plain | chosen, "source": "a/b@c"}))
    assert line == (
        "luq-gguf convert a/b --out pico-vl-instruct --max-size 5 --max-drop 0.1 --order depth --skip-bad --alpha 0.25 "
        "--mmproj-type bf16 --bundle --calib 'my rows.jsonl' --imatrix x.gguf --imatrix y.dat --no-eval"
    )


def test_a_hub_id_is_read_from_the_cache_folder(tmp_path: Path) -> None:
    assert hub_source(tmp_path / "models--Qwen--Qwen2.5-VL-7B-Instruct" / "snapshots" / "ab12") == (
        "Qwen/Qwen2.5-VL-7B-Instruct@ab12"
    )
    assert hub_source(tmp_path / "Qwen2.5-VL") is None
