"""Requests with a seed, on CPUs.

A step that reads only part of a prompt draws a token that is thrown away. vLLM then moves the request's generator back by an offset, which generators of
CPUs do not have: vLLM 0.32.0 ends there. Here the generator's state is put back instead, so that chunks of a prompt change no answer."""
import contextlib
import functools

import numpy as np


def _of_partial_prompts(runner):
    """{place in the batch: generator} of the requests whose token of this step is thrown away."""
    batch = runner.input_batch
    places = np.nonzero(runner.discard_request_mask.np[: batch.num_reqs])[0].tolist()
    return {place: batch.generators[place] for place in places if place in batch.generators}


@contextlib.contextmanager
def _without(generators, some):
    for place in some:
        del generators[place]
    try:
        yield
    finally:
        generators.update(some)


def keep_generators(runner_class):
    """Wraps the two steps of vLLM's model runner that draw tokens and that move generators back."""
    draw, keep_books = runner_class._sample, runner_class._bookkeeping_sync
    if getattr(draw, "keeps_generators", False):
        return

    @functools.wraps(draw)
    def _sample(self, *args, **named):
        states = [(generator, generator.get_state()) for generator in _of_partial_prompts(self).values()]
        drawn = draw(self, *args, **named)
        for generator, state in states:
            generator.set_state(state)
        return drawn

    @functools.wraps(keep_books)
    def _bookkeeping_sync(self, *args, **named):
        with _without(self.input_batch.generators, _of_partial_prompts(self)):
            return keep_books(self, *args, **named)

    _sample.keeps_generators = True
    runner_class._sample, runner_class._bookkeeping_sync = _sample, _bookkeeping_sync
