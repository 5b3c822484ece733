"""The loader against a brute-force oracle: windows, boundaries, masks, order, shares and positions."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.shard_files import write_shards

from retlab.artifacts import write_json
from retlab.data.loader import Batch, SequentialLoader, TokenLoader
from retlab.data.settings import DataSection
from retlab.data.shards import check_shards, open_shards
from retlab.errors import UserError

EOS, PAD = 2, 0
Example = tuple[list[int], list[int], list[int], list[bool]]


def expected_windows(documents: list[list[int]], length: int, packing: str, skipped: int = 0) -> list[Example]:
    """Inputs, targets, segments and mask of every window, one token at a time."""
    runs = [
        [(known, predicted, number) for known, predicted in itertools.pairwise([EOS, *document, EOS])]
        for number, document in enumerate(documents)
    ]
    if packing == "packed":
        runs = [list(itertools.chain.from_iterable(runs))[skipped:]]
    pieces = [run[start : start + length] for run in runs for start in range(0, len(run), length)]
    return [
        (
            [known for known, _, _ in piece] + [PAD] * (length - len(piece)),
            [predicted for _, predicted, _ in piece] + [PAD] * (length - len(piece)),
            [number - piece[0][2] for _, _, number in piece] + [-1] * (length - len(piece)),
            [True] * len(piece) + [False] * (length - len(piece)),
        )
        for piece in pieces
    ]


def examples(batch: Batch) -> list[Example]:
    columns = [batch[key].tolist() for key in ("input_ids", "targets", "segment_ids", "loss_mask")]
    return list(zip(*columns, strict=True))


def section(**values: object) -> DataSection:
    return DataSection.model_validate(values)


def train_loader(folder: Path, **values: object) -> TokenLoader:
    keys = ("sequence_length", "packing", "reset_at_documents", "loader_workers")
    chosen = {key: values.pop(key) for key in keys if key in values}
    defaults = {"global_batch_size": 4, "micro_batch_size": 2, "seed": 7, "mix_tokens": 100}
    return TokenLoader(section(sequence_length=8) if not chosen else section(**{"sequence_length": 8, **chosen}),
                       folder, eos_id=EOS, pad_id=PAD, **{**defaults, **values})  # type: ignore[arg-type]  # fmt: skip


def take(loader: TokenLoader, count: int) -> list[Batch]:
    return list(itertools.islice(loader, count))


def ids_of(batches: list[Batch]) -> list[list[int]]:
    return [batch["sample_ids"].tolist() for batch in batches]


def random_documents(count: int, longest: int = 30, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(4, 1000, size).tolist() for size in random.integers(0, longest, count)]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two parts of uneven row groups, about 3,400 targets."""
    documents = random_documents(220)
    write_shards(
        tmp_path / "train",
        [[documents[:50], documents[50:57], documents[57:130]], [documents[130:131], documents[131:]]],
    )
    return tmp_path / "train"


lists_of_documents = st.lists(st.lists(st.integers(3, 999), max_size=25), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=lists_of_documents,
    cuts=st.lists(st.integers(0, 12), max_size=4),
    length=st.integers(1, 9),
    packing=st.sampled_from(["packed", "padded"]),
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 3),
)
def test_sequential_windows_equal_the_oracle(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    cuts: list[int],
    length: int,
    packing: str,
    batch_size: int,
    world_size: int,
) -> None:
    folder = tmp_path_factory.mktemp("split")
    bounds = [0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)]
    groups = [documents[low:high] for low, high in itertools.pairwise(bounds)]
    write_shards(folder, [groups[:2], groups[2:]] if groups[2:] else [groups])

    loaders = [
        SequentialLoader(
            section(sequence_length=length, packing=packing), folder, batch_size=batch_size, eos_id=EOS, pad_id=PAD,
            rank=rank, world_size=world_size, mix_tokens=20,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    batches = [list(loader) for loader in loaders]

    assert {len(of_rank) for of_rank in batches} == {len(loaders[0])}
    found = {}
    for batch in itertools.chain.from_iterable(batches):
        for number, example in zip(batch["sample_ids"].tolist(), examples(batch), strict=True):
            if any(example[3]):
                assert number not in found
                found[number] = example
    assert [found[number] for number in sorted(found)] == expected_windows(documents, length, packing)

    # Per document: its tokens and its end of text, each once, whatever the windows.
    by_document: dict[int, list[int]] = {}
    for batch in sorted(itertools.chain.from_iterable(batches), key=lambda batch: batch["sample_ids"][0]):
        mask = batch["loss_mask"]
        for document, target in zip(batch["document_ids"][mask].tolist(), batch["targets"][mask].tolist(), strict=True):
            by_document.setdefault(document, []).append(target)
    assert by_document == {number: [*document, EOS] for number, document in enumerate(documents)}
    assert loaders[0].targets == sum(len(document) + 1 for document in documents)


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_an_epoch_is_complete_but_for_the_counted_tail(tmp_path: Path, packing: str) -> None:
    # Every token value is unique, so that a window says where it comes from.
    values = iter(range(10, 60_000))
    documents = [[next(values) for _ in document] for document in random_documents(210)]
    # One row group: what is left out must differ even where there is nothing to reorder.
    write_shards(tmp_path, [[documents]], vocab_size=60_000)
    loader = train_loader(tmp_path, packing=packing)
    everything = sorted(itertools.chain.from_iterable([*document, EOS] for document in documents))

    left_out = []
    for _ in range(2):
        batches = take(loader, loader.steps_per_epoch * 2)
        ids = list(itertools.chain.from_iterable(ids_of(batches)))
        assert len(set(ids)) == len(ids) == loader.steps_per_epoch * 4
        assert set(ids) <= set(range(loader.windows_per_epoch))
        seen = torch.cat([batch["targets"][batch["loss_mask"]] for batch in batches]).tolist()
        missing = np.bincount(everything) - np.bincount(seen, minlength=max(everything) + 1)
        assert missing.min() == 0
        # The tail: windows below one global batch and, packed, the tokens below one window.
        assert missing.sum() < (loader.tail_windows + 1) * 8
        left_out.append(np.flatnonzero(missing).tolist())
    assert loader.tail_windows == loader.windows_per_epoch - loader.steps_per_epoch * 4
    assert left_out[0] != left_out[1]


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_training_windows_follow_a_permutation_of_the_row_groups(tmp_path: Path, packing: str) -> None:
    documents = random_documents(220)
    groups = [documents[:100], documents[100:101], documents[101:]]
    write_shards(tmp_path, [groups[:2], groups[2:]])
    loader = train_loader(tmp_path, packing=packing)
    # Packed, the first window starts anywhere in what whole windows leave over.
    spare = sum(len(document) + 1 for document in documents) % 8 if packing == "packed" else 0
    possible = [
        expected_windows(list(itertools.chain.from_iterable(order)), 8, packing, skipped)
        for order in itertools.permutations(groups)
        for skipped in range(spare + 1)
    ]
    for _ in range(2):
        found = {}
        for batch in take(loader, loader.steps_per_epoch * 2):
            found.update(zip(batch["sample_ids"].tolist(), examples(batch), strict=True))
        assert any(all(windows[number] == example for number, example in found.items()) for windows in possible)


def test_order_differs_by_epoch_and_seed_and_repeats_otherwise(shards: Path) -> None:
    loader = train_loader(shards)
    count = loader.steps_per_epoch * 2
    first, second = ids_of(take(loader, count)), ids_of(take(loader, count))
    assert first != second
    assert first == ids_of(take(train_loader(shards), count))
    assert first != ids_of(take(train_loader(shards, seed=8), count))
    flat = list(itertools.chain.from_iterable(first))
    assert flat != sorted(flat)


@pytest.mark.parametrize("packing", ["packed", "padded"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stop_in_the_middle_of_an_epoch_changes_nothing(shards: Path, workers: int, packing: str) -> None:
    options = {"packing": packing, "loader_workers": workers}
    undisturbed = train_loader(shards, packing=packing)
    total = undisturbed.steps_per_epoch * 2 + 6
    expected = take(undisturbed, total)

    loader = train_loader(shards, **options)
    before = take(loader, 2 * 5)
    state = loader.state_dict()
    # One micro-batch of the sixth step was fetched already: the step is not complete, so it is done again.
    take(loader, 1)
    assert loader.state_dict() == state
    assert state["step"] == 5
    resumed = train_loader(shards, **options)
    resumed.load_state_dict(state)
    found = before + take(resumed, total - len(before))

    assert [batch["step"] for batch in found] == [number // 2 for number in range(total)]
    assert ids_of(found) == ids_of(expected)
    assert [examples(batch) for batch in found] == [examples(batch) for batch in expected]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_out_the_batches_of_one_process(shards: Path, world_size: int) -> None:
    alone = train_loader(shards, micro_batch_size=4)
    steps = alone.steps_per_epoch + 3
    expected = take(alone, steps)
    ranks = []
    for rank in range(world_size):
        loader = train_loader(shards, micro_batch_size=1, rank=rank, world_size=world_size, loader_workers=rank)
        micro_batches = 4 // world_size
        batches = take(loader, 3 * micro_batches)
        resumed = train_loader(shards, micro_batch_size=1, rank=rank, world_size=world_size)
        resumed.load_state_dict(loader.state_dict())
        ranks.append(batches + take(resumed, (steps - 3) * micro_batches))
    for step in range(steps):
        shared = [example for of_rank in ranks for b in of_rank if b["step"] == step for example in examples(b)]
        numbers = [i for of_rank in ranks for batch in of_rank if batch["step"] == step for i in ids_of([batch])[0]]
        assert len(set(numbers)) == 4
        assert sorted(numbers) == sorted(expected[step]["sample_ids"].tolist())
        assert sorted(shared) == sorted(examples(expected[step]))


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(3, 2), (3, 1), (2, 3), (5, 1), (1, 3)])
def test_ranks_that_do_not_divide_a_batch_share_it_out_all_the_same(
    shards: Path, world_size: int, micro_batch_size: int
) -> None:
    alone = train_loader(shards, micro_batch_size=4)
    steps = alone.steps_per_epoch + 3
    expected = take(alone, steps)
    ranks = []
    for rank in range(world_size):
        loader = train_loader(shards, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size)
        ranks.append(take(loader, steps * loader.micro_batches))
        assert loader.state_dict() == alone.state_dict()
    assert len({len(batches) for batches in ranks}) == 1
    for step in range(steps):
        batches = [batch for of_rank in ranks for batch in of_rank if batch["step"] == step]
        counted = [example for batch in batches for example in examples(batch) if any(example[3])]
        assert sorted(counted) == sorted(examples(expected[step]))
        numbers = [number for ids in ids_of(batches) for number in ids]
        assert sorted(number for number in numbers if number >= 0) == sorted(expected[step]["sample_ids"].tolist())
        # A window that only fills up counts for nothing.
        assert not any(batch["loss_mask"][batch["sample_ids"] < 0].any() for batch in batches)


def test_seek_far_ahead_reads_only_what_it_needs(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retlab.data.shards import Shards

    read = []
    original = Shards.read
    monkeypatch.setattr(Shards, "read", lambda self, index, eos: read.append(index) or original(self, index, eos))
    loader = train_loader(shards, global_batch_size=2)
    far = 1000 * loader.steps_per_epoch + loader.steps_per_epoch // 2
    expected = train_loader(shards, global_batch_size=2)
    expected.seek(far - 3)
    loader.seek(far)
    first = take(loader, 1)
    # The lot that holds the step and the one prepared ahead, 100 tokens each.
    assert len(read) <= 6
    assert examples(first[0]) == examples(take(expected, 4)[3])


def test_without_reset_a_window_is_one_segment(shards: Path) -> None:
    packed = take(train_loader(shards, reset_at_documents=False), 3)
    assert all((batch["segment_ids"] == 0).all() for batch in packed)
    for batch in take(train_loader(shards, reset_at_documents=False, packing="padded"), 3):
        assert torch.equal(batch["segment_ids"], torch.where(batch["loss_mask"], 0, -1))
    reference = take(train_loader(shards), 3)
    assert any((batch["segment_ids"] > 0).any() for batch in reference)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(packed, reference, strict=True))


def test_dtypes_and_alignment(shards: Path) -> None:
    batch = take(train_loader(shards), 1)[0]
    for key in ("input_ids", "targets", "segment_ids", "sample_ids"):
        assert batch[key].dtype == torch.int64
    assert batch["loss_mask"].dtype == torch.bool
    assert batch["input_ids"].shape == batch["targets"].shape == batch["loss_mask"].shape == (2, 8)
    assert torch.equal(batch["input_ids"][:, 1:], batch["targets"][:, :-1])


def test_large_vocabulary_and_a_document_over_many_windows(tmp_path: Path) -> None:
    long = np.random.default_rng(0).integers(70_000, 100_000, 5000).tolist()
    documents = [[70_001], long, [], [99_999]]
    write_shards(tmp_path, [[documents[:1]], [[], documents[1:]]], vocab_size=100_000)
    for packing in ("packed", "padded"):
        loader = SequentialLoader(
            section(sequence_length=16, packing=packing), tmp_path, batch_size=7, eos_id=EOS, pad_id=PAD, mix_tokens=64
        )
        assert [e for batch in loader for e in examples(batch)] == expected_windows(documents, 16, packing)


def test_too_little_text_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, [[[[5, 6, 7]]]])
    with pytest.raises(UserError, match=r"sequence_length 8 is longer than the split .* 4 tokens"):
        train_loader(tmp_path)
    with pytest.raises(UserError, match=r"holds 1 of the 4 windows of 4 tokens that train\.batch_size"):
        train_loader(tmp_path, sequence_length=4)
    write_shards(tmp_path, [[[]]])
    with pytest.raises(UserError, match="no documents"):
        train_loader(tmp_path)
    with pytest.raises(UserError, match="no token shards"):
        train_loader(tmp_path / "nowhere")


def test_a_truncated_shard_is_named(shards: Path) -> None:
    part = shards / "part-00001.parquet"
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"part-00001\.parquet cannot be read"):
        train_loader(shards)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_cut_off_while_training_is_named(shards: Path, workers: int) -> None:
    loader = train_loader(shards, loader_workers=workers)
    for part in shards.iterdir():
        part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(UserError, match=r"part-0000\d\.parquet cannot be read .*--force$"):
        take(loader, 1)


def test_a_position_of_other_batches_is_refused(shards: Path) -> None:
    state = train_loader(shards).state_dict()
    with pytest.raises(UserError, match="batch_size 4, now it is 2"):
        train_loader(shards, global_batch_size=2).load_state_dict(state)


def test_shards_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    shards, tokenizer = tmp_path / "train", tmp_path / "tokenizer"
    shards.mkdir()
    tokenizer.mkdir()
    with pytest.raises(UserError, match="no finished token shards"):
        check_shards(shards, tokenizer)
    digest = "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"
    write_json(shards / "manifest.json", {"outputs": {}, "report": {"tokenizer_sha256": digest}})
    with pytest.raises(UserError, match="holds no tokenizer"):
        check_shards(shards, tokenizer)
    (tokenizer / "tokenizer.json").write_text("{}\n")
    check_shards(shards, tokenizer)
    (tokenizer / "tokenizer.json").write_text("{ }\n")
    with pytest.raises(UserError, match="another tokenizer"):
        check_shards(shards, tokenizer)


def test_shards_are_counted_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, [[[[5, 6, 7]]]])
    assert open_shards(tmp_path, 4).tokens.tolist() == [3]
    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("read again"))
        assert open_shards(tmp_path, 4).tokens.tolist() == [3]
    write_shards(tmp_path, [[[[5, 6, 7, 8], [9]]]])
    assert open_shards(tmp_path, 4).tokens.tolist() == [5]
    assert open_shards(tmp_path, 2).pieces.tolist() == [4]
