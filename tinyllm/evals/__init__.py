"""Benchmarks of `tinyllm eval --task`: items (`benchmark`, `formats`), the model (`evaluator`), `tasks` and estimates (`statistics`)."""
