"""Bundles: stock llama.cpp reads the text model, both parts come back as they were, damage is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luq_gguf.bundle import BundleParts, bundle, extract_mmproj, is_bundle, split_bundle, unbundle
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import ArtifactError, GGUFError
from luq_gguf.export import export_text, export_vision
from luq_gguf.families import find_family
from luq_gguf.gguf_file import GGUFFile


@pytest.fixture(scope="module")
def pair(tmp_path_factory, pico_checkpoint: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    checkpoint = Checkpoint.open(pico_checkpoint)
    family = find_family(checkpoint.config)
    text, mmproj = folder / "pico ü.gguf", folder / "mmproj-pico-F16.gguf"
    export_text(checkpoint, family, text)
    export_vision(checkpoint, family, mmproj)
    return text, mmproj


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("bundle") / "bundle.gguf"
    bundle(*pair, target)
    return target


def test_the_parts_come_back_as_they_were(pair, whole: Path, tmp_path: Path):
    out = unbundle(whole, tmp_path / "out")
    assert [path.name for path in out] == [path.name for path in pair]
    assert [path.read_bytes() for path in out] == [path.read_bytes() for path in pair]
    extract_mmproj(whole, tmp_path / "vision.gguf")
    assert (tmp_path / "vision.gguf").read_bytes() == pair[1].read_bytes()
    assert sorted(tmp_path.rglob("*.partial")) == []


def test_the_parts_lie_where_the_trailer_says(pair, whole: Path):
    parts, content = split_bundle(whole), whole.read_bytes()
    assert content[: parts.text_size] == pair[0].read_bytes()
    assert content[parts.mmproj_offset :][: parts.mmproj_size] == pair[1].read_bytes()
    assert parts.mmproj_offset % 4096 == 0


def test_readers_of_gguf_see_the_text_model(pair, whole: Path):
    ours, text = GGUFFile.open(whole), GGUFFile.open(pair[0])
    assert (ours.tensors, dict(ours.metadata)) == (text.tensors, dict(text.metadata))
    assert ours.data_end == text.size
    assert len(GGUFReader(whole).tensors) == len(text.tensors)


def test_stock_llama_cpp_answers_from_the_bundle(pair, whole: Path):
    import llama_cpp

    logits = []
    for path in (pair[0], whole):
        llama = llama_cpp.Llama(str(path), n_ctx=32, logits_all=True, verbose=False, n_threads=1)
        llama.eval(llama.tokenize(b"red circle"))
        logits.append(llama.scores[: llama.n_tokens].tobytes())
        llama.close()
    assert logits[0] == logits[1]


def test_the_same_parts_give_the_same_bundle(pair, whole: Path, tmp_path: Path):
    bundle(*pair, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == whole.read_bytes()


def test_what_is_a_bundle(pair, whole: Path, tmp_path: Path):
    assert is_bundle(whole)
    (tmp_path / "empty").touch()
    for path in (*pair, tmp_path / "empty", tmp_path / "missing", tmp_path):
        assert not is_bundle(path)
        with pytest.raises(ArtifactError, match=r"is no bundle, or was cut|cannot read"):
            split_bundle(path)


@pytest.mark.parametrize("part", [0, 1])
def test_edited_parts_are_noticed(pair, whole: Path, tmp_path: Path, part: int):
    content = bytearray(whole.read_bytes())
    parts = split_bundle(whole)
    content[(parts.text_size - 40, parts.mmproj_offset + 5000)[part]] ^= 1
    edited = tmp_path / "edited.gguf"
    edited.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"the bytes of {pair[part].name} have changed"):
        unbundle(edited, tmp_path / "out")
    assert not (tmp_path / "out" / pair[part].name).exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.integers(1, 10**6), st.binary(max_size=3))
def test_cut_bundles_are_noticed(whole: Path, tmp_path: Path, cut: int, added: bytes):
    content = whole.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[: max(0, len(content) - cut)] + added)
    with pytest.raises(ArtifactError):
        split_bundle(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.integers(0, 647), st.integers(1, 255))
def test_edited_trailers_are_noticed(whole: Path, tmp_path: Path, place: int, change: int):
    content = bytearray(whole.read_bytes())
    content[-1 - place] ^= change
    path = tmp_path / "edited.gguf"
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        split_bundle(path)


def test_bytes_taken_from_the_middle_are_noticed(whole: Path, tmp_path: Path):
    content = whole.read_bytes()
    path = tmp_path / "short.gguf"
    path.write_bytes(content[:5000] + content[5032:])
    with pytest.raises(ArtifactError, match="does not fit the file"):
        split_bundle(path)


@pytest.mark.parametrize("name", ["../evil.gguf", "/etc/evil", "..", "", "a/b", "a\0b"])
def test_names_in_a_trailer_stay_in_the_folder(whole: Path, tmp_path: Path, name: str):
    parts = split_bundle(whole)
    forged = BundleParts(**(vars(parts) | {"mmproj_name": name}))
    path = tmp_path / "forged.gguf"
    path.write_bytes(whole.read_bytes()[: -len(parts.encode())] + forged.encode())
    with pytest.raises(ArtifactError, match="cannot be the name"):
        unbundle(path, tmp_path / "out")
    assert list(tmp_path.rglob("*")) == [path]


def test_roles_are_checked(pair, whole: Path, tmp_path: Path):
    text, mmproj = pair
    target = tmp_path / "x.gguf"
    with pytest.raises(GGUFError, match=r"mmproj-pico-F16\.gguf is a vision part"):
        bundle(mmproj, text, target)
    with pytest.raises(GGUFError, match="is no vision part"):
        bundle(text, text, target)
    with pytest.raises(GGUFError, match="is a bundle already"):
        bundle(whole, mmproj, target)
    shutil.copy(text, tmp_path / mmproj.name)
    with pytest.raises(GGUFError, match="both parts are called"):
        bundle(tmp_path / mmproj.name, mmproj, target)
    (tmp_path / "text.txt").write_text("not a model")
    with pytest.raises(GGUFError, match="does not begin with GGUF"):
        bundle(tmp_path / "text.txt", mmproj, target)
    assert not target.exists()


def test_unpacking_never_overwrites_the_bundle(pair, tmp_path: Path):
    target = tmp_path / pair[0].name
    bundle(*pair, target)
    before = target.read_bytes()
    with pytest.raises(ArtifactError, match="would overwrite the bundle itself"):
        unbundle(target, tmp_path)
    assert target.read_bytes() == before
