"""Readable: of one recorded step the few numbers that a log shows, by block or by parameter."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from gradscope.recording.buffer import PLACE, Row
from gradscope.recording.finishing import finish
from gradscope.trace.structure import Structure
from gradscope.trace.table import RecordedTensor
from gradscope.trace.vocabulary import place_of

Detail = Literal["blocks", "parameters"]

_TOTAL = ""
"""Stands for all blocks; no block is called so."""

DETAILS: tuple[Detail, ...] = ("blocks", "parameters")


class Readable:
    """Names ``gradscope/<what>/<where>``, the same at every step; what was not seen is left out."""

    def __init__(self, detail: Detail) -> None:
        self._detail = detail
        self._known: tuple[int, Structure | None] = (0, None)
        self._where: list[str] = []
        """Of each column the block, or the tensor itself."""
        self._leaves: set[int] = set()
        """Columns of outputs that leave their block."""

    def of(
        self, row: Row, columns: Sequence[RecordedTensor], structure: Structure | None
    ) -> dict[str, float]:
        """The numbers of a row that has its values.

        Args:
            row: of the buffer.
            columns: its tensors.
            structure: of the network; None where its forward pass is not seen, and modules stand
                for blocks.

        Returns:
            Name to value: ``grad_norm``, L2 over the parameters of a block; ``update_ratio``, norm
            of their updates / norm of them; ``activation_rms``, of the output that leaves the
            block; ``dead_fraction``, the largest of its outputs; and ``total``.
        """
        if self._known != (len(columns), structure):
            self._known = (len(columns), structure)
            self._place(columns, structure or Structure())
        values, present = finish([row], list(columns))
        table, seen = values[0].tolist(), present[0].nonzero().flatten().tolist()
        told = self._of_outputs([i for i in seen if columns[i].kind == "activation"], table)
        weights = [i for i in seen if columns[i].kind == "weight"]
        return told | self._of_parameters(weights, table, row)

    def _of_outputs(self, columns: list[int], table: list[list[float]]) -> dict[str, float]:
        told: dict[str, float] = {}
        for i in columns:
            rms, dead = table[i][place_of("rms")], table[i][place_of("dead_fraction")]
            if i in self._leaves and not math.isnan(rms):
                told[f"gradscope/activation_rms/{self._where[i]}"] = rms
            if not math.isnan(dead):
                name = f"gradscope/dead_fraction/{self._where[i]}"
                told[name] = max(told.get(name, 0.0), dead)
        return told

    def _of_parameters(
        self, columns: list[int], table: list[list[float]], row: Row
    ) -> dict[str, float]:
        assert row.raw is not None
        raw = row.raw[1:].tolist()
        norms: defaultdict[str, list[float]] = defaultdict(list)
        updates: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        for i in columns:
            update, weight = raw[i][PLACE["update"]], raw[i][PLACE["weight_norm"]]
            for where in (self._where[i], _TOTAL):
                norms[where].append(table[i][place_of("norm")])
                if not math.isnan(update):
                    updates[where].append((update, weight))
        told = {_named("grad_norm", where): math.hypot(*each) for where, each in norms.items()}
        return told | {_named("update_ratio", where): _ratio(p) for where, p in updates.items()}

    def _place(self, columns: Sequence[RecordedTensor], structure: Structure) -> None:
        block_of: dict[str, str] = {}
        leaving: dict[tuple[str, int], str] = {}
        for block in structure.blocks:
            name = _plain(block.name)
            if name in leaving.values():  # the same module again, at another call
                name = f"{name}:{block.call}"
            leaving[block.output, block.call] = name
            for module in block.modules:
                block_of.setdefault(module, name)
        self._where, self._leaves = [], set()
        for i, tensor in enumerate(columns):
            leaves = leaving.get((tensor.module, tensor.call)) if not tensor.output else None
            if self._detail == "parameters":
                self._where.append(_plain(tensor.name))
                self._leaves.add(i)
            else:
                self._where.append(leaves or _around(tensor.module, block_of))
                if leaves is not None and tensor.kind == "activation":
                    self._leaves.add(i)


def _named(what: str, where: str) -> str:
    return f"gradscope/{what}/{where}" if where else f"gradscope/total/{what}"


def _around(module: str, block_of: dict[str, str]) -> str:
    """The block of a module, or of the nearest one around it; the module itself without any."""
    owner = module
    while owner and owner not in block_of:
        owner = owner.rpartition(".")[0]
    return block_of.get(owner) or _plain(module)


def _plain(name: str) -> str:
    """A name of letters, digits and what every log takes: ``cell[3]#1`` as ``cell:3.1``."""
    plain = name.replace("[", ":").replace("]", "").replace("#", ".")
    return "root" if plain in {"", "(root)"} else plain


def _ratio(pairs: list[tuple[float, float]]) -> float:
    update = math.hypot(*(update for update, _ in pairs))
    weight = math.hypot(*(weight for _, weight in pairs))
    if weight:
        return update / weight
    return math.inf if update else 0.0
