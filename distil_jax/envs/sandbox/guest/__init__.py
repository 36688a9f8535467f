"""What runs on the other side of the wall.

Nothing here imports anything but Python's own library: these files alone are
shown to the sandbox. What a program does there happens in a process of its own,
the last of three in a row:

  warm        has imported what programs import; reads no program itself
  supervisor  one for each program: makes its walls, watches it, reports
  confined    the program, behind all walls
"""
