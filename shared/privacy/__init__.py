"""The claim: what a patient is, how sums are bounded, sampled and noised, what that costs, and the record of it."""
