"""Pages taken apart, and reports to make them of."""

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

VOID = frozenset({"meta", "rect", "line"})
SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """Its tags in order, its tables, its terms and their descriptions; every element must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.terms: list[str] = []
        self.described: list[str] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    @property
    def facts(self) -> dict[str, str]:
        return dict(zip(self.terms, self.described, strict=True))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        match tag:
            case "table":
                self.tables.append([])
            case "tr":
                self.tables[-1].append([])
            case "td" | "th":
                self.tables[-1][-1].append("")
            case "dt" | "dd" | "h1" | "h2":
                self._of(tag).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        match self.open[-1] if self.open else "":
            case "td" | "th":
                self.tables[-1][-1][-1] += data
            case "dt" | "dd" | "h1" | "h2" as tag:
                self._of(tag)[-1] += data

    def _of(self, tag: str) -> list[str]:
        return {"dt": self.terms, "dd": self.described}.get(tag, self.headings)


def row(name: str, **known: Any) -> dict[str, Any]:
    usual = {
        "kind": "conv2d",
        "status": "factored",
        "reason": "",
        "rank": 4,
        "input_rank": None,
        "full_rank": 16,
        "full_input_rank": 16,
        "params_before": 1000,
        "params_after": 300,
        "macs_before": 5000,
        "macs_after": 1500,
        "refitted": "outputs",
    }
    return {"name": name, **usual, **known}


def norm(name: str) -> dict[str, Any]:
    known = {"rank": None, "full_rank": None, "full_input_rank": None, "macs_before": 0, "macs_after": 0}
    return row(name, kind="BatchNorm2d", status="kept", reason="no matrix", params_before=2, params_after=2, **known)


def report_of(*rows: dict[str, Any], **known: Any) -> dict[str, Any]:
    return {
        "teacher": {"params": 123456, "macs": 2000, "bytes": 0},
        "student": {"params": 30864, "macs": 2000, "bytes": 0},
        "budget": {"unit": "params", "target": 0.3, "achieved": 0.25},
        "predicted_kl": 0.0123,
        "fidelity": {"agreement": 0.9375, "kl": 0.0456, "top1_teacher": None, "top1_student": None, "images": 32},
        "measured_on": "held-out calibration images",
        "generator": {"name": "kfac", "strength": 0.0},
        "seconds": 1.5,
        "layers": list(rows),
        **known,
    }


def drawings(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)]
