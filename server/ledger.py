"""The server's ledger: every run on these people, and every release, written before it happens.

The head of the ledger goes into each checkpoint, so that a checkpoint ahead of its ledger is refused even where
the ledger and its witness were put back together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import PrivacyError
from shared.privacy.accounting import Release
from shared.privacy.chain import Chain, Head
from shared.privacy.ledger import read_releases

_SERVER = 0  # a server's file has one owner


class ServerLedger:
    """Runs and releases in one hash-chained SQLite file; one file for all runs on the same people.

    durable, witness: as in `Chain`. Every method raises PrivacyError when the ledger is damaged, lost or behind its
    witness.
    """

    def __init__(self, path: str | Path, *, durable: bool = True, witness: str | Path | None = None) -> None:
        self._chain = Chain(path, durable=durable, witness=witness)

    def open_run(self, run: str, facts: Mapping[str, Any]) -> Head:
        """Write that a run begins, with what stays the same when it resumes (population, settings fingerprint).

        Writing it again changes nothing; PrivacyError when the run was opened with other facts.
        """
        known = next((e["facts"] for e in self.entries() if e["kind"] == "run" and e["run"] == run), None)
        if known is not None and known != json.loads(json.dumps(dict(facts))):
            raise PrivacyError(
                f"found run {run} in the ledger with other settings or devices; put its checkpoint back, or begin a new"
                " run in another folder (--out)"
            )
        return self._write([run], {"kind": "run", "run": run, "facts": dict(facts)})

    def charge(self, *, run: str, phase: str, round: int, facts: Mapping[str, Any]) -> Head:
        """Write a release before it happens; returns the head that its checkpoint carries.

        facts: `releases` (a list of `dataclasses.asdict(Release)`, one per unit) and whatever the statement names:
        planned cohort K, devices asked, trust, sampling, mechanism. JSON values only.

        | case | result |
        |---|---|
        | a new (run, phase, round) | written; its head |
        | the run's newest release again, as after a crash before its checkpoint | nothing written; the newest head |
        | an earlier release of the run again (an old checkpoint put back) | PrivacyError, nothing written |
        | the same (run, phase, round) with other facts | PrivacyError, nothing written |
        | facts without readable releases | PrivacyError, nothing written |
        | the disk is full, the file locked or read-only | PrivacyError, nothing may be released |
        """
        if not read_releases(facts):
            raise PrivacyError(f"found no release in the facts of {phase} round {round}; a round without one is free")
        done = [(entry["phase"], entry["round"]) for entry in self._released(run)]
        if (phase, round) in done[:-1]:  # done again it would be a second release, with other noise, for nothing
            raise PrivacyError(
                f"the checkpoint is behind its ledger: {phase} round {round} of this run was released, and after it"
                f" {done[-1][0]} round {done[-1][1]}. Put the newest checkpoint back, or begin a new run"
            )
        entry = {"kind": "release", "run": run, "phase": phase, "round": round, "facts": dict(facts)}
        return self._write([run, phase, round], entry)

    def entries(self) -> list[dict[str, Any]]:
        """Everything written, oldest first: `kind` (run or release), `run`, `facts`; releases also `phase`, `round`."""
        return [row.entry for row in self._chain.rows(_SERVER)]

    def runs(self) -> list[str]:
        """Names of all runs, in the order in which they began."""
        return list(dict.fromkeys(entry["run"] for entry in self.entries()))

    def releases(self, run: str | None = None) -> list[Release]:
        """What was released by one run, or by all runs together, oldest first."""
        return [release for entry in self._released(run) for release in read_releases(entry["facts"])]

    def head(self) -> Head:
        """The newest row; `EMPTY` before the first."""
        return self._chain.head(_SERVER)

    def require(self, head: Head) -> None:
        """Refuse (PrivacyError) a checkpoint whose head is not in this ledger."""
        self._chain.require(_SERVER, head)

    def close(self) -> None:
        """Close the files."""
        self._chain.close()

    def _released(self, run: str | None) -> list[dict[str, Any]]:
        return [entry for entry in self.entries() if entry["kind"] == "release" and run in (None, entry["run"])]

    def _write(self, name: list[str | int], entry: Mapping[str, Any]) -> Head:
        self._chain.append(_SERVER, key=json.dumps(name), entry=entry)
        return self.head()
