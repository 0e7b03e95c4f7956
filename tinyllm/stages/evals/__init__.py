"""What `tinyllm eval --task` measures: rows of benchmark files (`items`), what a model makes of them (`likelihood`, `answers`), the
tasks themselves (`tasks`), and how sure a figure is (`statistics`)."""
