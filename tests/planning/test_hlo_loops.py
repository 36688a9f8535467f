"""How often loops run, where nobody wrote it down."""

import pytest

from distil_jax.planning import costs, hlo, hlo_loops

# As the compiler for TPUs prints it.
LOOP = """\
%body (p: (s32[], f32[4,4], s32[])) -> (s32[], f32[4,4], s32[]) {
  %p = (s32[]{:T(128)}, f32[4,4]{1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[4,4]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %n = s32[]{:T(128)} get-tuple-element(%p), index=2
  %step = s32[]{:T(128)} constant(STEP)
  %next = s32[]{:T(128)} add(%i, %step)
  %y = f32[4,4]{1,0:T(8,128)} convolution(%x, %x), dim_labels=bf_io->bf
  ROOT %t = (s32[], f32[4,4], s32[]) tuple(%next, %y, %n)
}

%test (p: (s32[], f32[4,4], s32[])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[4,4]{1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} get-tuple-element(%p), index=2
  %last = s32[]{:T(128)} constant(LAST)
  ROOT %lt = pred[]{:T(512)} compare(%i, BOUND), direction=LT
}

ENTRY %main (x: f32[4,4], m: s32[]) -> f32[4,4] {
  %x = f32[4,4]{1,0:T(8,128)} parameter(0)
  %m = s32[]{:T(128)} parameter(1)
  %first = s32[]{:T(128)} constant(FIRST)
  %many = s32[]{:T(128)} constant(7)
  %start = (s32[], f32[4,4], s32[]) tuple(%first, %x, CARRIED)
  %loop = (s32[], f32[4,4], s32[]) while(%start), condition=%test, body=%body
  ROOT %y = f32[4,4]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def text(first=0, last=32, step=1, bound="%last", carried="%many"):
  named = {
    "FIRST": first,
    "LAST": last,
    "STEP": step,
    "BOUND": bound,
    "CARRIED": carried,
  }
  found = LOOP
  for name, value in named.items():
    found = found.replace(name, str(value))
  return found


def trips(program):
  module = hlo.parse(program)
  main = module.computations["main"]
  return hlo_loops.trip_count(module, main, main.instructions["loop"])


@pytest.mark.parametrize(
  ("settings", "expected"),
  [
    ({}, 32),
    ({"first": 5}, 27),
    ({"step": 3}, 11),
    ({"last": 0}, 0),
    # Compared with what the loop carries: a constant, or what data say.
    ({"bound": "%n"}, 7),
    ({"bound": "%n", "carried": "%m"}, None),
    ({"step": -1}, None),
  ],
)
def test_trips_are_read_off_the_counter(settings, expected):
  assert trips(text(**settings)) == expected


def test_costs_count_them():
  assert costs.count_costs(text()).flops == 32 * 2 * 4**3
  open_ended = text(bound="%n", carried="%m")
  assert costs.count_costs(open_ended, open_trips=9).flops == 9 * 2 * 4**3
