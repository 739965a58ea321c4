"""The benchmark's table and JSON."""

from __future__ import annotations

from shim.bench.figures import KATAPY, RUNC, Figures, as_document, as_table


def _figures() -> Figures:
    figures = Figures()
    for value in (30.0, 10.0, 20.0):
        figures.add("run", "a run", "ms", KATAPY, value)
    figures.add("boot", "a boot", "s", KATAPY, 1234.4)
    for value in (4.0, 6.0):
        figures.add("run", "a run", "ms", RUNC, value)
    return figures


def test_table_has_medians_ranges_and_the_ratio_of_the_medians() -> None:
    head, run, boot = as_table(_figures().lines()).splitlines()
    assert head.split() == [
        "katapy", "min", "…", "max", "runc", "min", "…", "max", "katapy", "/", "runc",
    ]  # fmt: skip
    assert run.split() == ["a", "run", "[ms]", "20", "10", "…", "30", "5", "4", "…", "6", "4.00"]
    assert boot.split() == ["a", "boot", "[s]", "1,234", "–"]


def test_document_has_every_sample_and_no_ratio_without_runc() -> None:
    run, boot = as_document(_figures().lines())
    assert run["katapy"] == {"median": 20.0, "samples": [30.0, 10.0, 20.0]}
    assert (run["ratio"], boot["ratio"]) == (4.0, None)
    assert "runc" not in boot


def test_a_zero_of_runc_gives_no_ratio() -> None:
    figures = Figures()
    figures.add("x", "x", "MiB", KATAPY, 1.0)
    figures.add("x", "x", "MiB", RUNC, 0.0)
    assert as_document(figures.lines())[0]["ratio"] is None
