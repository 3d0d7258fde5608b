"""The report of an exploration, as text and as a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from ._boundaries import Boundary, Fault


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivery of a trial: the boundaries that it reached, and how it ended.

    Attributes:
        boundaries: The boundaries in order; in a killed process only the one of the fault.
        outcome: "answered ...", or the error.
        struck: The boundary of the fault, or None in a delivery without a fault.
    """

    boundaries: tuple[Boundary, ...]
    outcome: str
    struck: Boundary | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One fault at one boundary, the deliveries with and after it, and the outcome.

    Attributes:
        boundary: The boundary of the fault.
        fault: The fault.
        deliveries: The delivery with the fault, and those after it.
        violations: How the promise was broken, in words; empty if it held.
    """

    boundary: Boundary
    fault: Fault
    deliveries: tuple[Delivery, ...]
    violations: tuple[str, ...]

    @property
    def was_struck(self) -> bool:
        """Whether the delivery reached the boundary; a handler that varies may not reach it every time."""
        return self.deliveries[0].struck is not None

    @property
    def verdict(self) -> str:
        """The outcome in a word."""
        return "VIOLATION" if self.violations else "ok" if self.was_struck else "missed"

    def timeline(self) -> str:
        """Return the deliveries line by line, with their SQL."""
        lines = [f"{self.fault} at boundary {self.boundary.number}, {_short(self.boundary)}"]
        for number, delivery in enumerate(self.deliveries, 1):
            lines.append(f"  delivery {number}")
            for boundary in delivery.boundaries:
                mark = f"   <-- {self.fault}" if boundary == delivery.struck else ""
                lines.append(f"    {boundary.number:3} {_short(boundary)}{mark}")
            lines.append(f"      = {delivery.outcome}")
        lines += [f"  VIOLATION: {violation}" for violation in self.violations]
        return "\n".join(lines)


class Violation(AssertionError):  # noqa: N818 - pytest shows it as a failed assertion
    """A handler did not keep the promise under a fault; the message is the whole report.

    Attributes:
        report: The FaultReport.
    """

    report: FaultReport


@dataclass(slots=True)
class FaultReport:
    """The faults that were tried at each boundary, and their outcomes.

    Attributes:
        boundaries: The boundaries of a delivery without a fault.
        trials: One trial for each fault at each boundary.
    """

    boundaries: tuple[Boundary, ...]
    trials: list[Trial] = field(default_factory=list)

    @property
    def violations(self) -> list[Trial]:
        """The trials in which the promise did not hold."""
        return [trial for trial in self.trials if trial.violations]

    @property
    def headline(self) -> str:
        """One sentence that says whether the promise held."""
        if self.violations:
            return f"the promise did not hold under {len(self.violations)} of {len(self.trials)} faults"
        return f"the promise held under {len(self.trials)} faults"

    def __str__(self) -> str:
        """Return a table of the boundaries, the first violation as a timeline, and the counts."""
        lines = []
        for boundary in self.boundaries:
            lines.append(f"{boundary.number:3} {_short(boundary)}")
            lines += [f"      {each.verdict:9} {each.fault}" for each in self.trials if each.boundary == boundary]
        if self.violations:
            lines += ["", self.violations[0].timeline()]
        missed = {each.boundary for each in self.trials if not each.was_struck}
        counts = f"faults injected: {len(self.trials)}, violations: {len(self.violations)}"
        lines += ["", f"boundaries explored: {len(self.boundaries) - len(missed)}/{len(self.boundaries)}, {counts}"]
        return "\n".join(lines)

    def to_svg(self, trial: Trial | None = None) -> str:
        """Draw a trial as a timeline: one lane for each delivery, one mark for each boundary.

        Args:
            trial: The trial to draw; None for the first violation, or the first trial if there is none.

        Returns:
            The SVG document.
        """
        trial = trial or (self.violations or self.trials)[0]
        lane, line, top = 420, 22, 64
        height = top + line * (max(len(each.boundaries) for each in trial.deliveries) + 3)
        width = lane * len(trial.deliveries)
        parts = [
            '<rect width="100%" height="100%" fill="#fff"/>',
            _text(12, 24, f"{trial.fault} at boundary {trial.boundary.number}", "bold"),
        ]
        for column, delivery in enumerate(trial.deliveries):
            x = 24 + column * lane
            parts.append(_text(x, top - 14, f"delivery {column + 1}", "bold"))
            end = top + line * max(len(delivery.boundaries) - 1, 0) + 10
            parts.append(f'<line x1="{x}" y1="{top + 10}" x2="{x}" y2="{end}" stroke="#888"/>')
            for row, boundary in enumerate(delivery.boundaries):
                y = top + row * line + 10
                is_struck = boundary == delivery.struck
                colour = "#c00" if is_struck else "#2a7"
                parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"/>')
                parts.append(_text(x + 14, y + 4, _short(boundary, 46) + (" ✗" if is_struck else "")))
            parts.append(
                _text(x, top + line * len(delivery.boundaries) + 20, f"= {_cut(delivery.outcome, 52)}", "bold")
            )
        verdict = trial.violations[0] if trial.violations else "the promise held"
        parts.append(_text(12, height - 12, _cut(verdict, width // 8), "bold", "#c00" if trial.violations else "#2a7"))
        drawing = "\n".join(parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'font-family="monospace" font-size="12">\n{drawing}\n</svg>\n'
        )


def _short(boundary: Boundary, size: int = 60) -> str:
    return _cut(boundary.text, size)


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"


def _text(x: int, y: int, content: str, weight: str = "normal", colour: str = "#222") -> str:
    return f'<text x="{x}" y="{y}" font-weight="{weight}" fill="{colour}">{escape(content)}</text>'
