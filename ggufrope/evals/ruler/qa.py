"""RULER's two question tasks, on a SQuAD or HotpotQA file that the user supplies.

The paragraphs that hold the answer stand among other paragraphs of the same file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ggufrope._files import read_json
from ggufrope.errors import RequestError
from ggufrope.evals.ruler.drafts import Draft
from ggufrope.evals.ruler.wording import Wording


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, its right answers, and the numbers of the documents that hold them."""

    text: str
    answers: tuple[str, ...]
    sources: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet:
    """Documents, each once, and questions about them."""

    documents: tuple[str, ...]
    questions: tuple[Question, ...]


def questions(data: QuestionSet, wording: Wording, rng: Random, sample: int) -> Draft:
    """Draft the question number `sample`, its documents in an order drawn from `rng`. A unit is a
    document; there are no more than the file has."""
    question = data.questions[sample % len(data.questions)]
    others = [n for n in range(len(data.documents)) if n not in question.sources]
    rng.shuffle(others)
    seed = rng.getrandbits(64)
    gold = list(question.sources)

    def context(units: int) -> str:
        chosen = gold + others[: units - len(gold)]
        Random(f"{seed}/{units}").shuffle(chosen)
        return "\n\n".join(
            wording.needle.format(number=number, document=data.documents[document])
            for number, document in enumerate(chosen, 1)
        )

    return Draft(
        context=context,
        fields={"query": question.text},
        answers=question.answers,
        least=len(gold),
        most=len(data.documents),
    )


def read_squad(path: Path) -> QuestionSet:
    """Return the questions of a SQuAD 1.1 or 2.0 file that have an answer.

    Raises StorageError where the file cannot be read, RequestError where it is not SQuAD.
    """
    return _gathered(path, _squad, "SQuAD")


def read_hotpotqa(path: Path) -> QuestionSet:
    """Return the questions of a HotpotQA file in the distractor setting.

    Raises StorageError where the file cannot be read, RequestError where it is not HotpotQA.
    """
    return _gathered(path, _hotpotqa, "HotpotQA")


_Row = tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]
"""Question, answers, the documents that hold them, other documents."""


def _gathered(path: Path, parse: Any, name: str) -> QuestionSet:
    content = read_json(path)
    documents: dict[str, int] = {}
    found: list[Question] = []
    try:
        for question, answers, gold, others in parse(content):
            for document in (*gold, *others):
                documents.setdefault(document, len(documents))
            if question and answers:
                sources = tuple(dict.fromkeys(documents[document] for document in gold))
                found.append(Question(text=question, answers=answers, sources=sources))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise RequestError(f"{path}: not a {name} file: {what}") from None
    if not found:
        raise RequestError(f"{path}: not a {name} file: no question with an answer in it")
    return QuestionSet(documents=tuple(documents), questions=tuple(found))


def _squad(content: Any) -> Iterator[_Row]:
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            document = _text(paragraph["context"])
            for row in paragraph["qas"]:
                answers = dict.fromkeys(_text(answer["text"]) for answer in row["answers"])
                yield _text(row["question"]), tuple(answers), (document,), ()


def _hotpotqa(content: Any) -> Iterator[_Row]:
    for row in content:
        paragraphs = {_text(title): "".join(sentences) for title, sentences in row["context"]}
        needed = {_text(title) for title, _ in row["supporting_facts"]}
        yield (
            _text(row["question"]),
            (_text(row["answer"]),),
            tuple(f"{t}\n{p}" for t, p in paragraphs.items() if t in needed),
            tuple(f"{t}\n{p}" for t, p in paragraphs.items() if t not in needed),
        )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {type(value).__name__}")
    return value
