"""The training door: a local socket that takes a round's question and gives back a privatised update or a code.

Flower starts a process for every message, as whichever user runs the SuperNode, and runs in it what a server shipped.
All that such a process reaches is this socket. Behind it, in the order of a message:

| step | file |
|---|---|
| one question and one answer, as bytes | `wire` |
| is there time, permission and anything left to give? | `gate` |
| the answer, in a process that can be killed and holds the backbone between rounds | `worker`, `process` |
| a delivered adapter takes the place of the last one | `delivery` |
| what leaves is written down, then it leaves | `sent`, `server` |

Nothing in this package imports torch, except the worker once it runs.
"""
