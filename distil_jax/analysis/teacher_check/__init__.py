"""Checks what a run's teacher says, token by token, and shows it.

`gather` samples, judges and builds a batch as the run does; `evidence` runs the
run's own programs on it, and plain ones beside them; `checks` compares the two;
`report` and `page` write what was found. `reference` has the formulas once
more, in NumPy and float64, and shares no code with the objectives.
"""
