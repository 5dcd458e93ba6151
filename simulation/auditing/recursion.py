"""One run under f-DP: the audit of Mahloujifar, Melis and Chaudhuri (2410.22235, ICML 2025).

Of m canaries, each decided by a fair coin of its own, r are guessed and v of the guesses are right; which are guessed
depends on the output alone. Let p_j be the probability of exactly j right guesses. If the mechanism is f-DP for every
single coin, whatever the others are, then for every j

    sum over i > j of i/m p_i <= F(sum over i >= j of (r - i)/m p_i),    F = 1 - f.                        (1)

*Proof.* Take a canary and fix the other coins. "Its guess is b, and more than j - 1 guesses about the others are right"
is an event of the output: of probability at most F(y) if its coin is b and y if it is not. F is concave, so this
survives averaging over b, over the other coins and over the canaries: a random canary's guess is right and more than j
are right in all, on the left; it is wrong and at least j are right, on the right. A random canary's guess is one of i
right ones with probability i/m.

*The recursion.* Let T_j = P[at least j right], R_j = sum over i >= j of i/m p_i, and W_j the same with r - i. Suppose
T_v = p. Then R_v >= p v/m, and going down from j = v, (1) asks for W_j >= at_least(R_{j+1}). Start from p of mass at v
exactly and give every lower j the least mass that (1) asks for: t, r and w of this greedy distribution. Claim: T_j >=
t_j and R_j >= r_j for all j <= v. If greedy adds nothing at j, both are inherited. If it adds, w_j = at_least(r_{j+1})
<= at_least(R_{j+1}) <= W_j; and sum over i > j of (i - j) p_i, which is the sum of all T_i with i > j, is not smaller
than greedy's; and since i = (i - j) r/(r - j) + (r - i) j/(r - j), R_j is that sum and W_j with positive weights, so
R_j >= r_j; and T_j = (R_j + W_j) m/r >= t_j. So if greedy needs more than all the mass there is, P[at least v right]
is below p; and as greedy for v + 1 is one of the distributions that the claim is about, it needs no less, so that all
larger counts refute f as well: together at significance p.

What (1) allows, and no independent noise does, is that the mechanism is careless about *all* canaries at once, and
rarely. That is what keeps the bound of one run away from the truth: see `steps` for what many runs add.
"""

from wardpose.shared.errors import ConfigError
from wardpose.simulation.auditing.tradeoff import TradeOff


def refuted(trade_off: TradeOff, *, canaries: int, guesses: int, correct: int, significance: float) -> bool:
    """Whether `correct` right ones of `guesses` guesses about `canaries` refute the trade-off function.

    The probability of refuting a true one is at most `significance`.

    Raises:
        ConfigError: not 0 <= correct <= guesses <= canaries, or the significance is not in (0, 1).

    """
    if not 0 <= correct <= guesses <= canaries or guesses < 1 or not 0 < significance < 1:
        raise ConfigError(
            f"audit: {correct} correct of {guesses} guesses of {canaries} canaries at significance {significance}"
        )
    right = significance * correct / canaries
    wrong = significance * (guesses - correct) / canaries
    for count in range(correct - 1, -1, -1):
        needed = trade_off.at_least(right)
        if needed <= wrong:  # nothing is asked for, here and hence further down
            return False
        right += count / (guesses - count) * (needed - wrong)
        wrong = needed
        if right + wrong > guesses / canaries:
            return True
    return False
