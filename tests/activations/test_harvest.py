"""Rows are the model's own activations, lead back to their text, and survive every interruption."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from neurollm.activations import ActivationStore, Corpus, FeatureIndex, harvest, index_build
from neurollm.activations import tensorfile as tensorfile_module
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import sha256_file
from neurollm.models import Site, run_site, tokenize


def hashes(folder: Path) -> dict[str, str]:
    """Every file of a folder, hidden ones too."""
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


@pytest.fixture
def harvest_again(lm, corpus, site, tmp_path):
    """The harvest of `store`, into another folder."""
    return functools.partial(
        harvest, lm, corpus, site, tmp_path, tokens_per_shard=700, tokens_per_batch=256, dtype="float32", verbose=0
    )


def test_rows_are_the_forward_pass_of_each_context(lm, corpus, site, store):
    row = 0
    for _, text in corpus:
        tokens = tokenize(lm, [text], add_special_tokens=False)[0] if text else []
        for start in range(0, len(tokens), lm.context - 1):
            part = slice(start, start + lm.context - 1)
            ids = torch.tensor([[256, *tokens.ids[part]]])
            expected = run_site(lm, ids, None, site)[0, 1:][torch.from_numpy(~tokens.special[part])]
            got = store.rows(row, row + len(expected))
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
            row += len(expected)
    assert row == store.n_rows


def test_a_single_batch_is_bitwise_the_forward_pass(lm, site, tmp_path):
    store = harvest(lm, Corpus([("a", "exactly as computed")]), site, tmp_path / "s", dtype="float32", verbose=0)
    ids = torch.tensor([[256, *store.shard(0)["token_id"]]])
    assert torch.equal(store.rows(0, store.n_rows), run_site(lm, ids, None, site)[0, 1:])


def test_every_row_leads_to_its_token_and_text(lm, corpus, store):
    columns = store.columns(0, store.n_rows)
    tokenizer = lm.tokenizer.backend_tokenizer
    assert np.all(np.diff(columns["doc_id"]) >= 0)
    for row in range(0, store.n_rows, 37):
        context = store.context(row, words=3)
        text = dict(corpus.documents)[context.document]
        assert corpus.documents[columns["doc_id"][row]][0] == context.document
        assert context.before + context.token + context.after in text
        assert len(context.before.split()) <= 4 and len(context.after.split()) <= 4
        encoding = tokenizer.encode(text, add_special_tokens=False)
        assert encoding.ids[columns["position"][row]] == columns["token_id"][row]
        assert context.token == text[slice(*encoding.offsets[columns["position"][row]])]


def test_special_tokens_yield_no_rows(store):
    columns = store.columns(0, store.n_rows)
    assert not np.any(columns["token_id"] == 256)
    inside = columns["position"][columns["doc_id"] == 5]
    assert len(inside) == len("one  two") and set(np.diff(inside)) == {1, 2}  # its place is kept


def test_statistics_are_those_of_the_stored_rows(lm, corpus, site, tmp_path):
    store = harvest(lm, corpus, site, tmp_path / "s", tokens_per_shard=700, verbose=0)
    rows = store.rows(0, store.n_rows, torch.float64).numpy()
    np.testing.assert_allclose(store.mean, rows.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(store.mean_squared_norm, (rows**2).sum(1).mean(), rtol=1e-12)


def test_files_are_ordinary_safetensors(store):
    from safetensors.torch import load_file

    file = store.path / "shard-00001.safetensors"
    theirs, ours = load_file(file), store.shard(1)
    assert torch.equal(theirs["acts"], ours["acts"])
    assert torch.equal(theirs["token_id"], torch.from_numpy(ours["token_id"]))
    store.verify()


def test_a_finished_harvest_is_not_computed_again(lm, corpus, site, store, monkeypatch):
    monkeypatch.setattr("neurollm.activations.harvesting.iter_activations", lambda *a, **k: pytest.fail("computed"))
    monkeypatch.setattr("neurollm.activations.contexts.tokenize", lambda *a, **k: pytest.fail("tokenised"))
    again = harvest(
        lm, corpus, site, store.path, tokens_per_shard=700, tokens_per_batch=256, dtype="float32", verbose=0
    )
    assert again.sha256 == store.sha256


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"site": Site(2)}, "site: resid_post.1 there, resid_post.2 here"),
        ({"corpus": Corpus([("a", "other")])}, "corpus sha256"),
        ({"context": 16}, "context: 32 there, 16 here"),
        ({"dtype": "bfloat16"}, "dtype: float32 there, bfloat16 here"),
    ],
)
def test_another_plan_is_refused_and_nothing_changes(lm, corpus, site, store, change, names):
    before = hashes(store.path)
    arguments = {"corpus": corpus, "site": site, "tokens_per_shard": 700, "tokens_per_batch": 256, "dtype": "float32"}
    with pytest.raises(DataMismatch, match=names):
        harvest(lm, out=store.path, verbose=0, **(arguments | change))
    assert hashes(store.path) == before


def test_another_model_is_refused(tiny_module, corpus, site, store):
    other = tiny_module.tiny_lm(n_embd=32)
    with pytest.raises(DataMismatch, match="model fingerprint"):
        harvest(other, corpus, site, store.path, tokens_per_shard=700, tokens_per_batch=256, dtype="float32", verbose=0)


def test_damage_is_named_and_cured_by_running_again(lm, corpus, site, tmp_path):
    arguments = {"tokens_per_shard": 700, "verbose": 0}
    harvest(lm, corpus, site, tmp_path, **arguments)
    whole = hashes(tmp_path)
    shard = tmp_path / "shard-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DataMismatch, match=r"shard-00002.* truncated .*delete it and run harvest again to restore it"):
        ActivationStore(tmp_path)
    shard.unlink()
    with pytest.raises(DataMismatch, match=r"shard-00002\S* the file is missing"):
        ActivationStore(tmp_path)
    harvest(lm, corpus, site, tmp_path, **arguments)
    assert hashes(tmp_path) == whole
    changed = bytearray(shard.read_bytes())
    changed[-1] ^= 1
    shard.write_bytes(changed)
    with pytest.raises(DataMismatch, match=r"shard-00002.*sha256 differs"):
        ActivationStore(tmp_path).verify()


def test_arguments_and_folders_are_checked(lm, corpus, site, tmp_path):
    with pytest.raises(InvalidInput, match="takes 1 to 32 tokens"):
        harvest(lm, corpus, site, tmp_path / "a", context=33)
    with pytest.raises(InvalidInput, match="no room for text"):
        harvest(lm, corpus, site, tmp_path / "b", context=1)
    with pytest.raises(InvalidInput, match="dtype 'int8'"):
        harvest(lm, corpus, site, tmp_path / "c", dtype="int8")
    with pytest.raises(InvalidInput, match="layer must be"):
        harvest(lm, corpus, Site(9), tmp_path / "d")
    with pytest.raises(InvalidInput, match="there is no activation store here"):
        ActivationStore(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match="in the way"):
        harvest(lm, corpus, site, tmp_path / "file", verbose=0)


def test_overflow_is_an_error_not_a_row(lm, site, tmp_path, monkeypatch):
    real = run_site(lm, torch.tensor([[256]]), None, site)
    monkeypatch.setattr(
        "neurollm.activations.harvesting.iter_activations",
        lambda lm, sequences, site, **_: [
            (np.array([i]), real.new_full((1, len(s), 24), 1e6), np.array([len(s)])) for i, s in enumerate(sequences)
        ],
    )
    with pytest.raises(DataMismatch, match=r"NaN or infinity .* float16"):
        harvest(lm, Corpus([("a", "text")]), site, tmp_path / "s", dtype="float16", verbose=0)
    assert not list((tmp_path / "s").glob("*shard*"))


def test_without_the_calls_of_linux_the_same_files(harvest_again, store, monkeypatch):
    monkeypatch.delattr("os.posix_fadvise", raising=False)
    assert harvest_again().sha256 == store.sha256


def test_a_file_system_without_the_hint(harvest_again, store, monkeypatch):
    asked = []

    def refuse(*arguments):
        asked.append(arguments)
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("os.posix_fadvise", refuse, raising=False)
    monkeypatch.setattr("os.POSIX_FADV_DONTNEED", 4, raising=False)
    assert harvest_again().sha256 == store.sha256
    assert len(asked) == len(store.shards)


def test_a_default_goes_on_with_the_batches_of_the_first_run(lm, corpus, site, tmp_path, monkeypatch):
    first = harvest(lm, corpus, site, tmp_path, verbose=0)
    monkeypatch.setattr(type(lm), "tokens_per_batch", 99)  # as on another device
    assert harvest(lm, corpus, site, tmp_path, verbose=0).sha256 == first.sha256
    assert harvest(lm, corpus, site, tmp_path / "b", verbose=0).manifest["settings"]["tokens per batch"] == 99


def test_a_full_disk_keeps_what_is_finished(lm, corpus, site, tmp_path, monkeypatch):
    """The third shard fails half-way; a second run restores exactly what an undisturbed one gives."""
    harvest(lm, corpus, site, tmp_path / "whole", tokens_per_shard=700, verbose=0)
    write, shards = tensorfile_module._write_all, []

    def fill(file, block):
        if "shard" in str(file.name) and file.name not in shards:
            shards.append(file.name)
        if len(shards) == 3:
            raise OSError(28, "No space left on device")
        write(file, block)

    with monkeypatch.context() as patch:
        patch.setattr(tensorfile_module, "_write_all", fill)
        with pytest.raises(InvalidInput, match=r"the disk is full \(about .* MB needed, .* MB free\); free space or"):
            harvest(lm, corpus, site, tmp_path / "part", tokens_per_shard=700, verbose=0)
    left = {path.name for path in (tmp_path / "part").iterdir()}
    assert {"shard-00000.safetensors", "shard-00001.safetensors"} <= left
    assert not [name for name in left if name.endswith(".tmp") or "00002" in name]
    with pytest.raises(DataMismatch, match="is not finished"):
        ActivationStore(tmp_path / "part")
    harvest(lm, corpus, site, tmp_path / "part", tokens_per_shard=700, verbose=0)
    assert hashes(tmp_path / "part") == hashes(tmp_path / "whole")


def test_a_really_full_disk(lm, corpus, site, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        with pytest.raises(InvalidInput, match="the disk is full"):
            harvest(lm, corpus, site, disk / "s", tokens_per_shard=500, dtype="float32", verbose=0)
        left = {path.name for path in (disk / "s").iterdir()}
        assert "shard-00000.safetensors" in left and not [name for name in left if name.endswith(".tmp")]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_two_writers_are_kept_apart(lm, corpus, site, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(InvalidInput, match="another process is writing"):
            harvest(lm, corpus, site, tmp_path, verbose=0)
    finally:
        os.close(handle)


KILLER = """
import os, random, signal, sys, time
os.environ["TOKENIZERS_PARALLELISM"] = "false"
tests, folder = sys.argv[1:]
sys.path.insert(0, tests)
import torch
torch.set_num_threads(1)
torch.set_num_interop_threads(1)
from tiny import TinyDictionary, tiny_documents, tiny_lm
from neurollm.activations import Corpus, FeatureIndex, harvest, index_build
from neurollm.models import Site
index_build.TOKENS_PER_SHARD = 1000
lm, corpus, site = tiny_lm(), Corpus(tiny_documents(150)), Site(2)
kinds = {
    "harvest": lambda out: harvest(
        lm, corpus, site, out, tokens_per_shard=1000, tokens_per_batch=512, verbose=0),
    "index": lambda out: FeatureIndex.build(lm, TinyDictionary(site), corpus, out, verbose=0),
}

def start(work, out):
    child = os.fork()
    if child == 0:
        try:
            work(out)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child

rng = random.Random(0)
for kind, work in kinds.items():
    begin = time.monotonic()
    assert os.waitpid(start(work, f"{folder}/{kind}-whole"), 0)[1] == 0
    seconds = time.monotonic() - begin
    killed, part = 0, 0
    while killed < 6:
        child = start(work, f"{folder}/{kind}-part-{part}")
        time.sleep(rng.uniform(0, 0.5) * seconds)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            part += 1  # it finished first: go on with another folder
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
    assert os.waitpid(start(work, f"{folder}/{kind}-part-{part}"), 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_the_files_end_up_identical(tmp_path):
    command = [sys.executable, "-c", KILLER, str(Path(__file__).parent), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    for kind in ("harvest", "index"):
        parts = sorted(tmp_path.glob(f"{kind}-part-*"))
        assert parts and all(hashes(part) == hashes(tmp_path / f"{kind}-whole") for part in parts)
        assert not [name for name in hashes(parts[-1]) if name.startswith(".")]


@pytest.mark.parametrize("kind", ["harvest", "index"])
def test_killed_before_every_single_rename_the_files_end_up_identical(
    lm, corpus, site, dictionary, tmp_path, monkeypatch, kind
):
    """What a kill leaves at each of the moments at which something becomes visible on disk."""
    monkeypatch.setattr(index_build, "TOKENS_PER_SHARD", 1500)

    def work(out):
        if kind == "harvest":
            harvest(lm, corpus, site, out, tokens_per_shard=1500, verbose=0)
        else:
            FeatureIndex.build(lm, dictionary, corpus, out, verbose=0)

    work(tmp_path / "whole")
    moments = itertools.count()
    real = {name: getattr(os, name) for name in ("replace", "unlink")}

    class Killed(BaseException):
        pass

    for moment in moments:
        passed = itertools.count()

        def until(name, *arguments, moment=moment, passed=passed, **options):
            # After the "kill" nothing happens any more, not even the removal of temporary files.
            if next(passed) >= moment:
                raise Killed
            return real[name](*arguments, **options)

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, functools.partial(until, name))
            try:
                work(tmp_path / f"part-{moment}")
                break
            except Killed:
                pass
        work(tmp_path / f"part-{moment}")
        assert hashes(tmp_path / f"part-{moment}") == hashes(tmp_path / "whole"), moment
    assert moment > 10


def test_a_real_model(shared_data, tmp_path):
    """Llama in its own dtype: rows within rounding of the model run on one context alone."""
    from neurollm.models import load_model

    lm = load_model(shared_data / "models" / "stories-260k", dtype="float32")
    stories = json.loads((shared_data / "text" / "tinystories_1000.json").read_text())[:5]
    corpus = Corpus([(str(i), story if isinstance(story, str) else story["text"]) for i, story in enumerate(stories)])
    store = harvest(lm, corpus, Site(2), tmp_path / "s", context=128, dtype="float32", verbose=0)
    first = store.shard(0)
    assert first["token_id"].min() > 2
    ids = torch.tensor([[1, *first["token_id"][:127]]])
    torch.testing.assert_close(store.rows(0, 127), run_site(lm, ids, None, Site(2))[0, 1:], rtol=1e-4, atol=1e-5)
    assert "".join(store.context(row, words=0).token for row in range(50)) in corpus.documents[0][1]
