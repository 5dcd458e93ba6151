"""A Merkle tree over a ledger's entries: short proofs that one is in it, and that a longer ledger extends a shorter.

The tree and its proofs are those of Certificate Transparency (RFC 6962, section 2.1; RFC 9162, sections 2.1.3 and
2.1.4), over SHA-256. A leaf is the hash of an entry's own hash, so that whoever sees no more of an entry than its hash
can compute the root. What is hashed for a leaf and for a node begins with another byte: neither can pass for the other.

    root of nothing     SHA-256 of no bytes
    root of one leaf    SHA-256(00 || data)
    root of n > 1       SHA-256(01 || root of the first k || root of the rest), k the largest power of two below n

**Why a proof convinces.** Whoever finds a path from another leaf to the same root, or two different trees that a
consistency proof joins, has found two inputs of SHA-256 with the same output: each step of a check hashes what the
prover gave, and the last result is compared with a root that was known before.
"""

import hashlib
from collections.abc import Sequence

from wardpose.shared.errors import LedgerError

_WIDTH = 32  # bytes of a hash
LONGEST_PROOF = 64
"""Hashes of an inclusion proof in any tree that a 64-bit number can count; a consistency proof has one more."""

EMPTY_ROOT = hashlib.sha256(b"").digest()
"""Root of the tree without leaves."""


def leaf_hash(data: bytes) -> bytes:
    """Hash a leaf's content."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees into the one that holds both."""
    return hashlib.sha256(b"\1" + left + right).digest()


class MerkleTree:
    """A tree that only grows; the roots of all its perfect subtrees are kept, 64 bytes a leaf.

    Appending costs two hashes on average, a root or a proof O(log^2 n) at most. What was once computed of a smaller
    tree stays right, so proofs of any size up to `size` may be made while another thread appends.

    Examples:
        >>> tree = MerkleTree()
        >>> for word in (b"a", b"b", b"c"):
        ...     tree.append(word)
        >>> verify_inclusion(leaf_hash(b"b"), 1, 3, tree.inclusion(1, 3), tree.root())
        >>> verify_consistency(2, tree.root(2), 3, tree.root(3), tree.consistency(2, 3))

    """

    def __init__(self) -> None:
        self._levels = [bytearray()]  # [k]: roots of the perfect subtrees of 2^k leaves, from the left

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self._levels[0]) // _WIDTH

    def append(self, data: bytes) -> None:
        """Add a leaf at the right."""
        new = leaf_hash(data)
        pending = []
        for level in self._levels:
            pending.append(new)
            if (len(level) // _WIDTH) % 2 == 0:
                break
            new = node_hash(bytes(level[-_WIDTH:]), new)
        else:
            self._levels.append(bytearray())
            pending.append(new)
        for level, found in reversed(list(zip(self._levels, pending, strict=False))):
            level += found  # the leaf last: whoever reads `size` finds all that it needs

    def leaf(self, index: int) -> bytes:
        """Return the hash of a leaf, the first being 0.

        Raises:
            LedgerError: there is none.

        """
        _within("index", index, 0, self.size - 1)
        return self._node(0, index)

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the first `size` leaves, of all when absent.

        Raises:
            LedgerError: there are not as many.

        """
        size = self.size if size is None else size
        _within("size", size, 0, self.size)
        return self._range(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """Return the audit path of a leaf in the tree of the first `size`, nearest sibling first (RFC 9162, 2.1.3.1).

        Raises:
            LedgerError: there are not as many leaves, or the index is not among them.

        """
        _within("size", size, 1, self.size)
        _within("index", index, 0, size - 1)
        path, start, end = [], 0, size
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                path.append(self._range(middle, end))
                end = middle
            else:
                path.append(self._range(start, middle))
                start = middle
        return path[::-1]

    def consistency(self, old: int, size: int) -> list[bytes]:
        """Return the proof that the tree of `size` leaves begins with that of `old` (RFC 9162, 2.1.4.1).

        Raises:
            LedgerError: there are not as many leaves, or `old` is larger than `size`.

        """
        _within("size", size, 0, self.size)
        _within("old size", old, 0, size)
        if old in (0, size):
            return []
        path, start, end = [], 0, size
        while end != old:
            middle = start + _split(end - start)
            if old <= middle:
                path.append(self._range(middle, end))
                end = middle
            else:
                path.append(self._range(start, middle))
                start = middle
        if start:  # the old tree's last subtree; where it is the whole old tree, the verifier has its root
            path.append(self._range(start, end))
        return path[::-1]

    def _range(self, start: int, end: int) -> bytes:
        """Root of the leaves from `start` to before `end`; `start` is a multiple of what the width rounds up to."""
        rest = []
        while (width := end - start) & (width - 1):
            middle = start + _split(width)
            rest.append(self._perfect(start, middle - start))
            start = middle
        found = self._perfect(start, end - start)
        for left in reversed(rest):
            found = node_hash(left, found)
        return found

    def _perfect(self, start: int, width: int) -> bytes:
        return self._node(width.bit_length() - 1, start // width)

    def _node(self, level: int, place: int) -> bytes:
        return bytes(self._levels[level][place * _WIDTH : (place + 1) * _WIDTH])


class Frontier:
    """What is needed to go on computing roots, and no more: one hash a binary digit of the size.

    For whoever receives all leaves and wants the root alone.

    Attributes:
        size: number of leaves so far.

    """

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []  # roots of the perfect subtrees, largest first

    def append(self, data: bytes) -> None:
        """Add a leaf at the right."""
        new, place = leaf_hash(data), self.size
        while place & 1:
            new = node_hash(self._peaks.pop(), new)
            place >>= 1
        self._peaks.append(new)
        self.size += 1

    def root(self) -> bytes:
        """Return the root of the leaves so far."""
        if not self._peaks:
            return EMPTY_ROOT
        found = self._peaks[-1]
        for left in reversed(self._peaks[:-1]):
            found = node_hash(left, found)
        return found


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Check an audit path (RFC 9162, 2.1.3.2).

    Args:
        leaf: the leaf's hash (`leaf_hash`).
        index: its place, the first being 0.
        size: leaves of the tree.
        path: as `MerkleTree.inclusion` gives it; of any sender.
        root: of the tree.

    Raises:
        LedgerError: it does not lead from this leaf at this place to this root.

    """
    _within("size", size, 1, (1 << LONGEST_PROOF) - 1)
    _within("index", index, 0, size - 1)
    _well_formed(path, LONGEST_PROOF)
    found, place, last = leaf, index, size - 1
    for sibling in path:
        if last == 0:
            raise LedgerError(f"inclusion of entry {index + 1}: the proof is too long")
        if place & 1 or place == last:
            found = node_hash(sibling, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        place, last = place >> 1, last >> 1
    if last or found != root:
        raise LedgerError(f"inclusion of entry {index + 1}: the proof does not lead to the root of {size} entries")


def verify_consistency(old: int, old_root: bytes, size: int, root: bytes, path: Sequence[bytes]) -> None:
    """Check that a tree begins with a smaller one (RFC 9162, 2.1.4.2).

    Args:
        old: leaves of the smaller tree.
        old_root: its root.
        size: leaves of the larger.
        root: its root.
        path: as `MerkleTree.consistency` gives it; of any sender.

    Raises:
        LedgerError: the proof does not show it.

    """
    _within("size", size, 0, (1 << LONGEST_PROOF) - 1)
    _within("old size", old, 0, size)
    _well_formed(path, LONGEST_PROOF + 1)
    what = f"{size} entries do not begin with the {old} that were seen before"
    if old in (0, size):
        known = EMPTY_ROOT if old == 0 else root
        if path or old_root != known:
            raise LedgerError(what)
        return
    hashes = [old_root, *path] if old & (old - 1) == 0 else list(path)
    if not hashes:
        raise LedgerError(f"{what}: the proof is empty")
    place, last = old - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    smaller = larger = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise LedgerError(f"{what}: the proof is too long")
        if place & 1 or place == last:
            smaller, larger = node_hash(sibling, smaller), node_hash(sibling, larger)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            larger = node_hash(larger, sibling)
        place, last = place >> 1, last >> 1
    if last or smaller != old_root or larger != root:
        raise LedgerError(what)


def _split(width: int) -> int:
    """Return the largest power of two below a width of at least two."""
    return 1 << ((width - 1).bit_length() - 1)


def _within(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise LedgerError(f"Merkle tree: {what} is {value} (allowed: {least} to {most})")


def _well_formed(path: Sequence[bytes], longest: int) -> None:
    if len(path) > longest or any(len(part) != _WIDTH for part in path):
        raise LedgerError(f"Merkle proof: is malformed (allowed: at most {longest} hashes of {_WIDTH} bytes)")
