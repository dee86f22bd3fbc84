"""Words that installers know, and what a word that they don't know was meant to be."""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def distance(one: str, other: str) -> int:
    """How many letters must be added, taken away, changed or swapped with their neighbour (Damerau, Levenshtein)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        older, before, row = before, row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                row[j] = min(row[j], older[j - 2] + 1)
    return row[-1]


def misspelt(word: str, known: frozenset[str]) -> str:
    """The known word that an unknown one must be a slip of the pen of; nothing where that is not sure.

    Installers pass over names that they do not know, and our lists of names are not complete: so what is no slip of
    the pen is no error. Case alone is none either.
    """
    if word in known or not 6 <= len(word) <= 80:
        return ""
    near = [other for other in known if abs(len(other) - len(word)) <= 2 and other.lower() != word.lower()]
    found = min(((distance(word, other), other) for other in near), default=(99, ""))
    return found[1] if found[0] <= (2 if len(word) > 12 else 1) else ""
