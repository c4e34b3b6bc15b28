"""Text-to-SQL in turns of self-refinement: answers repeat the schema and one another, as those of agents do."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parsimony.benchmarks.copying import CopyingContinuation
from parsimony.interfaces import Item

ASSET = "spider_dev"
TEXT, NUMBER = ("text", "char", "varchar"), ("int", "double", "float", "decimal")


@dataclass(frozen=True)
class Table:
    """A table of a schema.

    Attributes
    ----------
    columns : dict of str to str
        Name -> type, without the type's length.
    links : tuple of (column, other table, its column)
        Foreign keys.
    keys : frozenset of str
        Columns that identify rows, here or elsewhere.
    """

    name: str
    columns: dict[str, str]
    links: tuple[tuple[str, str, str], ...]
    keys: frozenset[str]

    def statement(self) -> str:
        """As much of its CREATE TABLE statement as a question needs, on one line."""
        parts = [f"{name} {kind}" for name, kind in self.columns.items()]
        parts += [f"FOREIGN KEY ({ours}) REFERENCES {other}({theirs})" for ours, other, theirs in self.links]
        return f"CREATE TABLE {self.name} ({', '.join(parts)});"

    def of(self, kinds: tuple[str, ...]) -> list[str]:
        """Columns of some types that are no keys."""
        plain = re.compile(r"[A-Za-z]\w*")
        columns = [name for name, kind in self.columns.items() if kind in kinds and name not in self.keys]
        return [name for name in columns if plain.fullmatch(name) and not re.search(r"(?i)(_|^)(id|code)$", name)]


class AgenticSql(CopyingContinuation):
    """Questions on the databases of Spider's development set: write a query, correct it, return it as JSON.

    Category ``spider`` are the questions of the package; those of the others are made here from the schemas by
    template (their source says so).  All questions on one database follow one another.  Nothing is executed.

    Parameters
    ----------
    characters : int
        Databases whose schema is longer are left out.
    """

    categories = dict.fromkeys(("spider", "count", "filter", "join"), (ASSET,))

    def items(self, paths, seed: int) -> list[Item]:
        if ASSET not in paths:
            return []
        schemas = databases(paths[ASSET] / "spider_dev.sql")
        names = sorted(name for name, tables in schemas.items() if len(_schema(tables)) <= self.characters)
        place = {names[at]: rank for rank, at in enumerate(np.random.default_rng(seed).permutation(len(names)))}
        chosen = []
        for category in self.categories:
            pool = []
            for n, (database, question, source) in enumerate(QUESTIONS[category](paths[ASSET], schemas)):
                if database in place:
                    item = Item(f"{category}_{n:05d}", category, turns(schemas[database], question), source)
                    pool.append((place[database], item))
            # Stable: questions on one database keep their order.
            chosen += sorted(pool, key=lambda each: each[0])[: self.count]
        return [item for _, item in sorted(chosen, key=lambda each: each[0])]


def turns(tables: dict[str, Table], question: str) -> tuple[str, str, str]:
    """The requests of one workflow: write a query (two examples show how), correct it, return it as JSON."""
    table = next(iter(tables.values()))
    column = list(table.columns)[1]
    examples = {
        f"How many rows does {table.name} have?": f"SELECT count(*) FROM {table.name};",
        f"List every {column} of {table.name} in order.": f"SELECT {column} FROM {table.name} ORDER BY {column};",
    }
    shown = "\n\n".join(f"Question: {asked}\nSQL: {answer}" for asked, answer in examples.items())
    return (
        f"Write SQL for these tables.\n\n{_schema(tables)}\n\n{shown}\n\nQuestion: {question}\nSQL:",
        "Are all tables and columns of this query in the schema? Write the corrected query.\nSQL:",
        f'Put the query into this JSON.\n{{"question": {json.dumps(question)}, "sql": "..."}}',
    )


def databases(dump: Path) -> dict[str, dict[str, Table]]:
    """Database -> table -> what a MySQL dump says about it."""
    found = {}
    for part in dump.read_text(encoding="utf-8").split("\nUSE `")[1:]:
        tables = found[part[: part.index("`")]] = {}
        for name, body in re.findall(r"^CREATE TABLE `(\w+)` \(\n(.*?)\n\) ENGINE", part, re.S | re.M):
            columns = dict(re.findall(r"^  `([^`]+)` (\w+)", body, re.M))
            links = re.findall(r"FOREIGN KEY \(`([^`]+)`\) REFERENCES `(\w+)` \(`([^`]+)`\)", body)
            keys = re.findall(r"PRIMARY KEY \((.*?)\)", body)
            named = {key for text in keys for key in re.findall(r"`([^`]+)`", text)} | {link[0] for link in links}
            tables[name] = Table(name, columns, tuple(dict.fromkeys(links)), frozenset(named))
    return found


def _schema(tables: dict[str, Table]) -> str:
    return "\n".join(table.statement() for table in tables.values())


def _spider(path: Path, schemas) -> Iterator[tuple[str, str, str]]:
    with open(path / "sql_queries.csv", encoding="utf-8", newline="") as file:
        for n, row in enumerate(csv.DictReader(file)):
            yield row["db"], row["query"], f"{ASSET} sql_queries.csv row {n}"


def _count(path: Path, schemas) -> Iterator[tuple[str, str, str]]:
    for database, tables in schemas.items():
        for table in tables.values():
            for column in [name for name in table.of(TEXT) if "name" not in name.lower()][:1]:
                question = f"How many rows of {table.name} are there for each {column}?"
                yield database, question, _own(database, table)


def _filter(path: Path, schemas) -> Iterator[tuple[str, str, str]]:
    for database, tables in schemas.items():
        for table in tables.values():
            for shown, compared in zip(table.of(TEXT)[:1], table.of(NUMBER)[:1], strict=False):
                question = (
                    f"List the {shown} of every row of {table.name} whose {compared} is above the average {compared}."
                )
                yield database, question, _own(database, table)


def _join(path: Path, schemas) -> Iterator[tuple[str, str, str]]:
    for database, tables in schemas.items():
        for table in tables.values():
            for _, other, _ in table.links:
                for ours, theirs in zip(table.of(TEXT + NUMBER)[:1], tables[other].of(TEXT)[:1], strict=False):
                    question = (
                        f"Show the {ours} of every row of {table.name} together with the {theirs} of its {other}."
                    )
                    yield database, question, _own(database, table)


def _own(database: str, table: Table) -> str:
    return f"{ASSET} {database}.{table.name}, own question"


QUESTIONS = {"spider": _spider, "count": _count, "filter": _filter, "join": _join}
