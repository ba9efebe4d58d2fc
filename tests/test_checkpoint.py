import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask.checkpoint import Checkpoint, load_checkpoint, replace_folder, save_checkpoint
from unmask.data.tokenizers import Tokenizer
from unmask.denoiser import Denoiser
from unmask.denoisers.autoregressive import AutoregressiveDenoiser
from unmask.denoisers.masked import MaskedDenoiser
from unmask.errors import UserError
from unmask.nn.transformer import Transformer, TransformerConfig
from unmask.processes.masked import Masked
from unmask.schedules.cosine import Cosine


def make(seed: int = 0, kind: str = "masked", **shape: Any) -> Checkpoint:
    torch.manual_seed(seed)
    tokenizer = Tokenizer.characters(["abcdef"])
    v, mask = tokenizer.vocab_size, tokenizer.mask_id
    fields = {"vocab_size": v, "dim": 8, "num_layers": 1, "num_heads": 2, "max_length": 8} | shape
    net = Transformer(TransformerConfig(**fields))
    denoiser: Denoiser
    if kind == "masked":
        denoiser = MaskedDenoiser(net, vocab_size=v, mask_id=mask)
    else:
        denoiser = AutoregressiveDenoiser(net, vocab_size=v, bos_id=tokenizer.eos_id, forbidden=mask)
    process = Masked(vocab_size=v, mask_id=mask, schedule=Cosine())
    return Checkpoint(process=process, denoiser=denoiser, tokenizer=tokenizer, card={"seed": seed, "note": "é"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", make())
    return tmp_path / "model"


def scores(checkpoint: Checkpoint) -> torch.Tensor:
    x = torch.arange(6)[None]
    noisy = x.where(x % 2 == 0, checkpoint.process.mask_id)  # type: ignore[attr-defined]
    with torch.no_grad():
        law: Any = checkpoint.denoiser.eval()(noisy, torch.full((1,), 0.5, dtype=torch.float64))
        return law.token_log_prob(x)


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")


# -- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["masked", "autoregressive"])
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(tmp_path: Path, kind: str, tied: bool) -> None:
    saved = make(kind=kind, causal=kind != "masked", tie_embeddings=tied)
    save_checkpoint(tmp_path / "a" / "b", saved)
    loaded = load_checkpoint(tmp_path / "a" / "b")
    assert torch.equal(scores(loaded), scores(saved))
    assert (loaded.process, loaded.card) == (saved.process, saved.card)
    assert type(loaded.denoiser) is type(saved.denoiser)
    assert loaded.denoiser.config() == saved.denoiser.config()
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode("face") == saved.tokenizer.encode("face")  # type: ignore[union-attr]
    assert not loaded.denoiser.training
    net: Any = loaded.denoiser.net
    assert (net.head.weight is net.embedding.weight) == tied


def test_files_and_config_layout(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["format_version"] == 1
    assert config["process"]["schedule"] == {"class": "unmask.schedules.cosine.Cosine"}
    assert config["denoiser"]["class"] == "unmask.denoisers.masked.MaskedDenoiser"
    assert config["network"]["dim"] == 8


def test_tied_weights_are_stored_once(folder: Path, tmp_path: Path) -> None:
    assert [n for n in load_file(folder / "model.safetensors") if "head" in n or "embedding" in n] == [
        "net.embedding.weight"
    ]
    save_checkpoint(tmp_path / "free", make(tie_embeddings=False))
    assert "net.head.weight" in load_file(tmp_path / "free" / "model.safetensors")


def test_half_precision_storage_comes_back_as_float32(tmp_path: Path) -> None:
    saved = make()
    save_checkpoint(tmp_path / "half", saved, dtype=torch.float16)
    assert {x.dtype for x in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float16}
    loaded = load_checkpoint(tmp_path / "half")
    assert {p.dtype for p in loaded.denoiser.parameters()} == {torch.float32}
    for met, wanted in zip(loaded.denoiser.parameters(), saved.denoiser.parameters(), strict=True):
        assert torch.equal(met, wanted.half().float())


def test_overflow_of_the_storage_type_is_refused(tmp_path: Path) -> None:
    saved = make()
    with torch.no_grad():
        next(saved.denoiser.parameters())[0, 0] = 1e6
    with pytest.raises(UserError, match=r"net.embedding.weight overflows torch.float16.*bfloat16"):
        save_checkpoint(tmp_path / "half", saved, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_data_that_are_not_text_need_no_tokenizer(tmp_path: Path) -> None:
    saved = make()
    plain = Checkpoint(process=saved.process, denoiser=saved.denoiser)
    save_checkpoint(tmp_path / "plain", plain)
    assert load_checkpoint(tmp_path / "plain").tokenizer is None


class OwnDenoiser(MaskedDenoiser):
    """A user's own part."""


def test_own_classes_load_only_when_handed_over(tmp_path: Path) -> None:
    saved = make()
    own = OwnDenoiser(saved.denoiser.net, **saved.denoiser.config())  # type: ignore[arg-type]
    save_checkpoint(tmp_path / "own", Checkpoint(process=saved.process, denoiser=own))
    with pytest.raises(UserError, match=r"OwnDenoiser.*extra="):
        load_checkpoint(tmp_path / "own")
    extra = {f"{__name__}.OwnDenoiser": OwnDenoiser}
    assert type(load_checkpoint(tmp_path / "own", extra=extra).denoiser) is OwnDenoiser


# -- atomic writes ---------------------------------------------------------------------------------------------------


def seed_of(folder: Path) -> int:
    """Which checkpoint a reader finds; raises unless weights and config fit each other and the seed."""
    loaded = load_checkpoint(folder)
    seed: int = loaded.card["seed"]
    assert torch.equal(scores(loaded), scores(make(seed)))
    return seed


def no_space(*args: Any, **kwargs: Any) -> None:
    """Half a file, then a full disk."""
    for path in args:
        if isinstance(path, Path):
            (path / "part" if path.is_dir() else path).write_bytes(b"\x10")
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "broken",
    ["safetensors.torch.save_file", "unmask.data.tokenizers.Tokenizer.save", "os.fsync", "pathlib.Path.write_text"],
)
@pytest.mark.parametrize("earlier", [True, False])
def test_full_disk_leaves_what_was_there(
    tmp_path: Path, broken: str, earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    if earlier:
        save_checkpoint(folder, make(1))
    with monkeypatch.context() as patch:
        patch.setattr(broken, no_space)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(folder, make(2))
    assert [p.name for p in tmp_path.iterdir()] == (["model"] if earlier else [])
    if earlier:
        assert seed_of(folder) == 1


def test_failing_rename_brings_the_previous_one_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def second_fails(a: Path, b: Path) -> None:
        if b == folder and a.suffix == ".tmp":
            raise OSError(errno.EIO, "Input/output error")
        replace(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", second_fails)
        with pytest.raises(OSError, match="Input/output"):
            save_checkpoint(folder, make(2))
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    assert seed_of(folder) == 0


def test_everything_is_on_the_disk_before_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: set[int] = set()
    fsync, replace = os.fsync, os.replace

    def note(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def check(a: Path, b: Path) -> None:
        if b == tmp_path / "model":
            assert {p.stat().st_ino for p in (a, *a.rglob("*"))} <= flushed
            flushed.clear()
        replace(a, b)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", check)
    save_checkpoint(tmp_path / "model", make())
    assert flushed == {tmp_path.stat().st_ino}  # and the rename itself after it


class Killed(BaseException):
    """Stands for the end of the process: no clean-up runs after it."""


@pytest.mark.parametrize("earlier", [True, False])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(
    tmp_path: Path, earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies before the k-th operation of the file system, for every k; then it saves again."""
    seen: list[int | None] = []
    for k in range(100):
        folder = tmp_path / str(k) / "model"
        if earlier:
            save_checkpoint(folder, make(1))
            (folder / "notes.txt").write_text("mine")
        with monkeypatch.context() as patch:
            finished = kill_at(k, lambda: save_checkpoint(folder, make(2)), patch)  # noqa: B023
        if earlier or folder.exists():
            seen.append(seed_of(folder))
        else:
            seen.append(None)
            with pytest.raises(UserError, match="no such folder"):
                load_checkpoint(folder)
        save_checkpoint(folder, make(3))
        assert seed_of(folder) == 3
        assert [p.name for p in folder.parent.iterdir()] == ["model"]
        assert not earlier or (folder / "notes.txt").read_text() == "mine"
        if finished:
            break
    assert finished
    assert set(seen) == {1 if earlier else None, 2}
    assert seen == sorted(seen, key=lambda seed: seed or 0)


def kill_at(k: int, action: Callable[[], None], patch: pytest.MonkeyPatch) -> bool:
    """Runs `action`, dying before its k-th operation; True if it has fewer."""
    left = [k]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if left[0] <= 0:
                raise Killed
            left[0] -= 1
            return real(*args, **kwargs)

        return call

    for name in ("replace", "fsync", "mkdir", "rmdir", "unlink", "open"):
        patch.setattr(os, name, counted(getattr(os, name)))
    for name in ("safetensors.torch.save_file", "pathlib.Path.write_text", "shutil.rmtree"):
        module, _, attribute = name.rpartition(".")
        owner = Path if module == "pathlib.Path" else __import__(module, fromlist=["x"])
        patch.setattr(owner, attribute, counted(getattr(owner, attribute)))
    try:
        action()
    except Killed:
        return False
    return True


def test_other_files_stay_and_the_old_training_state_goes(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    (folder / "logs").mkdir()
    (folder / "logs" / "a.txt").write_text("log")
    (folder / "training").mkdir()
    save_checkpoint(folder, make(1))
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "logs" / "a.txt").read_text() == "log"
    assert not (folder / "training").exists()


def test_training_state_can_be_part_of_the_same_write(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "model") as temporary:
        (temporary / "training").mkdir()
        (temporary / "training" / "step").write_text("7")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "training" / "step").read_text() == "7"


def test_foreign_folders_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="not a config written by unmask"):
        save_checkpoint(other, make())
    (other / "config.json").rename(other / "tokenizer.json")
    with pytest.raises(UserError, match="another model's files"):
        save_checkpoint(other, make())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name a folder"):
        save_checkpoint(tmp_path / "file", make())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="working directory"):
        save_checkpoint(".", make())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bert", "file"]


# -- bad input -------------------------------------------------------------------------------------------------------


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: there is no such folder; check the path, or name a Hub id"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("error", [ConnectionError("offline"), ValueError("bad id"), FileNotFoundError("no cache")])
def test_neither_a_folder_nor_on_the_hub(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    asked = []

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(UserError, match=rf"owner/name: there is no such folder here.*Hub.*{error}.*network"):
        load_checkpoint("owner/name")
    assert asked == [("owner/name", ["config.json", "model.safetensors", "tokenizer.json"])]


def test_hub_id_is_fetched_but_a_local_folder_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(folder))
    assert load_checkpoint("owner/name").card["seed"] == 0
    monkeypatch.chdir(folder.parent)
    save_checkpoint("owner/name", make(4))
    assert load_checkpoint("owner/name").card["seed"] == 4


@pytest.mark.parametrize("name", ["a/b/c", "../b", "/no/where", "a b/c", "name"])
def test_what_is_no_hub_id_asks_no_hub(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="no such folder"):
        load_checkpoint(name)


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with pytest.raises(UserError, match="it is a file; name the folder"):
        load_checkpoint(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing.*copy it again"):
        load_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model.safetensors: damaged or cut short .*copy it again"):
        load_checkpoint(folder)


def test_foreign_weights_name_the_first_differences(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["net.norm.weight"] = torch.ones(5)
    tensors["encoder.x"] = tensors.pop("net.embedding.weight")
    save_file(tensors, path)
    wanted = (
        r"another model than config.json.*net.norm.weight is \(5,\), wanted \(8,\); net.embedding.weight is missing; "
        r"encoder.x is unknown; take both files"
    )
    with pytest.raises(UserError, match=wanted):
        load_checkpoint(folder)
    save_file({f"x{i}": torch.ones(1) for i in range(9)}, path)
    with pytest.raises(UserError, match=r"and \d+ more; take both"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (2, r"format version 2, but this unmask reads up to 1; .*unmask 9\.9.*pip install --upgrade unmask"),
        (0, "format version 0 never existed"),
        ("1", "not a config written by unmask"),
        (None, "not a config written by unmask"),
    ],
)
def test_other_format_versions(folder: Path, version: object, message: str) -> None:
    edit(folder, format_version=version, unmask_version="9.9")
    with pytest.raises(UserError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", [b"", b'{"format_version": 1,', b"\xff\xfe{", b"[]", b"3"])
def test_bad_json(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    with pytest.raises(UserError, match=r"config.json: (not valid JSON|has no whole number)"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"process": None}, 'wanted an object with a key "class" naming a Process'),
        ({"process": {"class": "os.system"}}, "only classes inside `unmask`"),
        ({"network": {"class": "unmask.schedules.linear.Linear"}}, "is not a NetworkConfig"),
        ({"denoiser": 3}, '"denoiser" is 3'),
        ({"denoiser": {"class": "unmask.schedules.linear.Linear"}}, "is not a Denoiser"),
        (
            {"denoiser": {"class": "unmask.denoisers.masked.MaskedDenoiser", "x": 1}},
            "MaskedDenoiser refused its fields",
        ),
    ],
)
def test_bad_parts(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(UserError, match=message):
        load_checkpoint(folder)


def test_tokenizer_without_a_mask(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("[MASK]", "[NONE]"), encoding="utf-8")
    with pytest.raises(UserError, match=r"(?i)mask"):
        load_checkpoint(folder)


def test_tokenizer_of_another_size(folder: Path) -> None:
    Tokenizer.characters(["abc"]).save(folder)
    with pytest.raises(UserError, match=r"tokenizer has vocab_size=6, the Masked process vocab_size=9"):
        load_checkpoint(folder)


def test_tokenizer_mismatch_is_refused_before_saving(tmp_path: Path) -> None:
    saved = make()
    wrong = Checkpoint(process=saved.process, denoiser=saved.denoiser, tokenizer=Tokenizer.characters(["abc"]))
    with pytest.raises(UserError, match="save_checkpoint: the tokenizer has vocab_size=6"):
        save_checkpoint(tmp_path / "model", wrong)
    assert list(tmp_path.iterdir()) == []
