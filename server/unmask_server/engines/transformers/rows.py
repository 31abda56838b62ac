"""The running batch: each row's own keys and values, and the chains that rows share.

A row is one sequence being continued. What it was given (all but its last token) lies in a chain.
If enough rows share that chain, it stays where it is and they attend to it together, one matrix
product for all of them; else it is copied in front of the row's own tokens, which is faster for a
few rows. One softmax spans both parts, so the result is the same either way.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray

from unmask_server.engines.transformers.attention import NEVER, Form
from unmask_server.engines.transformers.chains import Chain

_TOGETHER = 4
"""Rows that attend to a chain in place, at least (measured: see bench/transformers_engine.py)."""
_WORTHWHILE = 32
"""Tokens of a chain that are worth it, at least."""
_COLUMNS = 32
"""Room for own tokens grows in steps of this many columns."""


def _in_place(chain: Chain, length: int) -> tuple[Chain, int] | None:
    """Which chain a row could attend to in place, and how many of its tokens, if worth it."""
    if chain.root is not None:
        chain, length = chain.root, min(length, chain.offset)
    return (chain, length) if length >= _WORTHWHILE else None


class Group:
    """Rows that attend to one chain in place, at this step."""

    __slots__ = ("chain", "length", "masks", "rows", "shares")

    def __init__(self, chain: Chain, rows: list[int], shares: NDArray[np.int64]) -> None:
        self.chain = chain
        self.rows = rows
        self.shares = shares[rows]
        self.length = int(self.shares.max())
        self.masks: dict[tuple[int | None, int], torch.Tensor | None] = {}
        """By window and query heads a kv head."""

    def forget_moving_masks(self) -> None:
        """Those with a window change with every step."""
        for key in [key for key in self.masks if key[0] is not None]:
            del self.masks[key]


class Rows:
    """Rows ``0`` to ``count - 1`` run; leaving rows are replaced by the last one."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.count = 0
        self._device = device
        self._allocated = (0, 0)
        """Rows and columns that there is memory for."""
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        self._own = np.zeros(capacity, np.int64)
        """Tokens in the row's own columns."""
        self._share = np.zeros(capacity, np.int64)
        """Tokens that the row takes from its chain in place."""
        self._chain: list[Chain | None] = [None] * capacity
        self._masks: dict[int | None, torch.Tensor] = {}
        self._groups: list[Group] | None = None
        self._order: torch.Tensor | None = None

    @property
    def positions(self) -> NDArray[np.int64]:
        """Where each row's next token stands, shape (count,)."""
        n = self.count
        return self._own[:n] + self._share[:n]

    def own_tokens(self) -> NDArray[np.int64]:
        """Tokens in each row's own columns, shape (count,)."""
        return self._own[: self.count].copy()

    def add(self, places: list[tuple[Chain, int] | None]) -> None:
        """Let rows begin, each after the given number of tokens of a chain (None: after none)."""
        roots = [place and _in_place(*place) for place in places]
        sharing = Counter(root for root, _ in filter(None, roots))
        for chain in self._chain[: self.count]:
            if chain is not None and chain in sharing:
                sharing[chain] += 1
        self._reserve(self.count + len(places), 1)
        for place, root in zip(places, roots, strict=True):
            row = self.count
            self.count += 1
            self._own[row] = self._share[row] = 0
            self._chain[row] = None
            if root is not None and sharing[root[0]] >= _TOGETHER:
                self._chain[row], self._share[row] = root
                root[0].users += 1
            if place is not None:
                self._copy(row, place[0], int(self._share[row]), place[1])
        self._groups = None

    def drop(self, row: int) -> None:
        """Let a row leave; the last row takes its place."""
        chain = self._chain[row]
        if chain is not None:
            chain.users -= 1
        last = self.count - 1
        if row != last:
            own = int(self._own[last])
            for store in (self._keys, self._values):
                for tensor in store.values():
                    tensor[row, :, :own] = tensor[last, :, :own]
            self._own[row], self._share[row] = self._own[last], self._share[last]
            self._chain[row] = self._chain[last]
        self._chain[last] = None
        self.count = last
        self._groups = None
        if not last:
            self._release()

    def clear(self) -> None:
        """Let all rows leave, and give their memory back."""
        for row in reversed(range(self.count)):
            self.drop(row)
        self._release()

    def _release(self) -> None:
        self._keys.clear()
        self._values.clear()
        self._allocated = (0, 0)

    def prepare(self) -> None:
        """Get ready for a pass in which each row adds one token."""
        if self._groups is None:
            members: dict[Chain, list[int]] = {}
            for row in range(self.count):
                chain = self._chain[row]
                if chain is not None:
                    members.setdefault(chain, []).append(row)
            self._groups = [Group(chain, rows, self._share) for chain, rows in members.items()]
            order = [row for group in self._groups for row in group.rows]
            self._order = torch.tensor(order, device=self._device) if order else None
        n = self.count
        self._at_row = torch.arange(n, device=self._device)
        self._at_column = torch.from_numpy(self._own[:n].copy()).to(self._device)
        self._position = torch.from_numpy(self.positions).to(self._device)
        self._width = int(self._own[:n].max()) + 1
        self._masks.clear()
        for group in self._groups:
            group.forget_moving_masks()
        self._reserve(n, self._width)

    def advance(self) -> None:
        """The pass has been made: each row has one token more."""
        self._own[: self.count] += 1

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, form: Form
    ) -> torch.Tensor:
        """See `Plan`; token i of the pass belongs to row i."""
        n, heads = self.count, key.shape[0]
        keys, values = self._store(layer, key, value)
        keys[self._at_row, :, self._at_column] = key.transpose(0, 1)
        values[self._at_row, :, self._at_column] = value.transpose(0, 1)
        # (rows, kv heads, query heads of each, head size)
        q = (query * form.scaling).transpose(0, 1).reshape(n, heads, -1, query.shape[-1])
        k, v = keys[:n, :, : self._width], values[:n, :, : self._width]
        scores = form.squeeze((q @ k.transpose(2, 3)).float()) + self._own_mask(form.window)
        if self._order is None:
            out = scores.softmax(-1).to(v.dtype) @ v
            return out.reshape(n, query.shape[0], -1)
        top = scores.amax(-1, keepdim=True)
        weights = (scores - top).exp_()
        total = weights.sum(-1, keepdim=True)
        out = weights.to(v.dtype) @ v
        self._add_shared(layer, q, (out, top, total), form)
        return (out / total.to(out.dtype)).reshape(n, query.shape[0], -1)

    def _add_shared(
        self,
        layer: int,
        q: torch.Tensor,
        own: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        form: Form,
    ) -> None:
        """Add to the unnormalised `own` (sum, largest score, total) what the chains give."""
        assert self._order is not None
        assert self._groups is not None
        _, heads, each, size = q.shape
        together = q[self._order].transpose(0, 1).reshape(heads, -1, size)
        outs, tops, totals, at = [], [], [], 0
        for group in self._groups:
            part = together[:, at : at + len(group.rows) * each]
            at += part.shape[1]
            v = group.chain.values[layer][:, : group.length]
            k = group.chain.keys[layer][:, : group.length]
            scores = form.squeeze((part @ k.transpose(1, 2)).float())
            mask = self._chain_mask(group, form.window, each)
            if mask is not None:
                scores = scores + mask
            top = scores.amax(-1, keepdim=True)
            weights = (scores - top).exp_()
            tops.append(top)
            totals.append(weights.sum(-1, keepdim=True))
            outs.append(weights.to(v.dtype) @ v)

        def by_row(parts: list[torch.Tensor]) -> torch.Tensor:
            joined = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            return joined.view(heads, -1, each, joined.shape[-1]).transpose(0, 1)

        out, top, total = own
        out_c, top_c, total_c = by_row(outs), by_row(tops), by_row(totals)
        top_o = top[self._order]
        highest = torch.maximum(top_o, top_c)
        scale_o, scale_c = (top_o - highest).exp_(), (top_c - highest).exp_()
        total[self._order] = total[self._order] * scale_o + total_c * scale_c
        dtype = out.dtype
        out[self._order] = out[self._order] * scale_o.to(dtype) + out_c * scale_c.to(dtype)

    def _own_mask(self, window: int | None) -> torch.Tensor:
        """Shape (rows, 1, 1, columns): 0 or `NEVER`."""
        if window not in self._masks:
            column = torch.arange(self._width, device=self._device)[None]
            hidden = column > self._at_column[:, None]
            if window is not None:
                hidden |= column <= self._at_column[:, None] - window
            mask = torch.zeros(hidden.shape, device=self._device).masked_fill_(hidden, NEVER)
            self._masks[window] = mask[:, None, None]
        return self._masks[window]

    def _chain_mask(self, group: Group, window: int | None, each: int) -> torch.Tensor | None:
        """Shape (1, rows of the group * each, length), or None where every row sees all of it."""
        if (window, each) in group.masks:
            return group.masks[window, each]
        column = torch.arange(group.length, device=self._device)[None]
        share = torch.from_numpy(group.shares).to(self._device)[:, None]
        hidden = column >= share
        if window is not None:
            hidden = hidden | (column <= self._position[group.rows][:, None] - window)
        mask = None
        if window is not None or int(group.shares.min()) < group.length:
            mask = torch.zeros(hidden.shape, device=self._device).masked_fill_(hidden, NEVER)
            mask = mask.repeat_interleave(each, 0)[None]
        group.masks[window, each] = mask
        return mask

    def _copy(self, row: int, chain: Chain, start: int, end: int) -> None:
        """Put tokens `start` to `end` of a chain into a row's own columns."""
        if start == end:
            return
        self._reserve(self.count, end - start + 1)
        for layer in chain.keys:
            key, value = chain.read(layer, start, end)
            keys, values = self._store(layer, key, value)
            keys[row, :, : end - start] = key
            values[row, :, : end - start] = value
        self._own[row] = end - start

    def _store(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values of all rows: (rows, kv heads, columns, head size)."""
        if layer not in self._keys:
            rows, columns = self._allocated
            for store, like in ((self._keys, key), (self._values, value)):
                store[layer] = like.new_zeros((rows, like.shape[0], columns, like.shape[-1]))
        return self._keys[layer], self._values[layer]

    def _reserve(self, rows: int, columns: int) -> None:
        """Make room: zeros, because what is masked still takes part in products."""
        had_rows, had_columns = self._allocated
        if rows <= had_rows and columns <= had_columns:
            return
        if rows > had_rows:
            rows = min(len(self._own), max(rows, 2 * had_rows))
        if columns > had_columns:
            columns = -(-max(columns, had_columns * 3 // 2) // _COLUMNS) * _COLUMNS
        self._allocated = max(rows, had_rows), max(columns, had_columns)
        for store in (self._keys, self._values):
            for layer, old in store.items():
                _, heads, _, size = old.shape
                new = old.new_zeros((self._allocated[0], heads, self._allocated[1], size))
                new[:had_rows, :, :had_columns] = old
                store[layer] = new
