"""The tree against the definition of RFC 6962 as it stands there, and proofs against those who bend them."""

import hashlib
import random
from collections.abc import Callable, Sequence

import pytest

from wardpose.shared.errors import LedgerError
from wardpose.shared.privacy.merkle import (
    EMPTY_ROOT,
    Frontier,
    MerkleTree,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)


def split(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def textbook_root(data: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1."""
    if not data:
        return hashlib.sha256(b"").digest()
    if len(data) == 1:
        return hashlib.sha256(b"\x00" + data[0]).digest()
    k = split(len(data))
    return hashlib.sha256(b"\x01" + textbook_root(data[:k]) + textbook_root(data[k:])).digest()


def textbook_path(m: int, data: Sequence[bytes]) -> list[bytes]:
    """PATH of RFC 6962, 2.1.1."""
    if len(data) == 1:
        return []
    k = split(len(data))
    if m < k:
        return [*textbook_path(m, data[:k]), textbook_root(data[k:])]
    return [*textbook_path(m - k, data[k:]), textbook_root(data[:k])]


def textbook_subproof(m: int, data: Sequence[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962, 2.1.2."""
    if m == len(data):
        return [] if whole else [textbook_root(data)]
    k = split(len(data))
    if m <= k:
        return [*textbook_subproof(m, data[:k], whole), textbook_root(data[k:])]
    return [*textbook_subproof(m - k, data[k:], False), textbook_root(data[:k])]


def leaves(count: int) -> list[bytes]:
    return [hashlib.sha256(b"%d" % number).digest() for number in range(count)]


def grown(data: Sequence[bytes]) -> MerkleTree:
    tree = MerkleTree()
    for part in data:
        tree.append(part)
    return tree


def refused(check: Callable[..., None], *arguments: object) -> None:
    with pytest.raises(LedgerError):
        check(*arguments)


def test_the_vectors_of_certificate_transparency() -> None:
    """Roots of the eight inputs that the implementations of RFC 6962 are tested with."""
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    data = [bytes.fromhex(text) for text in inputs]
    tree = grown(data)
    assert tree.root(0).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert tree.root(1).hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert tree.root(8).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_roots_and_proofs_of_all_small_sizes_are_those_of_the_definition() -> None:
    data = leaves(70)
    tree, frontier = MerkleTree(), Frontier()
    for size in range(71):
        root = textbook_root(data[:size])
        assert tree.size == frontier.size == size
        assert tree.root() == frontier.root() == root
        if size < 70:
            tree.append(data[size])
            frontier.append(data[size])
    roots = [textbook_root(data[:size]) for size in range(71)]
    for size in range(71):
        assert tree.root(size) == roots[size]
        for index in range(size):
            path = tree.inclusion(index, size)
            assert path == textbook_path(index, data[:size])
            verify_inclusion(leaf_hash(data[index]), index, size, path, roots[size])
        for old in range(size + 1):
            proof = tree.consistency(old, size)
            if old:
                assert proof == textbook_subproof(old, data[:size], True)
            verify_consistency(old, roots[old], size, roots[size], proof)


def test_proofs_of_large_trees_hold_and_are_short() -> None:
    chance = random.Random(7)
    data = leaves(5000)
    tree = grown(data)
    for _ in range(40):
        size = chance.randint(1, 5000)
        index, old = chance.randrange(size), chance.randint(0, size)
        root = tree.root(size)
        path, proof = tree.inclusion(index, size), tree.consistency(old, size)
        assert max(len(path), len(proof) - 1) <= 13
        verify_inclusion(leaf_hash(data[index]), index, size, path, root)
        verify_consistency(old, tree.root(old), size, root, proof)
    assert tree.root(3001) == textbook_root(data[:3001])


def bent(path: Sequence[bytes], chance: random.Random) -> list[list[bytes]]:
    """Return a proof changed in every way that a proof can be: bits, order, length, form."""
    extra = chance.randbytes(32)
    found = [[*path, extra], [extra, *path], [*path[:-1]], [*path[1:]], [part[:-1] for part in path], list(path[::-1])]
    for place, part in enumerate(path):
        flipped = bytearray(part)
        flipped[chance.randrange(32)] ^= 1 << chance.randrange(8)
        found.append([*path[:place], bytes(flipped), *path[place + 1 :]])
    return [changed for changed in found if changed != list(path)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 21, 64, 65])
def test_a_bent_proof_shows_nothing(size: int) -> None:
    chance = random.Random(size)
    data = leaves(size)
    tree = grown(data)
    root = tree.root()
    other = grown([*data[:-1], b"another"])
    for index in range(size):
        leaf, path = leaf_hash(data[index]), tree.inclusion(index, size)
        for changed in bent(path, chance):
            refused(verify_inclusion, leaf, index, size, changed, root)
        refused(verify_inclusion, leaf_hash(b"forged"), index, size, path, root)
        refused(verify_inclusion, leaf, index, size, path, other.root())
        for wrong in range(size):
            if wrong != index:
                refused(verify_inclusion, leaf, wrong, size, path, root)
    for old in range(1, size + 1):
        old_root, proof = tree.root(old), tree.consistency(old, size)
        for changed in bent(proof, chance):
            refused(verify_consistency, old, old_root, size, root, changed)
        refused(verify_consistency, old, chance.randbytes(32), size, root, proof)
        refused(verify_consistency, old, old_root, size, chance.randbytes(32), proof)


def test_a_history_that_was_rewritten_has_no_proof() -> None:
    """A liar may send any hashes: none that an honest tree or the forged one holds will do."""
    data = leaves(23)
    honest, forged = grown(data), grown([*data[:9], b"other", *data[10:], *leaves(9)])
    for old in range(10, 24):
        for size in range(old, forged.size + 1):
            refused(verify_consistency, old, honest.root(old), size, forged.root(size), forged.consistency(old, size))
    for old in range(1, 10):
        verify_consistency(old, honest.root(old), 30, forged.root(30), forged.consistency(old, 30))


def test_a_node_does_not_pass_for_a_leaf() -> None:
    tree = grown(leaves(4))
    pair = tree.root(2)
    refused(verify_inclusion, leaf_hash(pair), 0, 2, tree.inclusion(0, 4)[1:], tree.root())
    assert leaf_hash(leaves(1)[0] + leaves(2)[1]) != pair


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0), (0, -1), (0, 1 << 64), (1 << 70, 1 << 71)])
def test_places_that_no_tree_has_are_refused(index: int, size: int) -> None:
    tree = grown(leaves(3))
    refused(verify_inclusion, leaf_hash(b""), index, size, [], tree.root())
    refused(tree.inclusion, index, size)
    refused(verify_consistency, 4, tree.root(), 3, tree.root(), [])
    refused(tree.consistency, 1, 4)
    refused(tree.consistency, -1, 3)
    refused(tree.root, 4)
    refused(tree.root, -1)
    refused(tree.leaf, 3)


def test_nothing_is_a_beginning_of_everything() -> None:
    tree = grown(leaves(5))
    verify_consistency(0, EMPTY_ROOT, 5, tree.root(), [])
    refused(verify_consistency, 0, tree.root(), 5, tree.root(), [])
    refused(verify_consistency, 0, EMPTY_ROOT, 5, tree.root(), [leaf_hash(b"")])
    refused(verify_consistency, 5, tree.root(4), 5, tree.root(), [])
