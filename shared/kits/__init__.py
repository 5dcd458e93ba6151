"""Archives of a federation: what `wardpose provision` packs for each machine, and an installation checks and places.

An archive is a tar file of one folder. `SHA256SUMS` in it names every other file, and `SHA256SUMS.sig` signs that list
with the federation's own key, whose public half is `signer.pem`: nothing can be added, left out or changed. Whose key
it is, only people can tell each other; they compare its fingerprint, `sha256sum signer.pem`.
"""
