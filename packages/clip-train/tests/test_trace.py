import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from clip_train.trace import Steps, Trace


@pytest.mark.parametrize(
    ("steps", "seen"),
    [(Steps(3, 4), {3, 4}), (Steps(5, 9), {5}), (Steps(1, 3), {2, 3})],
    ids=["within", "to-the-end", "begun-before"],
)
def test_a_trace_holds_the_steps_that_were_asked_for_and_parses(tmp_path, steps, seen):
    double = jax.jit(lambda state, batch: (state * batch, {}))
    state = jnp.ones(())
    with Trace(tmp_path, steps, first_step=1) as trace:
        step = trace.of(double)
        for _ in range(2, 6):
            state, _ = step(state, 2.0)
    assert state == 16
    [packed] = tmp_path.rglob("*.trace.json.gz")
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1  # what xprof reads
    events = json.loads(gzip.decompress(packed.read_bytes()))["traceEvents"]
    assert {int(event["args"]["step_num"]) for event in events if event.get("name") == "train"} == seen


@pytest.mark.parametrize("text", ["10", "0:3", "5:4", "a:b", "3:"])
def test_what_is_no_range_of_steps_is_refused(text):
    with pytest.raises(ValueError, match=f"FIRST:LAST, such as 10:20, counted from 1; got '{text}'"):
        Steps.parse(text)
