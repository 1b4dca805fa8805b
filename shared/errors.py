"""Everything homerank raises on purpose.

::

    HomerankError                 exit code 2 at a command line, one line, no traceback
      DataError                   a data set or one row of it is not what the loader expects
      ConfigError                 an unknown key, a bad value, a combination that breaks a guarantee
      CatalogueError              an unknown item or an unusable catalogue
      BackboneError               a backbone that is missing, changed or unsupported
      AdapterError                an adapter file or state that does not fit
      ProtocolError               a message that breaks the contract between device and server
      PrivacyError                a calculation of epsilon or noise that has no answer
        BudgetError               the next release would overspend a budget
      RunError                    a run folder that cannot be opened, resumed or written
      DeploymentError             a server or device process that cannot be set up or reached

A message says what was found, what was expected and what to do about it.
"""

from __future__ import annotations

from pathlib import Path


class HomerankError(Exception):
    """Base of all errors a user can act on."""

    exit_code = 2


class DataError(HomerankError):
    """A data set is not what the loader expects.

    Build it with `DataError.at` when a place in a file is known, so that the message names
    file, line, column, what was found and what was expected.
    """

    @classmethod
    def at(
        cls,
        path: str | Path,
        *,
        found: str,
        expected: str,
        line: int | None = None,
        column: str | int | None = None,
        remedy: str = "",
    ) -> DataError:
        """Describe one place in a file. `line` counts from 1; `column` is a name or a 1-based position."""
        where = str(path)
        if line is not None:
            where += f", line {line}"
        if column is not None:
            where += f", column {column}"
        text = f"{where}: found {found}; expected {expected}"
        return cls(f"{text}. {remedy}" if remedy else text)


class ConfigError(HomerankError):
    """A configuration that cannot be used."""


class CatalogueError(HomerankError):
    """An unknown item id, or a catalogue without usable text."""


class BackboneError(HomerankError):
    """A backbone that is missing, altered or of a family that is not supported."""


class AdapterError(HomerankError):
    """Adapter parameters that do not fit the model, or a damaged adapter folder."""


class ProtocolError(HomerankError):
    """A message between device and server that breaks the contract.

    `code` is the only thing a device ever says about it to the server.
    """

    def __init__(self, message: str, *, code: str = "bad-message") -> None:
        super().__init__(message)
        self.code = code


class PrivacyError(HomerankError):
    """A privacy calculation without an answer (for example an unreachable epsilon)."""


class BudgetError(PrivacyError):
    """The next release would spend more than the budget."""


class RunError(HomerankError):
    """A run folder that cannot be opened, resumed or written."""


class DeploymentError(HomerankError):
    """A server or device process that cannot be set up or reached."""
