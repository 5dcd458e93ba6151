import numpy as np
import pytest

from wardpose.shared.anonymize import key_exchange, keyed_code
from wardpose.shared.anonymize.generators import BITS
from wardpose.shared.errors import DataError, RecoveryError

SECRET = bytes(range(32))
PUBLIC = key_exchange.public_of(SECRET)
OTHER = bytes(range(1, 33))


def example(height=64, width=48, seed=0):
    rng = np.random.default_rng(seed)
    cover = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    blocks = -(-height // 4), -(-width // 4)
    symbols = np.stack([rng.integers(0, 2**bits, blocks, dtype=np.uint8) for bits in BITS])
    return cover, symbols


@pytest.mark.parametrize("size", [(64, 48), (131, 117), (256, 192)])
def test_the_key_reads_back_what_was_written_and_the_cover_stays(size):
    cover, symbols = example(*size)
    frame = keyed_code.conceal(cover, symbols, PUBLIC)
    np.testing.assert_array_equal(frame >> 2, cover >> 2)
    np.testing.assert_array_equal(keyed_code.reveal(frame, SECRET), symbols)


def test_a_small_odd_frame_drops_the_least_important_symbols():
    cover, symbols = example(37, 33)
    back = keyed_code.reveal(keyed_code.conceal(cover, symbols, PUBLIC), SECRET)
    same = [(back[s] == symbols[s]).all() for s in range(len(BITS))]
    assert all(same[:12])
    assert not all(same)


def test_a_frame_without_room_is_refused():
    cover, symbols = example(5, 5)
    with pytest.raises(DataError, match="5 x 5"):
        keyed_code.conceal(cover, symbols, PUBLIC)


def test_two_writings_of_one_frame_share_no_keystream():
    cover, symbols = example()
    first, second = (keyed_code.conceal(cover, symbols, PUBLIC) & 3 for _ in range(2))
    assert 0.2 < (first == second).mean() < 0.3  # chance for two random bits


def test_low_bits_look_random_even_for_a_constant_picture():
    cover = np.full((256, 192, 3), 128, np.uint8)
    symbols = np.zeros((len(BITS), 64, 48), np.uint8)
    low = keyed_code.conceal(cover, symbols, PUBLIC) & 3
    share = np.bincount(low.reshape(-1), minlength=4) / low.size
    np.testing.assert_allclose(share, 0.25, atol=0.01)


def test_a_wrong_key_is_named_and_gives_noise():
    cover, symbols = example()
    frame = keyed_code.conceal(cover, symbols, PUBLIC)
    with pytest.raises(RecoveryError, match="wrong key") as caught:
        keyed_code.reveal(frame, OTHER)
    assert SECRET.hex() not in str(caught.value)
    noise = keyed_code.reveal_unverified(frame, OTHER)
    assert (noise[0] == symbols[0]).mean() < 0.05
    np.testing.assert_array_equal(keyed_code.reveal_unverified(frame, SECRET), symbols)


@pytest.mark.parametrize("bit", [0, 7])
def test_a_changed_frame_is_refused(bit):
    cover, symbols = example()
    frame = keyed_code.conceal(cover, symbols, PUBLIC)
    frame[40, 20, 1] ^= np.uint8(1 << bit)
    with pytest.raises(RecoveryError, match="changed"):
        keyed_code.reveal(frame, SECRET)


def test_a_plain_picture_has_no_code():
    cover, _ = example()
    with pytest.raises(RecoveryError, match="no recoverable code"):
        keyed_code.reveal(cover, SECRET)
