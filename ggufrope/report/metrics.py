"""The metrics of a report as people read them: title, format, meaning, and which way is better.

The terminal, the page and comparisons all use these, so that one metric has one name everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

SHARES = frozenset({"recall", "exact", "valid", "top_ranked"})
"""Metrics that are 0 or 1 in a cell, and therefore a share, with Wilson's interval, over cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """One metric. `title` fits the head of a column, `meaning` explains it in one phrase.

    `format` is a format specification. `better` is 1 if a larger value is better, -1 if a smaller
    one is, 0 if runs are not compared by this metric.
    """

    name: str
    title: str
    meaning: str = ""
    format: str = ".4g"
    better: int = 0


METRICS: Mapping[str, MetricInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            MetricInfo(
                name="recall",
                title="recall",
                meaning="share of needles that whole prompts answer exactly",
                format=".0%",
                better=1,
            ),
            MetricInfo(
                name="exact",
                title="exact",
                meaning="share of puzzles that are answered exactly",
                format=".0%",
                better=1,
            ),
            MetricInfo(name="spliced_recall", title="spliced recall", format=".0%"),
            MetricInfo(name="whole_recall", title="whole-prompt recall", format=".0%"),
            MetricInfo(name="agreement", title="agreement", format=".0%"),
            MetricInfo(
                name="top_ranked",
                title="top-ranked",
                meaning="share of needles whose answer is more probable than every distractor",
                format=".0%",
                better=1,
            ),
            MetricInfo(
                name="log_probability",
                title="log-prob",
                meaning="mean log-probability of the answer's tokens, nat per token (0: certain)",
                format=".2f",
                better=1,
            ),
            MetricInfo(
                name="score",
                title="score",
                meaning="share of the expected answers in the reply, RULER-style",
                format=".0%",
                better=1,
            ),
            MetricInfo(
                name="perplexity",
                title="perplexity",
                meaning="exp of the mean negative log-likelihood per token (lower is better)",
                better=-1,
            ),
            MetricInfo(
                name="mean_divergence",
                title="divergence",
                meaning="mean Kullback-Leibler divergence (KLD) from the base, nat per token",
                format=".3g",
                better=-1,
            ),
            MetricInfo(
                name="rounding",
                title="rounding",
                meaning="mean Kullback-Leibler divergence from the same model with a RoPE base "
                "changed in its last bits, nat per token: what rounding alone does",
                format=".3g",
                better=-1,
            ),
            MetricInfo(
                name="same_top",
                title="same top",
                meaning="share of positions with the same most probable token as the base",
                format=".1%",
                better=1,
            ),
            MetricInfo(
                name="nll_difference",
                title="NLL difference",
                meaning="negative log-likelihood above that of the base, nat per token",
                better=-1,
            ),
            MetricInfo(
                name="prefill_tokens_per_second",
                title="prefill/s",
                meaning="prompt tokens evaluated per second",
                better=1,
            ),
            MetricInfo(
                name="decode_tokens_per_second",
                title="decode/s",
                meaning="tokens generated per second",
                better=1,
            ),
            MetricInfo(
                name="cache_bytes_per_token",
                title="bytes/token",
                meaning="size of the KV cache per token of context",
                better=-1,
            ),
        )
    }
)
"""The metrics that tables and comparisons show, in their order. A cell may have more."""


def metric_info(name: str) -> MetricInfo:
    """Return what is known about a metric; an unknown one is called by its name."""
    return METRICS.get(name) or MetricInfo(name=name, title=name.replace("_", " "))


def format_value(name: str, value: float) -> str:
    """Return a metric's value as people read it: shares in percent, large numbers in full."""
    specification = metric_info(name).format
    if not specification.endswith("%") and abs(value) >= 1000:
        specification = ",.0f"
    return format(value, specification)


def legend(names: Iterable[str]) -> str:
    """Return one line that explains these metrics; those without a meaning are left out."""
    known = (metric_info(name) for name in dict.fromkeys(names))
    return "; ".join(f"{info.title}: {info.meaning}" for info in known if info.meaning)
