"""Where a layer's rows live on the CPU: a key store and a value store of libvidkv, one sequence per batch row."""
import torch

from .. import Store, attention


def _rows(states):
    """[heads, n, head_dim] of any dtype -> [n, heads * head_dim], float32 or float16."""
    heads, n, head_dim = states.shape
    rows = states.detach().transpose(0, 1).reshape(n, heads * head_dim)
    return rows if rows.dtype in (torch.float16, torch.float32) else rows.float()


class NativeStorage:
    """Keys and values of one layer of `batch` sequences; cells are counted from the row's first real token."""

    def __init__(self, params, batch, kv_heads, key_dim, value_dim, cells, device):
        self.params, self.batch, self.cells, self.kv_heads = params, batch, cells, kv_heads
        self.key_dim, self.value_dim = key_dim, value_dim
        self.keys, self.values = self._make_store("keys", key_dim), self._make_store("values", value_dim)
        self.sequences = batch            # in the stores; never falls
        self.rows = list(range(batch))    # batch row -> sequence

    def _make_store(self, side, head_dim):
        return Store(side, self.kv_heads * head_dim, head_dim, self.params, self.cells, self.batch)

    def _reserve_for(self, cells):
        if cells > self.cells:
            self._reserve(max(cells, 2 * self.cells), self.sequences)

    def _reserve(self, cells, sequences):
        if cells > self.cells or sequences > self.sequences:
            self.cells, self.sequences = max(cells, self.cells), max(sequences, self.sequences)
            for store in (self.keys, self.values):
                store.resize(self.cells, self.sequences)

    def write(self, row, first_cell, keys, values):
        """keys, values: [kv_heads, n, head_dim]."""
        self._reserve_for(first_cell + keys.shape[1])
        self.keys.write(self.rows[row], first_cell, _rows(keys))
        self.values.write(self.rows[row], first_cell, _rows(values))

    def read(self, row, side, cells, dtype, device):
        """The first `cells` cells, decoded: [kv_heads, cells, head_dim]."""
        store, head_dim = (self.keys, self.key_dim) if side == "keys" else (self.values, self.value_dim)
        out = torch.empty(cells, self.kv_heads * head_dim, dtype=torch.float16)
        store.read(self.rows[row], 0, out)
        return out.view(cells, self.kv_heads, head_dim).transpose(0, 1).to(device=device, dtype=dtype)

    def attend(self, row, q, cells, mask, causal, scale, softcap, sinks):
        """q: [heads, n, key_dim] float32; mask: float16 [n, cells] or None -> [n, heads, value_dim] float32."""
        out = torch.empty(q.shape[1], q.shape[0], self.value_dim)
        attention(self.keys, self.values, q.transpose(0, 1), out, cells=cells, sequence=self.rows[row], mask=mask, causal=causal,
                  scale=scale, softcap=softcap, sinks=sinks, threads=torch.get_num_threads())
        return out

    def attend_batch(self, q, out, cells, causal, scale, softcap, sinks):
        """Whether it attended for all rows at once; here: no."""
        return False

    def observe(self, row, q):
        """q: [heads, n, key_dim] float32."""
        self.keys.observe_queries(self.rows[row], q.transpose(0, 1))

    def protect(self, row, cells):
        self._reserve(max([0, *(cell + 1 for cell in cells)]), self.sequences)
        self.values.protect(self.rows[row], cells)

    def seal(self, scale):
        if self.params.protect > 0:
            self.values.protect_by_queries(self.keys, scale)
        threads = torch.get_num_threads()
        self.keys.seal(threads)
        self.values.seal(threads)

    def truncate(self, row, cells):
        for store in (self.keys, self.values):
            store.truncate(self.rows[row], cells)

    def select(self, indices):
        """Row i becomes what row indices[i] was. Rows taken once move by name; only further takers are copied."""
        self._reserve(self.cells, len(indices))
        free = [s for s in range(self.sequences) if s not in {self.rows[i] for i in indices}]
        taken, rows = set(), []
        for index in indices:
            source = self.rows[index]
            if source in taken:
                target = free.pop()
                for store in (self.keys, self.values):
                    store.copy_sequence(source, target)
                source = target
            taken.add(source)
            rows.append(source)
        for sequence in free:
            for store in (self.keys, self.values):
                store.truncate(sequence, 0)
        self.rows, self.batch = rows, len(rows)

    def load(self, file, layer):
        """Fills new stores with a layer of a vidkv.File: batch row i is sequence i."""
        for row, sequence in enumerate(self.rows):
            for store in (self.keys, self.values):
                file.load(layer, row, store, sequence)

    def clear(self):
        self.keys.clear()
        self.values.clear()

    def clone(self):
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.keys, copy.values, copy.rows = self.keys.clone(), self.values.clone(), list(self.rows)
        return copy

    def to(self, device):
        """Codes of this kind are on the CPU already."""

    def bytes(self):
        return self.keys.stats().bytes + self.values.stats().bytes
