"""Runs programs inside the sandbox.

These files alone are shown to the sandbox, so they import nothing but Python's
standard library. Each program has a process of its own, the last of three that
fork from each other:

  prefork     has imported what programs import; reads no program itself
  supervisor  one for each program: makes its namespaces, watches it, reports
  confined    runs the program under all restrictions
"""
