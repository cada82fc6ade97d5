"""The paper's benchmarks through lmms-eval, with any cache: `python -m vidkv.benchmark` (docs/benchmarks.md).

    plugin.py    what lmms-eval finds: the models vidkv_hf and vidkv_gguf
    answers.py   one answer after the other, each logged with its tokens, bytes, bits and seconds, and read again after a stop
    hf.py        a model of transformers        gguf.py      an OpenAI server: llama-server with the plug-in
    judge.py     stands between the tasks and the judge: what it does not answer is an error
    suites.py    tasks, columns of the paper's table, its figures
    kivi.py      the cache of KIVI, to compare with    worker.py    lmms-eval for one cache after the other
    grid.py      runs every task with every cache  table.py    CSV and HTML, standard errors by paired bootstrap
"""
