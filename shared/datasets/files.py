"""Reading files into text columns that remember their lines, so that every complaint can name a place."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from shared.errors import DataError


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of raw text in file order. `lines[i]` is the line (parquet: row) where row i begins, from 1."""

    path: Path
    lines: Sequence[int]
    columns: Mapping[str, Sequence[str]]

    def __len__(self) -> int:
        return len(self.lines)

    def error(self, row: int, column: str, *, found: str, expected: str, remedy: str = "") -> DataError:
        """A DataError that names the place of one cell."""
        return DataError.at(
            self.path, line=self.lines[row], column=column, found=found, expected=expected, remedy=remedy
        )

    def require(self, *names: str) -> None:
        """Refuse a table that lacks one of these columns."""
        for name in names:
            if name not in self.columns:
                raise DataError.at(
                    self.path,
                    line=1,
                    column=name,
                    found=f"only the columns {', '.join(self.columns) or '(none)'}",
                    expected=f"a column named {name}",
                )


def read_text(path: Path, *, encoding: str = "utf-8") -> str:
    """A whole text file. A UTF-8 byte-order mark is dropped; DataError if it is missing or undecodable."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError.at(path, found=error.strerror or "an unreadable file", expected="a readable file") from None
    try:
        return raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line_start = raw.rfind(b"\n", 0, error.start) + 1
        raise DataError.at(
            path,
            line=raw.count(b"\n", 0, error.start) + 1,
            column=error.start - line_start + 1,
            found=f"byte 0x{raw[error.start]:02x}",
            expected=f"{encoding} text",
            remedy=f"Save the file as {encoding}",
        ) from None


def read_lines(path: Path, *, encoding: str = "utf-8") -> list[str]:
    """Lines without their ends, blank ones at the end of the file left out. DataError if none remain."""
    text = read_text(path, encoding=encoding)
    lines = text.replace("\r\n", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError.at(path, line=1, found="an empty file", expected="at least one row")
    return lines


def read_delimited(path: Path, *, separator: str, names: Sequence[str], encoding: str = "latin-1") -> Table:
    """A file without header or quoting, the MovieLens `.dat` way. Every line has `len(names)` fields."""
    lines = read_lines(path, encoding=encoding)
    width = len(names)
    for number, line in enumerate(lines, start=1):
        if line.count(separator) != width - 1:
            raise DataError.at(
                path,
                line=number,
                found=_fields(line.count(separator) + 1),
                expected=f"{_fields(width)} separated by {separator!r}: {', '.join(names)}",
            )
    # one split of the whole text: a million small lists cost five times as much
    cells = "\n".join(lines).replace(separator, "\n").split("\n")
    columns = {name: cells[position::width] for position, name in enumerate(names)}
    return Table(path, range(1, len(lines) + 1), columns)


def read_table(path: Path) -> Table:
    """A csv, jsonl or parquet file as text columns; DataError if it is malformed or holds no rows."""
    reader = {".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}[path.suffix]
    table = reader(path)
    if not len(table):
        raise DataError.at(path, line=1, found="no rows", expected="at least one row")
    return table


def read_csv(path: Path) -> Table:
    """A comma-separated file with a header, quoted as RFC 4180 says. Blank lines are skipped."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    previous = 0
    try:
        for row in reader:
            begins, previous = previous + 1, reader.line_num
            if not row:
                continue
            if not header:
                header = _header(path, begins, row)
                continue
            if len(row) != len(header):
                raise DataError.at(
                    path,
                    line=begins,
                    found=_fields(len(row)),
                    expected=f"{_fields(len(header))} as in the header",
                )
            rows.append(row)
            lines.append(begins)
    except csv.Error as error:
        raise DataError.at(
            path, line=previous + 1, found=f"malformed csv ({error})", expected="a quoted csv row"
        ) from None
    if not header:
        raise DataError.at(path, line=1, found="an empty file", expected="a header line")
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    return Table(path, lines, dict(zip(header, columns, strict=True)))


def read_jsonl(path: Path) -> Table:
    """One JSON object per line. A key that a line leaves out is an empty cell; blank lines are skipped."""
    rows: list[dict[str, str]] = []
    lines: list[int] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError.at(path, line=number, found=f"invalid JSON ({error})", expected="a JSON object") from None
        if not isinstance(row, dict):
            raise DataError.at(path, line=number, found=f"a JSON {type(row).__name__}", expected="a JSON object")
        rows.append({key: _cell(path, number, key, value) for key, value in row.items()})
        lines.append(number)
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(path, lines, {name: [row.get(name, "") for row in rows] for name in names})


def read_parquet(path: Path) -> Table:
    """A parquet file; needs the optional package pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError.at(
            path,
            found="a parquet file without the package pyarrow",
            expected="pyarrow",
            remedy="Run: pip install pyarrow (or pip install 'homerank[simulation]'), or convert to csv",
        ) from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise DataError.at(path, found=f"unreadable parquet ({reason})", expected="a parquet file") from None
    columns = {
        name: [_cell(path, row, name, value) for row, value in enumerate(table[name].to_pylist(), start=1)]
        for name in table.column_names
    }
    return Table(path, range(1, table.num_rows + 1), columns)


def _header(path: Path, line: int, names: list[str]) -> list[str]:
    """Column names, trimmed; refused when one is empty or appears twice."""
    trimmed = [name.strip() for name in names]
    for position, name in enumerate(trimmed, start=1):
        if not name or name in trimmed[: position - 1]:
            problem = f"the column name {name!r} twice" if name else "an empty column name"
            raise DataError.at(path, line=line, column=position, found=problem, expected="distinct column names")
    return trimmed


def _cell(path: Path, line: int, column: str, value: Any) -> str:
    """A typed cell as text: nothing and NaN are empty, lists are joined with |, dates are ISO 8601."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list):
        return "|".join(_cell(path, line, column, part) for part in value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, str | int | float):
        return str(value)
    raise DataError.at(
        path,
        line=line,
        column=column,
        found=f"a value of type {type(value).__name__}",
        expected="text, a number or a list",
    )


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"
