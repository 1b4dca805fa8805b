"""The process that answers: low priority, one thread, and the backbone stays loaded from one message to the next.

`python -m client.door.worker FD SETTINGS`: reads a message and the memory of its secure session from the socket FD,
writes back the answer and that memory, and ends when the socket does. Killed at any moment it has sent nothing,
because only the process at the other end sends; what the ledger says was spent is spent.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from flwr.app import RecordDict

from client.door import wire
from client.door.delivery import incoming
from client.limits import Limits
from client.profile import Profile
from client.store import Store
from shared.artifacts import load_catalogue
from shared.catalogue import Catalogue
from shared.errors import HomerankError
from shared.protocol import encode_refusal

log = logging.getLogger("homerank.client")

#: Added to the process's niceness; training yields to whatever else the machine does.
NICENESS = 10


@dataclass
class Answerer:
    """Answers for one profile. Store and ledger are opened for each message, so that no behaviour waits in memory."""

    profile: Profile
    limits: Limits
    _catalogue: tuple[tuple[int, int], Catalogue] | None = field(default=None, repr=False)

    def answer(self, content: RecordDict, memory: RecordDict) -> RecordDict:
        """See `Device.answer`; memory changes in place. A delivered adapter waits in `delivery.incoming`."""
        try:
            from client.device import Device

            store = Store(self.profile.events)
            try:
                ledger = self.profile.open_ledger()
                try:
                    device = Device(
                        0,
                        store=store,
                        ledger=ledger,
                        catalogue=self._known_catalogue(),
                        limits=self.limits,
                        adapter_folder=incoming(self.profile.adapter),
                    )
                    return device.answer(content, memory=memory)
                finally:
                    ledger.close()
            finally:
                store.close()
        except HomerankError as error:
            log.warning("refused: %s", error)  # for this device's owner; what it says stays here
        except Exception as error:  # noqa: BLE001  # the text of whatever gets out stays here too
            log.warning("failed: %s", type(error).__name__)
        return encode_refusal("failed")

    def _known_catalogue(self) -> Catalogue:
        """Read again only when the file is another one: a runtime belongs to a catalogue."""
        facts = self.profile.catalogue.stat()
        key = (facts.st_mtime_ns, facts.st_size)
        if self._catalogue is None or self._catalogue[0] != key:
            self._catalogue = (key, load_catalogue(self.profile.catalogue))
        return self._catalogue[1]


def main() -> None:
    """Answer until the other end closes."""
    os.nice(NICENESS)
    channel, settings = socket.socket(fileno=int(sys.argv[1])), json.loads(sys.argv[2])
    Thread(target=_end_with, args=(channel.fileno(),), daemon=True).start()
    import torch

    torch.set_num_threads(1)
    answerer = Answerer(Profile(Path(settings["profile"])), Limits(**settings["limits"]))
    while True:
        try:
            content, memory = (wire.unpack(wire.read(channel, timeout=None)) for _ in range(2))
        except (EOFError, OSError):
            return
        reply = answerer.answer(content, memory)
        for records in (reply, memory):
            wire.write(channel, wire.pack(records), timeout=None)


def _end_with(channel: int) -> None:
    """End this process as soon as nobody is at the other end, also in the middle of training."""
    poll = select.poll()
    poll.register(channel, getattr(select, "POLLRDHUP", 0))
    poll.poll()
    os._exit(0)


if __name__ == "__main__":
    main()
