"""The exposures of all contenders as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.exposure import Shape

#: Okabe and Ito's colours, distinguishable with any colour vision; the markers differ too.
_COLOURS, _MARKERS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7"), ("o", "s", "^", "D")


def draw(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]], shape: Shape) -> None:
    """Write it; each contender is a row, each exposure a point: when its last object was stored, and its sidecars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    names = sorted(runs, key=lambda name: min(run["bursts"][-1]["done"] for run in runs[name]), reverse=True)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 1.6 + 0.5 * len(names)), sharey=True)
    for row, name in enumerate(names):
        for run in runs[name]:
            for number, burst in enumerate(run["bursts"]):
                look = {"color": _COLOURS[number % 4], "marker": _MARKERS[number % 4], "alpha": 0.85, "zorder": 3}
                height = row + 0.2 * (1 - number)
                if burst["images"] and not burst["failures"]:
                    left.scatter(burst["done"], height, **look)
                    small = sorted(burst["sidecars"])
                    right.plot([small[0], small[-1]], [height, height], color=look["color"], zorder=2)
                    right.scatter(small[len(small) // 2], height, **look)
    for number in range(max(len(run["bursts"]) for found in runs.values() for run in found)):
        left.scatter([], [], color=_COLOURS[number % 4], marker=_MARKERS[number % 4], label=f"exposure {number + 1}")
    limit = shape.limit_s()
    left.axvline(limit, color="black", linewidth=1, label=f"the limit, {limit:.2f} s")
    left.axvline(1.1 * limit, color="black", linewidth=1, linestyle=":", label="10 % above it")
    right.axvline(shape.rtt_s, color="black", linewidth=1, label=f"one round trip, {shape.rtt_s:g} s")
    left.set_yticks(range(len(names)), names)
    left.set_xlabel("last object stored, seconds after the exposure's start")
    right.set_xlabel("sidecar stored: median, and from the first to the last, seconds")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.grid(axis="x", which="both", alpha=0.3)
        axes.legend(loc="upper right", fontsize=8)  # the best contender is in the first row, and at its left
    rate = f"{shape.rate_bps / 1e9:g} Gbit/s, {shape.rtt_s * 1e3:g} ms"
    figure.suptitle(f"23 sidecars of 3 kB, each followed by its image of 8 MiB, over {rate}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
