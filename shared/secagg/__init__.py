"""Secure aggregation: the server learns the sum of a cohort's vectors and no single one.

SecAgg (Bonawitz et al. 2017, eprint 2017/281) with the sparse neighbour graph of SecAgg+ (Bell et al. 2020, eprint
2020/704), over integers mod 2^32 (`ring`). Every device adds a mask of its own and one mask per neighbour that the
neighbour subtracts (`masks`), and a share of the noise (`skellam`). Four stages (`messages`):

| stage | the server sends | a device answers |
|---|---|---|
| keys | the manifest | two public keys: for sealing shares, for agreeing on masks |
| shares | its neighbours' keys and the threshold t | its secrets in t-of-k shares, one sealed box per neighbour |
| masked | the boxes meant for it, and the parameters | its masked vector |
| unmask | which neighbours' vectors arrived | one share for each: of the own mask, or of the key if it is missing |

What it protects against: a server that follows the protocol and looks at everything, together with fewer than t
neighbours of a device. Devices also refuse what a cheating server would need most: small thresholds, few survivors,
two vectors in one session, both secrets of one neighbour. What it does not: a server that makes up devices or swaps
their public keys (nothing signs them), devices that lie about their vector.
"""
