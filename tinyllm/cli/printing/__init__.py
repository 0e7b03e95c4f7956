"""Results as text, tables or one JSON object on stdout. `results` prints what a stage returns."""
