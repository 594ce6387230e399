"""The bench's own logic: what it computes, refuses and reports. No time is asserted."""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal

from perf import cases, contenders, goals, machine, reference, report, run, timing
from perf.cases import Case, Channelwise, Separable
from perf.contenders import Contender

EVERY_CASE = [
    case
    for kind in ("cpu", "gpu")
    for group in run.GROUPS
    for case in cases.cases(group, kind)
]  # fmt: skip


@pytest.fixture(autouse=True)
def gradients_of_other_tests() -> Iterator[None]:
    """The bench turns torch's gradients off, for a process of its own."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_grad_enabled(True)


class Clock:
    """A clock that only calls move, and a scheduler that delays some of them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.delay = 0.0
        self.ran: list[str] = []

    def call(self, name: str, seconds: float, delays: list[float] | None = None) -> Any:
        def run() -> None:
            self.ran.append(name)
            wait = delays.pop(0) if delays else 0.0
            self.delay += wait
            self.now += seconds + wait

        return run

    def timer(self, **settings: Any) -> timing.Interleaved:
        return timing.Interleaved(
            clock=lambda: self.now,
            sleep=lambda _: None,
            waited=lambda: self.delay,
            **{"used": lambda: 0.0, "order": random.Random(1), **settings},
        )


def test_timer_reports_seconds_a_call() -> None:
    clock = Clock()
    taken = clock.timer(rounds=5)({"a": clock.call("a", 1e-3), "b": clock.call("b", 4e-3)})
    np.testing.assert_allclose(taken["a"].seconds, 1e-3)
    np.testing.assert_allclose(taken["b"].seconds, 4e-3)
    assert taken["a"].calls == 20
    assert taken["b"].calls == 5
    assert taken["a"].spread()["rounds"] == 5
    assert timing.ratio(taken["b"], taken["a"]) == pytest.approx(4)


def test_timer_takes_turns_in_varying_order() -> None:
    clock = Clock()
    clock.timer(rounds=8, budget=1e-9)({n: clock.call(n, 1e-3) for n in "abc"})
    # Two probes each, then rounds of one untimed and one timed call.
    turns = ["".join(clock.ran[i : i + 6 : 2]) for i in range(6, len(clock.ran), 6)]
    assert len(turns) == 8
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 1


def test_timer_repeats_a_visit_that_waited_for_a_processor() -> None:
    clock = Clock()
    # The probes run clean; the first visit's calls wait, its repetition does not.
    delays = [0, 0, 0, 5e-3, 5e-3]
    taken = clock.timer(rounds=1, budget=2e-3)({"a": clock.call("a", 1e-3, delays)})
    np.testing.assert_allclose(taken["a"].seconds, 1e-3)
    assert taken["a"].disturbed == 0


def test_timer_waits_for_threads_that_spin() -> None:
    clock = Clock()
    spinning = iter([0.0, 1.0, 1.0, 2.0, 2.0, 2.0001])  # before and after each pause
    timer = clock.timer(rounds=1, budget=1e-9, used=lambda: next(spinning))
    timer({"a": clock.call("a", 1e-3)})
    assert next(spinning, None) is None


def test_timer_says_that_no_visit_was_clean() -> None:
    clock = Clock()
    taken = clock.timer(rounds=2, tries=3)({"a": clock.call("a", 1e-3, [1e-3] * 10_000)})
    assert taken["a"].disturbed == 1


def test_timer_visits_a_slow_call_less_often() -> None:
    clock = Clock()
    calls = {"fast": clock.call("fast", 1e-3), "slow": clock.call("slow", 1.0)}
    taken = clock.timer(rounds=6)(calls)
    assert np.isfinite(taken["slow"].seconds).sum() == 3
    assert taken["slow"].spread()["rounds"] == 3
    assert timing.ratio(taken["slow"], taken["fast"]) == pytest.approx(1000)


@pytest.mark.parametrize(
    ("result", "passes"),
    [
        ([1.0, 2.0, 0.0], True),
        ([1.0, 2.5, 0.0], True),
        ([1.0, 2.5000001, 0.0], False),
        ([1.0, np.nan, 0.0], False),
        ([1.0, np.inf, 0.0], False),
        ([1.0, 2.0, 1e-300], False),
    ],
)
def test_verdict(result: list[float], passes: bool) -> None:
    expected = np.array([1.0, 2.0, 0.0])
    allowed = np.array([0.5, 0.5, 0.0])
    found = timing.verdict(np.array(result), expected, allowed)
    assert found.passed is passes
    assert bool(found.reason) is not passes


def test_verdict_refuses_another_shape() -> None:
    assert not timing.verdict(np.zeros(3), np.zeros(4), np.ones(4)).passed


@pytest.mark.parametrize("dtype", ["float32", "uint8", "float64"])
def test_poison_is_no_result(dtype: str) -> None:
    case = Separable((40, 50), dtype, 5)
    out = np.zeros(case.shape, dtype)
    never = Contender("never", lambda: out, out=out, precision="float32")
    assert not contenders.check(case, never, contenders.expected(case)).passed


def small_separable(dtype: str) -> tuple[Case, tuple[Any, Any], list[Contender]]:
    case = Separable((40, 50), dtype, 5)
    expected = contenders.expected(case)
    peers = [
        c for c in contenders.separable(case) if isinstance(c, Contender) and c.name == "scipy"
    ]
    return case, expected, peers


@pytest.mark.parametrize("dtype", ["float32", "uint8", "float64"])
def test_check_passes_a_right_peer_and_stops_a_wrong_one(dtype: str) -> None:
    case, expected, (peer,) = small_separable(dtype)
    assert contenders.check(case, peer, expected).passed

    def changed(change: Callable[[Any], Any]) -> Contender:
        return replace(peer, read=lambda y: change(np.array(y)))

    def one_wrong(y: Any) -> Any:
        y[-1, -1] += 3
        return y

    assert not contenders.check(case, changed(one_wrong), expected).passed
    assert not contenders.check(case, changed(lambda y: np.roll(y, 1, 1)), expected).passed
    assert not contenders.check(case, changed(lambda y: y[:-1]), expected).passed


def test_separable_reference_is_the_dense_convolution() -> None:
    case = Separable((2, 9, 11), "float32", 5, 3)
    x, columns, rows = contenders.separable_data(case)
    result, scale = reference.separable(x, columns, rows)
    kernel = columns.astype(float).T @ rows.astype(float)
    sizes = abs(columns.astype(float)).T @ abs(rows.astype(float))
    for i, image in enumerate(x.astype(float)):
        wide = np.pad(image, 2, mode="reflect")
        dense = signal.convolve2d(wide, kernel, "valid")
        size = signal.convolve2d(abs(wide), sizes, "valid")
        np.testing.assert_allclose(scale[i], size, rtol=1e-13)
        assert (abs(result[i] - dense) <= timing.gamma(40, "float64") * size).all()


@pytest.mark.parametrize("op", ["depthwise", "pointwise", "fused"])
@pytest.mark.parametrize(("k", "stride", "dilation"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2)])
def test_layer_reference_is_the_sum_it_says(op: str, k: int, stride: int, dilation: int) -> None:
    if op == "pointwise":
        k = stride = dilation = 1
    pad = dilation * (k // 2)
    case = Channelwise("t", op, (2, 3, 8, 9), (k, k), stride, pad, dilation, 4)
    x, taps, mix = contenders.layer_data(case)
    result, _ = reference.channelwise(case, x, taps, mix)
    expected = x.astype(float)
    if taps is not None:
        spread = np.zeros((3, pad * 2 + 1, pad * 2 + 1))
        spread[:, ::dilation, ::dilation] = taps
        padded = np.pad(expected, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        expected = np.array(
            [
                [signal.correlate2d(c, t, "valid") for c, t in zip(n, spread, strict=True)]
                for n in padded
            ]
        )[:, :, ::stride, ::stride]
    if mix is not None:
        expected = np.einsum("oc,nchw->nohw", mix.astype(float), expected)
    assert result.shape == case.out_shape
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


def test_every_case_has_one_name_and_is_found_by_it() -> None:
    by_machine = [cases.cases(group, "gpu") for group in run.GROUPS]
    for group in by_machine:
        names = [case.name for case in group]
        assert len(set(names)) == len(names)
    case = by_machine[0][3]
    assert cases.select(by_machine[0], [case.name]) == [case]
    assert cases.select(by_machine[0], []) == by_machine[0]
    assert cases.select(by_machine[0], ["no such case"]) == []


def test_counts_are_consistent() -> None:
    for case in EVERY_CASE:
        smaller = cases.small(case)
        assert 0 < smaller.flops <= case.flops, case.name
        assert 0 < smaller.bytes <= case.bytes, case.name
        json.dumps(cases.describe(case))
        if isinstance(case, Channelwise) and isinstance(smaller, Channelwise):
            assert min(case.out_shape) > 0, case.name
            assert min(smaller.out_shape) > 0, case.name


def test_counts_of_known_cases() -> None:
    filtered = Separable((1000, 1000), "float32", 9, 2)
    assert filtered.flops == 1000 * 1000 * 2 * (9 + 9) * 2
    assert filtered.bytes == 4 * (2 * 10**6 + 2 * 2 * 9)
    layer = Channelwise("t", "fused", (2, 3, 8, 8), (3, 3), 2, 1, 1, 5, "float16")
    assert layer.out_shape == (2, 5, 4, 4)
    assert layer.flops == 2 * 2 * 16 * (3 * 9 + 3 * 5)
    assert layer.bytes == 2 * (2 * 3 * 64 + 2 * 5 * 16 + 3 * 9 + 3 * 5)


FLOORS = {"82": 0.50, "83": 0.25, "84": 1.99, "85": 0.24, "86": 0.75, "87": 3.00}


def test_kernelbench_bytes_give_the_floors_computed_elsewhere() -> None:
    """Milliseconds at 4.3 TB/s, to the last digit given."""
    for case in cases.kernelbench():
        assert isinstance(case, Channelwise)
        floor = case.bytes / 4.3e12 * 1e3
        assert abs(floor - FLOORS[case.label[:2]]) <= 0.005, case.name
    assert len(list(cases.kernelbench())) == len(FLOORS)


def test_every_layer_of_the_table_is_a_case() -> None:
    with open(Path(__file__).with_name("layers.csv")) as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    for op in ("depthwise", "pointwise", "fused"):
        every = {c.label: c for c in cases.cases(op, "gpu") if isinstance(c, Channelwise)}
        for name, row in table.items():
            if name.startswith("kbench_"):
                continue
            keys = ("N", "C", "H", "W", "k", "stride", "pad", "dilation", "Cout")
            n, c, height, width, k, stride, pad, dilation, out = (int(row[key]) for key in keys)
            layer = Channelwise(
                name, "fused", (n, c, height, width), (k, k), stride, pad, dilation, out
            )
            found = next(one for one in cases.layers(op) if one.label == name)
            expected = c if op == "depthwise" else out
            assert found.out_shape == (n, expected, *layer.spatial)
            assert name in every
    square, separable = table["kbench_P82_dw"], table["kbench_P86_sep"]
    shapes = {case.label[:2]: case.shape for case in cases.kernelbench()}
    for row, problem in ((square, "82"), (separable, "86")):
        assert shapes[problem] == tuple(int(row[key]) for key in "NCHW")


def test_a_contender_is_held_to_the_matrix_rate_of_its_precision() -> None:
    case = Channelwise("t", "pointwise", (1, 8, 4, 4), (1, 1), 1, 0, 1, 8)
    ceilings = {"matrix_gflops": 1.0, "matrix_gflops_float32": 1.0, "matrix_gflops_tf32": 4.0}
    single = run.rates(case, "numbasep", 1e-9, ceilings)["percent_of_matrix"]
    assert run.rates(case, "numbasep_tf32", 1e-9, ceilings)["percent_of_matrix"] == single / 4


def test_references_that_are_kept_check_as_those_that_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from perf import gpu, gpu_contenders

    case = Channelwise("t", "fused", (2, 3, 8, 9), (3, 3), 1, 1, 1, 4)
    data = gpu_contenders.data(case)
    for kept in (gpu.KEPT_BYTES, 0):
        monkeypatch.setattr(gpu, "KEPT_BYTES", kept)
        expected = gpu.Reference(case, data)
        for contender in gpu_contenders.of(case, data):
            assert isinstance(contender, Contender)
            assert gpu.check(case, contender, data, expected).passed
            wrong = replace(contender, read=lambda y, c=contender: c.read(y).roll(1, -1))
            assert not gpu.check(case, wrong, data, expected).passed
        assert bool(expected.kept) is (kept > 0)


@pytest.mark.parametrize("taps", [1, 2, 3, 15, 64])
def test_gaussian_taps_are_symmetric_and_sum_to_one(taps: int) -> None:
    values = contenders.gaussian_taps(taps)
    assert (values == values[::-1]).all()
    assert values.astype(float).sum() == pytest.approx(1, abs=taps * 2.0**-24)


def test_rows_have_every_column_and_survive_a_cut(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["separable", "--select", "float32/512x512/3taps", "--rounds", "2", "--budget"]
    assert (
        run.main([*arguments, "0.001", "--contenders", "scipy", "copyto", "--out", str(out)]) == 0
    )
    rows = report.read([out])
    scipy = next(row for row in rows if row.get("contender") == "scipy")
    assert scipy["op"] == "separable"
    assert scipy["gbps"] == pytest.approx(scipy["bytes"] / scipy["seconds"]["p50"] / 1e9, rel=1e-4)
    assert scipy["percent_of_copy"] == pytest.approx(
        100 * scipy["gbps"] / scipy["copy_gbps"], rel=1e-4
    )
    assert 0 < scipy["error_of_bound"] <= 1
    assert {"commit", "dirty", "cpu", "versions", "when", "machine"} <= scipy.keys()
    assert run.done(out) == {"ceilings", "separable/float32/512x512/3taps/rank1"}
    text = out.read_text()
    out.write_text(text[: text.rindex("\n", 0, -1) + 20])
    assert report.read([out]) == rows[:-1]
    assert run.done(out) == {"ceilings"}


def fake(case: str, peer: str, ratio: float, **more: Any) -> dict[str, Any]:
    name, dtype = f"separable/float32/{case}", "float32"
    row = {"machine": "cpu", "op": "separable", "dtype": dtype, "case": name, "contender": peer}
    return row | {"times_numbasep": ratio, "commit": "abc", "dirty": False} | more


def test_summary_takes_the_last_row_of_a_case() -> None:
    rows = [fake("a", "peer", 100), fake("a", "peer", 2.0), fake("b", "peer", 8.0)]
    text = report.summary(rows)
    assert "separable float32 peer: geomean 4.00 (2.00 to 8.00, 2 cells)" in text
    assert "lowest: a 2.00, b 8.00" in text


def test_a_rehearsal_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [fake("a", "peer", 2.0), fake("b", "peer", 3.0, rehearsal=True)]
    path.write_text("\n".join(map(run.line, rows)))
    assert report.read([path]) == rows
    assert report.read([path], rehearsed=False) == rows[:1]


def test_goals_name_the_cells_that_fall_short() -> None:
    rows = [fake("a", "opencv", 4.0), fake("b", "opencv", 0.5), fake("a", "scipy", 25.0)]
    text = "\n".join(goals.lines(rows))
    assert "SHORT         CPU separable float32 over OpenCV, mean: 1.41, at least 2.3" in text
    assert "SHORT         CPU separable float32 over OpenCV, cells: 0.50, at least 0.9" in text
    assert "0.50  separable/float32/b" in text
    assert "separable/float32/a" not in text
    assert "reached       CPU separable float32 over scipy, mean: 25.00, at least 20" in text
    assert "not measured  CPU separable uint8 over OpenCV, mean: at least 1.6" in text


def test_summary_names_what_was_refused() -> None:
    refused = fake("a", "peer", 1.0) | {"refused": "wrong"}
    del refused["times_numbasep"]
    assert "refused: separable/float32/a peer: wrong" in report.summary([refused])


def test_a_failing_check_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    case, _, (peer,) = small_separable("float32")
    wrong = replace(peer, name="wrong", read=lambda y: np.asarray(y) * 1.01)
    monkeypatch.setattr(contenders, "of", lambda _: [wrong, peer])
    rows = list(run.measure_host(case, timing.Interleaved(rounds=1, budget=0.001), []))
    by_name = {row["contender"]: row for row in rows}
    assert "refused" in by_name["wrong"]
    assert "seconds" not in by_name["wrong"]
    assert "seconds" in by_name["scipy"]


def test_machine_columns_are_plain_json() -> None:
    columns = machine.host()
    assert json.loads(json.dumps(columns)) == columns
    assert columns["versions"]["numpy"] == np.__version__


def test_readme_tables_are_made_anew_between_their_markers() -> None:
    common = {"cpu": "C", "threads": 2, "when": "2026-01-02T03:04:05", "rank": 1, "taps": 3}
    rows = [
        fake("8x3", "opencv", 4.0, **common),
        fake("8x3", "opencv_pool", 2.0, **common),
        fake("one", "opencv", 8.0, **common),
    ]
    page = "a\n<!-- perf:cpu-separable -->\nold\n<!-- /perf:cpu-separable -->\nb <!-- perf:x -->"
    made = report.rewrite(page, rows)
    assert made.startswith("a\n<!-- perf:cpu-separable -->\n| ")
    assert made.endswith("<!-- /perf:cpu-separable -->\nb <!-- perf:x -->")
    assert "| cv2.sepFilter2D, images in a loop | 5.66 (4.00 to 8.00) |" in made
    assert "| cv2.sepFilter2D, images in threads where faster | 4.00 (2.00 to 8.00) |" in made
    assert "commit abc; 2026-01-02" in made
    assert "old" not in made
    assert report.rewrite(made, rows) == made
    gpu = page.replace("cpu", "gpu")
    assert "Not measured yet on a GPU." in report.rewrite(gpu, rows)
    with pytest.raises(ValueError, match="perf:no-such"):
        report.rewrite(page.replace("cpu-separable", "no-such"), rows)


def test_plots_are_drawn_for_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    common = {"cpu": "C", "threads": 2, "flops": 8, "bytes": 16, "gflops": 1.0, "gbps": 2.0}
    common |= {"rank": 1, "taps": 3, "shape": [8, 8]}
    seconds = {"p20": 1.0, "p50": 1.0, "p80": 1.0, "rounds": 3}
    rows = [
        {"machine": "cpu", "case": "ceilings", "op": "ceilings", "copy_gbps": 3.0,
         "matrix_gflops": 9.0, "commit": "abc", "dirty": False},
        fake("a", "numbasep", 1.0, seconds=seconds, **common),
        fake("a", "opencv", 2.0, seconds=seconds, **common),
    ]  # fmt: skip
    del rows[1]["times_numbasep"]
    names = {path.name for path in report.plots(rows, tmp_path)}
    assert names == {"cpu-roofline.png", "cpu-separable-speedup.png", "cpu-scaling.png"}
    assert all((tmp_path / name).stat().st_size > 5000 for name in names)


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_profiler_lines_name_case_and_range(backend: str) -> None:
    from perf import profile

    case = profile.find("82_conv")
    commands = profile.lines(case, backend, 7, "report")
    assert commands["nsys"][:2] == ["nsys", "profile"]
    assert f"--nvtx-capture={profile.CAPTURE}@numbasep" in commands["nsys"]
    assert case.name in commands["nsys"]
    assert commands["nsys"][commands["nsys"].index("--backend") + 1] == backend
    assert profile.find(case.name) == case


@pytest.mark.parametrize(
    "label", ["depthwise/float32/NCHW/mbv2_b2_s2", "fused/float32/NCHW/effb0_b4"]
)
def test_modules_are_checked_before_they_are_timed(label: str) -> None:
    from perf import torch_layers

    case = cases.small(next(torch_layers.select([f"{label}/n1"])))
    for training in (False, True):
        timer = timing.Interleaved(rounds=1, budget=0.001, tries=1)
        rows = list(torch_layers.measure(case, timer, training))
        names = {
            f"{name}{layout}" for name in ("numbasep", "torch") for layout in torch_layers.LAYOUTS
        }
        assert {row["contender"] for row in rows if row["seconds"]["p50"] > 0} == names
    wrong = [torch.ones(2)], [torch.ones(2, dtype=torch.float64) + 1e-3], [torch.ones(2)]
    assert "result 0" in torch_layers.wrong(*wrong, n=9)
