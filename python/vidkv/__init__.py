"""VidKV: a packed KV cache of 1.x bits per element, and attention that reads the codes.

`vidkv.transformers` plugs it into Hugging Face transformers; this module is the library itself, for arrays of any kind
that speak DLPack (NumPy, torch). Shapes are written [like, this].

>>> import numpy, vidkv
>>> cache = vidkv.Cache(layers=1, kv_heads=2, head_dim=64, cells=1024, params=vidkv.Params.from_preset("k2v2"))
>>> rows = numpy.ones((300, 2, 64), numpy.float32)
>>> cache.append(0, 0, rows, rows)
>>> cache.seal()
>>> cache.length(0)
300
"""
from ._core import Cache, File, FileWriter, Params, Stats, Store, attention, isa, presets, version

__version__ = version()
__all__ = ["Cache", "File", "FileWriter", "Params", "Stats", "Store", "attention", "isa", "presets", "version", "__version__"]
