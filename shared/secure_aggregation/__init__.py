"""Secure aggregation: the server learns the sum over the sites of a round, and nothing else about any of them.

The protocol is that of Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine Learning",
CCS), in its form for a server that may lie. Flower's own (SecAgg+) is for its older stack alone, and its keys are not
signed. n sites are named in a `Session`; m = `minimum_survivors` of them are needed, t = `colluding` may tell the
server all they know. All exchanges go through the server; a site answers each message of a session once.

0. **Keys.** Each site makes two X25519 key pairs, one for masks and one for sealing, a secret seed, and a chain of
   hashes whose links are the keys of the noise that may turn out superfluous (`removal`); it signs both public keys, a
   hash of the seed and the chain's public end, with the session, by its node key.
1. **Shares.** Each site gets everybody's signed keys, holds them against the node keys in its *own* site.yaml, splits
   its seed, its masking key and every link by Shamir's scheme (m shares needed) and seals each share for one peer.
2. **Masked input.** Each site gets the shares that the others sealed for it, with the round's order. It charges, trains
   and adds to its noised integers, modulo 2^bits: the removable noise, a mask from its seed, and for each peer a mask
   from their common key, which one of the two adds and the other subtracts.
3. **Survivors.** The server names the sites whose vectors came. Each signs that list, with what it saw before, once.
4. **Unmasking.** Whoever is shown m signatures on the list that it signed itself gives its shares of the survivors'
   *seeds* and of the others' masking *keys*, never both of one site, and of the one *link* of the survivors' chains
   that opens what is superfluous with so many of them. The server takes off the survivors' own masks, what is left of
   masks shared with sites that went missing, and the superfluous noise. A site that dies after its vector left is a
   survivor: m others have the shares.

**What a lying server gets.** To take a site's vector apart it needs the seed *and* the masking keys of one site, and
to take more noise off than a list allows, a link further up: hence m shares of either, hence two lists with m
signatures each. Honest sites sign one list, so of n - t of them at least 2 (m - t) would be needed: `Session` demands
2 m > n + t. With t < m the colluding sites' own shares are too few, and a link tells nothing of those above it
(SHA-256). So one list decides everything. Were a site on it that sent no vector, to make the list long and the noise
small, its masks would stay in the sum: only its own masking key, which nobody reveals of a survivor, takes them off.
Were a site missing from it that sent one, its vector would stay under its seed. In whatever can be unmasked *all*
honest sites of the list are therefore added up, each with the noise that a list of this length leaves it. Masks are
AES-256 in counter mode under keys from HKDF: without a site's masking keys and seed its vector is uniform. Scales of
the noise are part of the session that everybody signs, and a site holds them against its order before it charges.

**What it does not do.** The server cannot look at single vectors, so nothing of `server.admission` bounds what one
site sends: a site that lies about its sum or its noise spoils the round, and any site can make a round fail. The sum
over the honest sites is what the server and the colluding ones learn; what hides a patient in it is the noise
(`wardpose.shared.privacy.distributed`).
"""
