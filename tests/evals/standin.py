"""A tiny runtime for tests: words as tokens, and recall by looking back for the longest match."""

from __future__ import annotations

import re
import numpy as np
from ggufrope.errors import DecodeError
from ggufrope.evals.protocol import AnswerScore


class StandInModel:
    n_vocab = 4096

    def __init__(self):
        self.words = ["<s>"]
        self.ids = {"<s>": 0}

    def tokenize(self, text, *, beginning=False):
        out = [0] if beginning else []
        for w in re.findall(r"\s?[A-Za-z]+|\s?\d|\s|[^\sA-Za-z\d]", text):
            if w not in self.ids:
                self.ids[w] = len(self.words)
                self.words.append(w)
            out.append(self.ids[w])
        return out

    def detokenize(self, tokens):
        return "".join(self.words[t] for t in tokens)


class StandInContext:
    def __init__(self, model, n_ctx, *, reach=10**9, fail_at=None):
        self.model, self.n_ctx, self.reach, self.fail_at = model, n_ctx, reach, fail_at
        self.tokens = []
        self.evaluated = 0
        self.closed = False

    cache_bytes = None

    @property
    def position(self):
        return len(self.tokens)

    def extend(self, tokens, *, progress=None):
        if len(self.tokens) + len(tokens) > self.n_ctx:
            raise DecodeError("context is full")
        if self.fail_at is not None and len(self.tokens) + len(tokens) > self.fail_at:
            raise DecodeError("decode failed")
        self.tokens.extend(tokens)
        self.evaluated += len(tokens)
        if progress:
            progress(len(tokens))

    def rewind(self, position):
        del self.tokens[position:]

    def _next(self, tokens):
        best, found = 0, None
        last = tokens[-1]
        for i in range(len(tokens) - 2, max(-1, len(tokens) - 2 - self.reach), -1):
            if tokens[i] == last:
                n = 1
                while n <= i and n < 24 and tokens[i - n] == tokens[-1 - n]:
                    n += 1
                if n > best:
                    best, found = n, tokens[i + 1]
        return found

    def score(self, branches):
        out = []
        for b in branches:
            if self.position + len(b.prompt) + max(map(len, b.answers)) > self.n_ctx:
                raise DecodeError("branch does not fit")
            row = []
            for a in b.answers:
                seq = self.tokens + list(b.prompt)
                lps, greedy = [], True
                for t in a:
                    hit = self._next(seq) == t
                    lps.append(-0.01 if hit else -5.0)
                    greedy = greedy and hit
                    seq.append(t)
                row.append(AnswerScore(log_probabilities=tuple(lps), greedy=greedy))
            out.append(tuple(row))
            self.evaluated += len(b.prompt) + sum(map(len, b.answers))
        return out

    def close(self):
        self.closed = True
