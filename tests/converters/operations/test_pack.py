import io

import pytest

import vbfmt
from tests.converters.test_peft import topk_form, write_folder
from vbfmt.errors import ConfigError, StorageError, TargetError


@pytest.fixture
def checkpoint(tmp_path):
    return write_folder(tmp_path / "topk", topk_form())


def test_a_stream_gets_the_same_bytes_as_a_file(tmp_path, checkpoint):
    stream = io.BytesIO()
    to_stream = vbfmt.pack(checkpoint, stream)
    to_file = vbfmt.pack(checkpoint, tmp_path / "x.vblora")
    assert stream.getvalue() == (tmp_path / "x.vblora").read_bytes()
    assert (to_stream.digest, to_stream.size) == (to_file.digest, to_file.size)


class Slow(io.RawIOBase):
    """A stream without a buffer, which writes at most 100 bytes at a time."""

    def __init__(self, limit: int | None = None) -> None:
        self.written = bytearray()
        self.limit = limit

    def writable(self):
        return True

    def write(self, data):
        if self.limit is not None and len(self.written) >= self.limit:
            return None  # it would block
        self.written += bytes(data[:100])
        return min(len(data), 100)


def test_a_stream_without_a_buffer_gets_all_bytes(tmp_path, checkpoint):
    stream = Slow()
    done = vbfmt.pack(checkpoint, stream)
    vbfmt.pack(checkpoint, tmp_path / "x.vblora")
    assert bytes(stream.written) == (tmp_path / "x.vblora").read_bytes()
    assert done.size == len(stream.written)


def test_a_stream_that_would_block_is_an_error(checkpoint):
    with pytest.raises(BlockingIOError):
        vbfmt.pack(checkpoint, Slow(limit=200))


def test_a_base_that_is_not_needed_is_refused(tmp_path, checkpoint):
    with pytest.raises(ConfigError, match="read without a base model: `base`: found PEFT VB-LoRA"):
        vbfmt.pack(checkpoint, tmp_path / "x.vblora", base=tmp_path)
    assert not (tmp_path / "x.vblora").exists()


def test_a_card_needs_a_folder(checkpoint):
    stream = io.BytesIO()
    with pytest.raises(ConfigError, match="`card` needs a path"):
        vbfmt.pack(checkpoint, stream, card=True)
    assert stream.getvalue() == b""


def test_a_card_is_written_next_to_the_file_and_has_its_digest(tmp_path, checkpoint):
    pytest.importorskip("huggingface_hub")
    done = vbfmt.pack(checkpoint, tmp_path / "new" / "x.vblora", card=True)
    assert done.digest in (tmp_path / "new" / "README.md").read_text()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_card_replaces_no_existing_file(tmp_path, checkpoint, overwrite):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(TargetError, match="exists already"):
        vbfmt.pack(checkpoint, tmp_path / "x.vblora", card=True, overwrite=overwrite)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not (tmp_path / "x.vblora").exists()


def test_folders_made_for_an_output_that_fails_are_removed(tmp_path, checkpoint, monkeypatch):
    def fail(*_, **__):
        raise StorageError("cannot write")

    monkeypatch.setattr("vbfmt.packed.write", fail)
    with pytest.raises(StorageError):
        vbfmt.pack(checkpoint, tmp_path / "new" / "deep" / "x.vblora")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, checkpoint, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.makedirs", fail)
    with pytest.raises(StorageError, match="cannot create a folder for.*(?i:no space)"):
        vbfmt.pack(checkpoint, tmp_path / "new" / "x.vblora")


def test_a_packed_file_is_recognized_by_its_first_bytes_not_its_name(tmp_path, checkpoint):
    vbfmt.pack(checkpoint, tmp_path / "x.vblora")
    (tmp_path / "x.vblora").rename(tmp_path / "adapter_model.bin")
    done = vbfmt.expand(tmp_path / "adapter_model.bin", tmp_path / "lora")
    assert (tmp_path / "lora" / "adapter_config.json").exists()
    assert done.digests == (vbfmt.verify(tmp_path / "adapter_model.bin").digest,)
