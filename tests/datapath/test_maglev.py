"""Facts about Maglev tables: fair, stable under change, and the same on every machine and version."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tidegate.datapath import maglev

GOLDEN = yaml.safe_load(Path(__file__).with_name("maglev.golden.yaml").read_text())
HUNDRED = {f"192.0.2.{n}:80": 1 for n in range(100)}
BIG = 65537

weights = st.dictionaries(st.text("abc:.019", min_size=1, max_size=6), st.integers(0, 256), max_size=12)
sizes = st.sampled_from([2, 13, 251, 509, 1021])


def raw(table: maglev.Table) -> bytes:
    """The slots in one byte order, whatever this machine's is."""
    swapped = array("I", table.slots)
    if sys.byteorder == "big":
        swapped.byteswap()
    return swapped.tobytes()


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
@pytest.mark.parametrize("fill", [maglev.FILL, maglev.fill_in_python], ids=["fastest", "python"])
def test_golden(case: dict[str, Any], fill: maglev.Fill) -> None:
    """A table never changes from one version to the next: two balancers under upgrade must agree."""
    given = {f"10.0.{n // 250}.{n % 250}:80": 1 for n in range(case["backends"])} | case.get("weights", {})
    table = maglev.build(given, case["size"], case["seed"], fill)
    assert list(table.slots[:8]) == case["first"]
    assert hashlib.blake2b(raw(table), digest_size=16).hexdigest() == case["slots"]
    assert f"{maglev.digest(given, case['size'], case['seed']):016x}" == case["digest"]
    assert maglev.flow_seed(case["seed"]) == case["flow_seed"]


@given(weights, sizes, st.text("xyz", max_size=8))
def test_c_and_python_give_the_same_bytes(given: dict[str, int], size: int, seed: str) -> None:
    """The twin stands in where no compiler was, beside balancers that had one."""
    fast = pytest.importorskip("tidegate.datapath._maglev", reason="built without a compiler")
    one, other = (maglev.build(given, size, seed, fill) for fill in (fast.fill, maglev.fill_in_python))
    assert one.slots == other.slots


def test_the_c_fill_is_the_one_in_use_where_it_was_built() -> None:
    """A build with a compiler must not fall back silently."""
    fast = pytest.importorskip("tidegate.datapath._maglev", reason="built without a compiler")
    assert maglev.FILL is fast.fill


def test_another_process_gives_the_same_table() -> None:
    """Nothing depends on the process: neither its hash seed nor the order in which backends came."""
    code = (
        "from tidegate.datapath import maglev; import hashlib;"
        "names = {f'192.0.2.{n}:80' for n in range(100)};"
        "print(hashlib.sha256(maglev.build(dict.fromkeys(names, 1), 1021, 's').slots.tobytes()).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {hashlib.sha256(maglev.build(HUNDRED, 1021, "s").slots.tobytes()).hexdigest()}


def test_equal_backends_have_equal_shares() -> None:
    """Each of 100 backends has its hundredth, give or take one slot."""
    counts = maglev.build(HUNDRED, BIG, "").counts.values()
    assert max(counts) - min(counts) <= 1


@given(weights.filter(lambda given: any(given.values())))
def test_shares_follow_the_weights(given: dict[str, int]) -> None:
    """No backend is further from its share than one turn; weight 0 has none."""
    size, total = 4093, sum(given.values())
    counts = maglev.build(given, size, "").counts
    assert sum(counts.values()) == size
    for name, weight in given.items():
        if weight:
            assert abs(counts[name] - size * weight / total) <= 1 + weight / max(given.values()) * len(given)
        else:
            assert name not in counts


def test_the_smallest_weight_has_a_slot() -> None:
    """Even where its share would be less than one."""
    assert maglev.build({"a": 256, "b": 1}, 251, "").counts["b"] == 1


@pytest.mark.parametrize("size", [16381, BIG])
def test_losing_one_of_a_hundred_moves_little_more_than_its_share(size: int) -> None:
    """The slots of the lost one must move; of the others at most two in a hundred follow."""
    before = maglev.build(HUNDRED, size, "")
    lost = next(iter(HUNDRED))
    after = maglev.build({name: 1 for name in HUNDRED if name != lost}, size, "")
    moves = maglev.moved(before, after)
    total, least = sum(each.lost for each in moves.values()), before.counts[lost]
    assert moves[lost] == maglev.Moved(least, 0)
    assert least <= total <= least + 0.02 * size


def test_another_seed_gives_another_table() -> None:
    """Balancers of two tiers must not agree by accident."""
    one, other = (maglev.build(HUNDRED, 1021, seed) for seed in ("a", "b"))
    assert one.slots != other.slots


@given(weights, weights, sizes)
def test_what_moves_explains_the_difference_of_the_counts(before: dict[str, int], after: dict[str, int], size: int) -> None:
    """Gains less losses are the change of each backend's slots, and nothing moves between equal tables."""
    old, new = (maglev.build(given, size, "") for given in (before, after))
    moves = maglev.moved(old, new)
    for name, move in moves.items():
        assert move.gained - move.lost == new.counts.get(name, 0) - old.counts.get(name, 0)
    assert all(move == maglev.Moved() for move in maglev.moved(old, old).values())


@given(weights, sizes)
def test_one_digest_one_table(given: dict[str, int], size: int) -> None:
    """What is not in the table is not in the digest; anything that is, is."""
    digest = maglev.digest(given, size, "")
    assert digest == maglev.digest({**dict(reversed(given.items())), "gone": 0}, size, "")
    assert digest not in (maglev.digest({**given, "new": 1}, size, ""), maglev.digest(given, size + 2, ""))


def test_no_backend() -> None:
    """Without any weight every slot says so."""
    table = maglev.build({"a": 0}, 13, "")
    assert (table.names, set(table.slots)) == ((), {maglev.NONE})


@pytest.mark.parametrize("size", [0, 1, 16384, 65536])
def test_only_primes(size: int) -> None:
    """Another size is refused, with the next one that is right."""
    with pytest.raises(ValueError, match="prime"):
        maglev.build(HUNDRED, size, "")


@pytest.mark.parametrize(
    ("offsets", "skips", "counts", "slots"),
    [([13], [1], [1], 13), ([0], [0], [1], 13), ([0], [13], [1], 13), ([0], [3], [1], 12), ([0], [1], [0], 13),
     ([0], [1, 1], [1], 13), ([], [], [], 13), ([0], [1], [1], 1)],
)  # fmt: skip
def test_the_c_fill_refuses_what_would_run_wild(offsets: list[int], skips: list[int], counts: list[int], slots: int) -> None:
    """Neither a write outside the table nor an endless search, whoever calls it."""
    fast = pytest.importorskip("tidegate.datapath._maglev", reason="built without a compiler")
    with pytest.raises(ValueError, match=r"must|outside"):
        fast.fill(array("I", offsets), array("I", skips), array("I", counts), array("I", [0]) * slots)


def test_the_c_fill_refuses_other_numbers() -> None:
    """Arrays of another width would be read as nonsense."""
    fast = pytest.importorskip("tidegate.datapath._maglev", reason="built without a compiler")
    with pytest.raises(TypeError):
        fast.fill(array("Q", [0]), array("I", [1]), array("I", [1]), array("I", [0]) * 13)
    with pytest.raises(BufferError):
        fast.fill(array("I", [0]), array("I", [1]), array("I", [1]), bytes(52))


def simulated(before: array[int], after: array[int], flows: int = 20011) -> float:
    """The share of evenly spread flows that another backend gets, slot by scaled hash as the kernel does it."""
    return sum(before[h * len(before) // flows] != after[h * len(after) // flows] for h in range(flows)) / flows


@given(weights, weights, sizes, sizes)
def test_share_moved_is_what_flows_see(before: dict[str, int], after: dict[str, int], one: int, other: int) -> None:
    """Also where the size changes."""
    names = {name: number + 1 for number, name in enumerate(sorted({*before, *after}))}
    old, new = (
        maglev.translate(table.slots, array("I", [names[name] for name in table.names]))
        for table in (maglev.build(before, one, ""), maglev.build(after, other, ""))
    )
    expected = maglev.share_moved(old, new, is_same_seed=True)
    assert abs(expected - simulated(old, new)) < 2 * (one + other) / 20011
    if one == other:
        counted = sum(left != right for left, right in zip(old, new, strict=True))
        assert round(expected * one) == counted


def test_another_seed_moves_all_but_what_chance_leaves() -> None:
    """Two backends of equal weight: half of the flows stay by chance."""
    half = array("I", [1, 2] * 500)
    assert maglev.share_moved(half, half, is_same_seed=True) == 0
    assert maglev.share_moved(half, half, is_same_seed=False) == pytest.approx(0.5)


def test_translation() -> None:
    """Indexes become ids; where there is no backend the id is 0."""
    assert list(maglev.translate(array("I", [1, 0, 1]), array("I", [7, 9]))) == [9, 7, 9]
    assert list(maglev.translate(maglev.build({}, 3, "").slots, array("I"))) == [0, 0, 0]
