"""Models by their name on a hub (a server on 127.0.0.1): downloaded once, checked, resumed, and refused with one error."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load

from tests.support import small
from tests.support.fake_hub import COMMIT, Fake, Ran
from tests.support.small import written
from tinyllm.io import hub_cache
from tinyllm.model import lora
from tinyllm.model.config import LoRAConfig

pytest.importorskip("httpx2", reason="the extra hub is not installed")
pytest.importorskip("huggingface_hub", minversion="2")

NAME = "some-one/tiny.v1"
CACHE = Path("hf/hub/models--some-one--tiny.v1")
SNAPSHOT = CACHE / "snapshots" / COMMIT
JUNK = {
    "README.md": b"# card",
    "pytorch_model.bin": b"pickle",
    "modeling_tiny.py": b"print('never')",
    "onnx/model.onnx": b"onnx",
    "tiny.Q4_K_M.gguf": b"GGUF",
    "training_args.bin": b"pickle",
}
WEIGHTS = "model.safetensors"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """The files of a tiny model, as a repository holds them."""
    folder = small.saved(small.rough(), tmp_path / "made")
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    return found


@pytest.fixture
def chat(command: Callable[..., Ran]) -> Callable[..., Ran]:
    def run(name: str = NAME, **more: object) -> Ran:
        return command(
            "chat", "-p", "What is red?", "--json", "--set", "max_new_tokens=2", "--checkpoint", name, **more
        )

    return run


def requests(fake: Fake) -> list[str]:
    return [path.rpartition("/")[2] for path, _, _ in fake.asked]


def test_a_model_is_downloaded_once_and_its_origin_recorded(
    files: dict[str, bytes], serve: Callable, chat: Callable, command: Callable, tmp_path: Path
) -> None:
    fake = serve(files=files | JUNK, large={WEIGHTS, "pytorch_model.bin"})
    ran = chat(fake=fake)
    assert ran.result["checkpoint"] == (tmp_path / SNAPSHOT).relative_to(tmp_path).as_posix()
    size = sum(map(len, files.values()))
    assert f"using the network: {fake.address}, model {NAME} at main" in ran.err
    assert f"{len(files)} files, {size:,} bytes, to " in ran.err
    assert fake.asked[0][0] == f"/api/models/{NAME}/revision/main"
    assert all(path.startswith(f"/{NAME}/resolve/{COMMIT}/") for path, _, _ in fake.asked[1:])
    assert sorted(requests(fake)[1:]) == sorted(files)  # the allowed files, each once
    assert requests(fake)[-1] == WEIGHTS  # settings first
    assert {path.name: path.read_bytes() for path in (tmp_path / SNAPSHOT).iterdir()} == files
    assert (tmp_path / CACHE / "refs" / "main").read_text() == COMMIT

    hub = pytest.importorskip("huggingface_hub")  # other tools find it there, and nothing that they do not expect
    found = hub.try_to_load_from_cache(NAME, WEIGHTS, cache_dir=tmp_path / "hf/hub")
    assert found == str(tmp_path / SNAPSHOT / WEIGHTS)
    scanned = hub.scan_cache_dir(tmp_path / "hf/hub")
    assert ([str(w) for w in scanned.warnings], [repo.repo_id for repo in scanned.repos]) == ([], [NAME])

    asked = len(fake.asked)
    ran = chat(fake=fake)
    assert (ran.code, "using the network" in ran.err) == (0, False)
    assert chat(HF_HUB_OFFLINE="1").code == 0
    assert chat(f"{NAME}@{COMMIT}", HF_ENDPOINT="http://127.0.0.1:9").code == 0
    assert len(fake.asked) == asked

    rows = [{"prompt": "What is red?", "completion": "It is a colour."}] * 12
    data = str(written(tmp_path / "rows.jsonl", rows))
    sets = (f"data.train=[{data}]", f"data.val=[{data}]", "data.max_length=64", "train.steps=1", "train.batch_size=2")
    options = [word for text in (*sets, "train.micro_batch_size=2") for word in ("--set", text)]
    ran = command("sft", "--checkpoint", NAME, "--name", "mine", *options, fake=fake)
    assert ran.code == 0, ran.err
    parent = json.loads((tmp_path / "runs/sft/full/mine/run.json").read_text())["parent"]
    assert (parent["hub"]["repository"], parent["hub"]["revision"]) == (NAME, COMMIT)
    assert set(parent["hub"]["sha256"]) == set(files)
    assert parent["hub"]["sha256"][WEIGHTS] == hashlib.sha256(files[WEIGHTS]).hexdigest()
    ran = command("sft", "--lora", "--checkpoint", NAME, "--name", "mine", *options, fake=fake)
    assert ran.code == 0, ran.err
    adapter = tmp_path / "runs/sft/peft/lora/mine/checkpoints/ckpt_best"
    found = json.loads((adapter / "adapter_config.json").read_text())
    assert (found["base_model_name_or_path"], found["revision"]) == (NAME, COMMIT)  # not a path in this machine's cache
    shutil.copytree(adapter, tmp_path / "sent")
    (tmp_path / CACHE / "refs" / "main").write_text("0" * 40)  # main has moved on; the adapter's base is the commit
    assert chat(str(tmp_path / "sent"), HF_HUB_OFFLINE="1").code == 0
    ran = command("runs", "verify", "runs/sft/peft/lora/mine")
    assert ran.code == 0, ran.out
    assert len(fake.asked) == asked
    shutil.move(tmp_path / "hf", tmp_path / "moved")  # a cache that this machine does not look into
    there = "moved" / SNAPSHOT.relative_to("hf")
    ran = command("sft", "--lora", "--checkpoint", str(there), "--name", "there", *options, HF_HUB_OFFLINE="1")
    assert ran.code == 0, ran.err
    assert chat("runs/sft/peft/lora/there", HF_HUB_OFFLINE="1").code == 0


def test_the_cache_of_other_tools_is_used_and_completed(
    files: dict[str, bytes], serve: Callable, chat: Callable, tmp_path: Path
) -> None:
    """A snapshot as huggingface_hub leaves it, here without links, is used; one without a tokenizer is completed at its commit."""
    (tmp_path / SNAPSHOT).mkdir(parents=True)
    (tmp_path / CACHE / "refs").mkdir()
    (tmp_path / CACHE / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        (tmp_path / SNAPSHOT / name).write_bytes(content)
    fake = serve(files=files, large={WEIGHTS})
    assert chat(fake=fake).code == 0
    assert fake.asked == []
    (tmp_path / SNAPSHOT / "tokenizer.json").unlink()
    assert chat(fake=fake, HF_HUB_OFFLINE="1").code == 4
    assert chat(fake=fake).code == 0
    assert requests(fake) == [COMMIT, "tokenizer.json"]


def test_a_broken_download_is_resumed(files: dict[str, bytes], serve: Callable, chat: Callable, tmp_path: Path) -> None:
    fake = serve(files={WEIGHTS: files[WEIGHTS], **files}, large={WEIGHTS})
    fake.cuts = [10**9] * (len(files) - 1) + [1000, 0, 0, 0]
    ran = chat(fake=fake)
    assert (ran.code, "fix: run the same command again, it resumes from there" in ran.err) == (4, True), ran.err
    (part,) = (tmp_path / CACHE / "blobs").glob("*.part")
    assert part.read_bytes() == files[WEIGHTS][:1000]
    fake.asked.clear()
    ran = chat(fake=fake)
    assert ran.code == 0, ran.err
    assert fake.asked[-1][1] == "bytes=1000-"
    assert requests(fake) == [COMMIT, WEIGHTS]  # the commit of the first attempt
    assert not list((tmp_path / CACHE / "blobs").glob("*.part"))


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])  # known by sha256, and by git's sha1
def test_other_content_than_the_hubs_is_refused(
    name: str, files: dict[str, bytes], serve: Callable, chat: Callable, tmp_path: Path
) -> None:
    wrong = bytes([files[name][0] ^ 1]) + files[name][1:]
    fake = serve(files=files, large={WEIGHTS}, sent={name: wrong})
    ran = chat(fake=fake)
    assert (ran.code, f"{name}: size or checksum" in ran.err) == (3, True), ran.err
    assert not (tmp_path / SNAPSHOT / name).exists()
    fake.sent.clear()
    assert chat(fake=fake).code == 0
    blob = (tmp_path / SNAPSHOT / name).resolve()
    blob.write_bytes(wrong)  # damaged later, on this disk
    ran = chat(fake=fake)
    assert (ran.code, f"remove {blob}" in ran.err, "its checksum is not the hub's" in ran.err) == (3, True, True), (
        ran.err
    )
    blob.unlink()
    assert chat(fake=fake).code == 0


@pytest.mark.parametrize(
    ("settings", "exit_code", "words"),
    [
        (
            {"status": {"api": 404}},
            2,
            ["no run and no folder here", "look for the model at {address}/models?search=tiny.v1"],
        ),
        ({"status": {"api": 401}, "code": "RepoNotFound"}, 2, ["the hub has no such model", "set HF_TOKEN"]),
        (
            {"status": {"api": 404}, "code": "RevisionNotFound"},
            2,
            ["no such revision", "{address}/" + NAME + "/commits"],
        ),
        ({"status": {"config.json": 401}}, 2, ["requires a token"]),
        ({"status": {"config.json": 403}}, 2, ["accept them at {address}/" + NAME, "{address}/settings/tokens"]),
        ({"status": {"api": 503}}, 4, ["answer 503"]),
        ({"answer": b"<html>log in"}, 4, ["not a hub"]),
    ],
)
def test_refusals_of_the_hub(
    settings: dict,
    exit_code: int,
    words: list[str],
    files: dict[str, bytes],
    serve: Callable,
    chat: Callable,
    tmp_path: Path,
) -> None:
    fake = serve(files=files, large={WEIGHTS}, **settings)
    ran = chat(fake=fake)
    assert ran.code == exit_code, ran.err
    for word in words:
        assert word.format(address=fake.address) in ran.err
    assert [line.split(":")[0] for line in ran.err.splitlines()][-2:] == ["error", "fix"]
    assert not (tmp_path / SNAPSHOT / WEIGHTS).exists()


def test_without_a_network_and_offline(command: Callable, chat: Callable, tmp_path: Path) -> None:
    ran = chat(HF_ENDPOINT="https://no-such-host.invalid")
    assert (ran.code, "nor the cache, and no-such-host.invalid cannot be reached" in ran.err) == (4, True), ran.err
    ran = chat(HF_HUB_OFFLINE="1")
    assert (ran.code, "HF_HUB_OFFLINE is set" in ran.err, "using the network" in ran.err) == (4, True, False)
    assert "--checkpoint FOLDER" in ran.err


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["pytorch_model-00001-of-00002.bin", "config.json"],
            ["a pickle", "save_pretrained", "use tiny.v1-safetensors"],
        ),
        (["tiny.Q4_K_M.gguf"], ["only GGUF files", "the model that it was made from"]),
        (["flax_model.msgpack", "config.json"], ["no model.safetensors"]),
    ],
)
def test_a_repository_without_safetensors(names: list[str], words: list[str], serve: Callable, chat: Callable) -> None:
    fake = serve(files=dict.fromkeys(names, b"x"), large=set())
    ran = chat(fake=fake)
    assert ran.code == 2, ran.err
    assert all(word in ran.err for word in words), ran.err
    assert len(fake.asked) == 1  # nothing is downloaded


def test_parts_are_downloaded_where_there_is_no_single_file(
    files: dict[str, bytes], serve: Callable, chat: Callable, tmp_path: Path
) -> None:
    part, index = "model-00001-of-00001.safetensors", "model.safetensors.index.json"
    names = list(load(files[WEIGHTS]))
    parts = {part: files[WEIGHTS], index: json.dumps({"weight_map": dict.fromkeys(names, part)}).encode()}
    settings = {name: data for name, data in files.items() if name != WEIGHTS}
    fake = serve(repositories={"a/parts": settings | parts, "a/both": files | parts}, large={WEIGHTS, part})
    assert chat("a/parts", fake=fake).code == 0
    assert sorted(requests(fake)[1:]) == sorted(settings | parts)
    fake.asked.clear()
    assert chat("a/both", fake=fake).code == 0
    assert sorted(requests(fake)[1:]) == sorted(files)


def test_a_full_disk_is_found_before_the_download(
    files: dict[str, bytes], serve: Callable, chat: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tinyllm.stages.foreign import hub_models

    fake = serve(files=files, large={WEIGHTS})
    monkeypatch.setattr(hub_models, "free_bytes", lambda folder: 100_000_010)
    ran = chat(fake=fake)
    assert (ran.code, "MB of disk space free" in ran.err, "set HF_HOME" in ran.err) == (4, True, True), ran.err
    assert len(fake.asked) == 1
    assert not (tmp_path / SNAPSHOT).exists()


def test_what_is_on_this_machine_wins(
    files: dict[str, bytes], serve: Callable, chat: Callable, command: Callable, tmp_path: Path
) -> None:
    fake = serve(files=files, large={WEIGHTS})
    assert chat(fake=fake).code == 0
    asked = len(fake.asked)
    small.saved(small.rough(seed=1), tmp_path / NAME)
    ran = chat(fake=fake)
    assert (ran.result["checkpoint"], f"{NAME} is on this machine" in ran.err) == (NAME, True)
    assert chat(f"{NAME}@main", fake=fake).result["checkpoint"].endswith(COMMIT)
    for mistyped in ("some-one/tiny", "runs/tiny", "pretrain/tiny", "sft/tiny"):  # next to a folder, or below runs/
        ran = chat(mistyped, fake=fake)
        assert (ran.code, "there is no run or checkpoint" in ran.err) == (2, True), ran.err
    assert len(fake.asked) == asked


def test_a_plan_downloads_no_weights(
    files: dict[str, bytes], serve: Callable, command: Callable, tmp_path: Path
) -> None:
    fake = serve(files=files, large={WEIGHTS})
    found = command("sft", "--checkpoint", NAME, "--dry-run", "--json", fake=fake).result
    assert found["cost"]["parameters"] == small.rough().config.parameters()
    assert WEIGHTS not in requests(fake)


def test_an_unknown_type_costs_no_download_of_weights(files: dict[str, bytes], serve: Callable, chat: Callable) -> None:
    config = json.dumps(json.loads(files["config.json"]) | {"model_type": "mamba"}).encode()
    fake = serve(files=files | {"config.json": config}, large={WEIGHTS})
    ran = chat(fake=fake)
    assert (ran.code, "model_type 'mamba' cannot be loaded" in ran.err) == (2, True), ran.err
    assert WEIGHTS not in requests(fake)


def test_a_model_too_large_to_train_costs_no_download_of_its_weights(
    files: dict[str, bytes], serve: Callable, command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyllm.stages.planning import memory as memory_plan

    monkeypatch.setattr(memory_plan, "available_memory", lambda: 330_000_000)  # of the process alone
    fake = serve(files=files, large={WEIGHTS})
    ran = command("sft", "--checkpoint", NAME, "--device", "cpu", fake=fake)
    assert (ran.code, "optimizer state" in ran.err) == (4, True), ran.err
    assert WEIGHTS not in requests(fake)


@pytest.mark.slow
def test_processes_that_need_a_model_download_it_once(
    files: dict[str, bytes], serve: Callable, command: Callable, tmp_path: Path
) -> None:
    fake = serve(files=files, large={WEIGHTS}, delay=0.3)
    arguments = ["chat", "-p", "What is red?", "--set", "max_new_tokens=2", "--checkpoint", NAME]
    environment = {**os.environ, "HF_ENDPOINT": fake.address, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tinyllm", *arguments], env=environment, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=100)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert sorted(requests(fake)[1:]) == sorted(files)
    assert sum(f"waiting for another process, which downloads {NAME}" in text for text in said) == 1


def test_an_adapter_brings_its_base(
    files: dict[str, bytes], serve: Callable, chat: Callable, command: Callable, tmp_path: Path
) -> None:
    model = small.rough()
    lora.attach(model, LoRAConfig(r=2), seed=0)
    folder = tmp_path / "adapter"
    folder.mkdir()
    lora.save(model, LoRAConfig(r=2), folder, NAME)
    small.tokenizer().save(folder, model_max_length=96)
    adapter = {path.name: path.read_bytes() for path in folder.iterdir()}
    fake = serve(repositories={NAME: files, "else/where": adapter}, large={WEIGHTS})
    ran = chat(str(folder), fake=fake)  # a folder brings nothing, until the base is in the cache
    assert (ran.code, f"tinyllm verify {NAME}" in ran.err, fake.asked) == (3, True, []), ran.err
    plan = command("sft", "--checkpoint", "else/where", "--dry-run", "--json", fake=fake).result
    assert plan["values"]["train.micro_batch_size"]["origin"].startswith("fitted")  # the base is known, too
    assert WEIGHTS not in requests(fake)
    ran = chat(str(folder), fake=fake)
    assert (ran.code, "weights are not in the cache" in ran.err, f"tinyllm verify {NAME}" in ran.err) == (3, True, True)
    assert chat("else/where", fake=fake).code == 0
    listed = [path for path, _, _ in fake.of("/api/")]
    assert listed[:2] == [f"/api/models/{name}/revision/main" for name in ("else/where", NAME)]
    asked = len(fake.asked)
    for name in (str(folder), "else/where"):
        assert chat(name, fake=fake).code == 0
    assert len(fake.asked) == asked


def test_an_adapter_brings_its_base_at_the_commit_beside_it(
    files: dict[str, bytes], serve: Callable, chat: Callable, tmp_path: Path
) -> None:
    model = small.rough()
    lora.attach(model, LoRAConfig(r=2), seed=0)
    folder = tmp_path / "adapter"
    folder.mkdir()
    lora.save(model, LoRAConfig(r=2), folder, f"{NAME}@{COMMIT}")
    adapter = {path.name: path.read_bytes() for path in folder.iterdir()}
    fake = serve(repositories={NAME: files, "else/where": adapter})
    ran = chat("else/where", fake=fake)
    assert ran.code == 0, ran.err
    assert [path for path, _, _ in fake.of("/api/")][1] == f"/api/models/{NAME}/revision/{COMMIT}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a/b", ("a/b", "")),
        ("a/b@main", ("a/b", "main")),
        ("a/b@refs/pr/1", ("a/b", "refs/pr/1")),
        ("a", None),
        ("a/b/c", None),
        ("../b", None),
        ("a/..", None),
        ("a/b@../../x", None),
        ("/a/b", None),
        ("a--b/c", None),
        ("a/b@", None),
    ],
)
def test_names_of_a_hub(text: str, found: tuple[str, str] | None) -> None:
    name = hub_cache.parse(text)
    assert (name and (name.repository, name.revision)) == found


@pytest.mark.parametrize(
    ("base", "revision", "found"),
    [
        ("a/b", COMMIT, f"a/b@{COMMIT}"),
        ("a/b", "v1.0", "a/b@v1.0"),  # as PEFT reads it
        ("a/b", "main", "a/b"),
        ("a/b", None, "a/b"),
        ("a/b@dev", COMMIT, "a/b@dev"),
        ("/a/b", COMMIT, "/a/b"),
        ("runs/pretrain/x", COMMIT, "runs/pretrain/x"),
        ("a/b", "../x", "a/b"),
        ("a/b", 5, "a/b"),
        ("", COMMIT, None),
        (None, COMMIT, None),
    ],
)
def test_the_base_of_an_adapter_is_that_of_its_revision(base: object, revision: object, found: str | None) -> None:
    assert hub_cache.base_of({"base_model_name_or_path": base, "revision": revision}) == found
