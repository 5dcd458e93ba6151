"""Secure aggregation: the server learns the sum over the sites of a round, and nothing else about any of them.

The protocol is that of Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine Learning",
CCS), in its form for a server that may lie. Flower's own (SecAgg+) is for its older stack alone, and its keys are not
signed. n sites are named in a `Session`; m = `minimum_survivors` of them are needed, t = `colluding` may tell the
server all they know. All exchanges go through the server; a site answers each message of a session once.

0. **Keys.** Each site makes two X25519 key pairs, one for masks and one for sealing, and a secret seed; it signs both
   public keys and a hash of the seed, with the session, by its node key.
1. **Shares.** Each site gets everybody's signed keys, holds them against the node keys in its *own* site.yaml, splits
   its seed and its masking key by Shamir's scheme (m shares needed) and seals each share for one peer.
2. **Masked input.** Each site gets the shares that the others sealed for it, with the round's order. It charges, trains
   and adds to its noised integers, modulo 2^bits: a mask from its seed, and for each peer a mask from their common key,
   which one of the two adds and the other subtracts.
3. **Survivors.** The server names the sites whose vectors came. Each signs that list, with what it saw before, once.
4. **Unmasking.** Whoever is shown m signatures on the list that it signed itself gives its shares of the survivors'
   *seeds* and of the others' masking *keys*, never both of one site. The server takes off the survivors' own masks, and
   what is left of masks shared with sites that went missing.

**What a lying server gets.** To take a site's vector apart it needs the seed *and* the masking keys of one site, hence
m shares of each, hence two lists with m signatures each. Honest sites sign one list, so of n - t of them at least
2 (m - t) would be needed: `Session` demands 2 m > n + t. With t < m the colluding sites' own shares are too few. Masks
are AES-256 in counter mode under keys from HKDF: without a site's masking keys and seed its vector is uniform.

**What it does not do.** The server cannot look at single vectors, so nothing of `server.admission` bounds what one
site sends: a site that lies about its sum spoils the round, and any site can make a round fail. The sum over the
honest sites is what the server and the colluding ones learn; what hides a patient in it is the noise
(`wardpose.shared.privacy.distributed`).
"""
