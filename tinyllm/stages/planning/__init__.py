"""Settings of a stage checked before it begins: against the options, and against the memory there is. No torch."""
