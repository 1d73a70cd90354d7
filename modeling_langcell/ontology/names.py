# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The names of cell types: finds the term of the Cell Ontology that people mean, or says which they may have meant."""

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import combinations

from rapidfuzz import fuzz, process

from ..model.errors import InputError
from ..model.prompts import LONGEST_NAME, require_text
from .catalogue import cell_type, cell_types
from .terms import Term, all_terms, below, get_term, ids_by_name, is_term, of_other_species, related

_GREEK = {"α": " alpha ", "β": " beta ", "γ": " gamma ", "δ": " delta ", "ε": " epsilon ", "φ": " phi "}
#: British spellings, as parts of words.
_BRITISH = {"tumour": "tumor", "haem": "hem", "oesoph": "esoph", "foet": "fet", "fibre": "fiber", "centre": "center"}
#: Dashes that word processors and journals write for a hyphen.
_DASHES = re.compile(r"[‐‑‒–—﹣－]")  # noqa: RUF001
#: The minus of a marker that is absent, as in `CD16-` or `CD14+CD16-`; a sign for it is one wherever it stands.
_MINUS = re.compile(r"(?<=[a-z0-9])(?:-(?=\s|$|cd\d|[,;)])|[−⁻])")
#: A marker and a word that a hyphen joins (`CD16-NK`), which may mean that the cell has it, or has not. `CD4-T` has it.
_MARKER_AND_WORD = re.compile(
    r"\bcd\d+[a-z]?(?:-|\s[-−]\s)(?!t\b|positive|negative|high|low|dim|bright|express|hi\b|lo\b|pos\b|neg\b)[a-z]"
)
#: What stands between the names of several types (`T/NK`); T before NK means both, after it the NK T cell.
_BETWEEN_TYPES = re.compile(r"[/&|]|\s\+\s|\band\b|\bt[\W_]+(?:cells?[\W_]+)?nk\b")
#: The same where it is a part of names, too (`CD8-positive, alpha-beta T cell`): each side must be a type.
_PERHAPS_BETWEEN = re.compile(r"\s*[,;:]\s*|(?<=[A-Za-z])\+(?=[A-Za-z])")
#: Words whose number is a part of a name (`pneumocyte type 2`); other numbers at an end count clusters (`B_cell_1`).
_NUMBERED = frozenset({"type", "helper", "th", "group", "layer", "class", "stage", "phase"})
#: A level that is written without a space after a marker, as in `CD56bright`.
_LEVEL = re.compile(r"\b(cd\d+[a-z]?)(bright|dim|high|low|hi|lo|pos|neg)\b")
#: A letter that is written together with `cell`, as in `Tcell`.
_JOINED = re.compile(r"\b([bt])cells?\b")
#: The mark that tells `Bm2'` from `Bm2`.
_PRIME = re.compile(r"'(?=\s|$)")
_WORDS_OF_LEVEL = {"hi": "high", "lo": "low", "pos": "positive", "neg": "negative"}
#: Words that a name can do without: `NK` is an NK cell, and `CD4 T` a `CD4-positive T cell`.
_FILLERS = frozenset({"cell", "positive", "of"})
#: Words for the state of dividing, which is a cell of the same type.
_CYCLING = frozenset({"cycling", "proliferating", "proliferative", "dividing"})
#: Letters that name a cell without the word: all others are too short to mean anything.
_LETTERS = frozenset({"b", "t"})

#: An id of the Cell Ontology, as CELLxGENE's files write it ("CL:0000236"), OWL ("CL_0000236", also at the end of an
#: address) and people.
_ID = re.compile(r"(?:https?://\S+/)?CL[:_ ]*(\d{7})", re.IGNORECASE)
#: An id that stands beside a name.
_ID_BESIDE = re.compile(r"(?<!\w)CL[:_](\d{7})(?!\w)")

_SUGGESTIONS = 3
_SHORT = 24  # Longest short name, in characters.
_ABBREVIATION = 5  # Longest abbreviation, in letters.


def normalized(name: str) -> str:
    """
    Removes differences of spelling from a name: case, accents, punctuation, plurals, Greek letters, British spelling,
    and signs for positive and negative.

    ```python
    >>> from modeling_langcell.ontology.names import normalized
    >>> normalized("γδ T-cells"), normalized("CD14+CD16- Monocytes")
    ('gamma delta t cell', 'cd14 positive cd16 negative monocyte')

    ```"""
    text = _DASHES.sub("-", unicodedata.normalize("NFKD", name).casefold())
    text = "".join(_GREEK.get(letter, letter) for letter in text if not unicodedata.combining(letter)).replace("_", " ")
    text = _MINUS.sub(
        " negative ", re.sub(r"\+{2,}", " high ", text).replace("+", " positive ").replace("⁺", " positive ")
    )
    text = _JOINED.sub(r"\1 cell", _LEVEL.sub(r"\1 \2", text))
    for british, american in _BRITISH.items():
        text = text.replace(british, american)
    words = re.sub(r"\W", " ", _PRIME.sub(" prime ", text)).split()
    return " ".join(_WORDS_OF_LEVEL.get(word, _singular(word)) for word in words)


def _singular(word: str) -> str:
    """Removes the plural from a word. What is left need not be a word, as long as names of one thing stay equal."""
    if len(word) < 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")) or any(map(str.isdigit, word)):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1]


def _any_order(name: str) -> str:
    """
    Returns the words of a name that matter, in alphabetical order; empty if they say too little, or if the order says
    what they mean: those of two types, of a marker that may be absent, or of a cluster with a number.
    """
    folded, in_order = _DASHES.sub("-", name.casefold()).replace("_", " "), normalized(name).split()
    is_counted = in_order[:1] and (
        in_order[0].isdigit() or (in_order[-1].isdigit() and in_order[-2:-1] and in_order[-2] not in _NUMBERED)
    )
    if is_counted or _BETWEEN_TYPES.search(folded) or _MARKER_AND_WORD.search(folded):
        return ""
    words = sorted(set(in_order) - _FILLERS)
    return "" if len(words) == 1 and len(words[0]) == 1 and words[0] not in _LETTERS else " ".join(words)


#: Names of terms, each with the id of its term.
Names = list[tuple[str, str]]


def _own() -> Names:
    """Returns the ontology's own names of human types."""
    return [(term.name, term.id) for term in all_terms() if not of_other_species(term.name)]


def _own_and_foreign() -> Names:
    """
    Returns the ontology's own names, and those of types of other species, which only have names that say so: a bare
    synonym, such as "alpha cell" for a mouse's retina, means something else for human cells.
    """
    named = ((name, term.id) for term in all_terms() for name in (term.name, *term.synonyms))
    return [*_own(), *((name, term_id) for name, term_id in named if of_other_species(name))]


def _everyday() -> Names:
    """Returns the everyday names of the catalogue."""
    return [(name, one.id) for one in cell_types().values() for name in (one.short_name, *one.names)]


def _synonyms() -> Names:
    """Returns the synonyms of human types."""
    human = (term for term in all_terms() if not of_other_species(term.name))
    return [(synonym, term.id) for term in human for synonym in term.synonyms if not of_other_species(synonym)]


#: Where a name is looked up, in this order, and by what. Synonyms count that only one term has.
_SPELLINGS = ((_own_and_foreign, normalized), (_everyday, normalized), (_synonyms, normalized))
_IN_ANY_ORDER = ((_everyday, _any_order), (_own, _any_order), (_synonyms, _any_order))


@cache
def _ids(names: Callable[[], Names], key: Callable[[str], str]) -> dict[str, str]:
    """Returns ids by the keys of names, without keys that several terms share."""
    ids: dict[str, set[str]] = {}
    for name, term_id in names():
        ids.setdefault(key(name), set()).add(term_id)
    return {one: next(iter(of_key)) for one, of_key in ids.items() if one and len(of_key) == 1}


def as_id(label: str) -> str | None:
    """Returns a label that is an id of the Cell Ontology as the ontology writes it; None for any other label."""
    if (found := _ID.fullmatch(label.strip())) is not None:
        return f"CL:{found[1]}"
    beside = set(_ID_BESIDE.findall(label))
    return f"CL:{beside.pop()}" if len(beside) == 1 else label if label.startswith("CL:") else None


def is_id(label: str) -> bool:
    """Returns true for an id of the Cell Ontology with nothing beside it, in any spelling."""
    return _ID.fullmatch(label.strip()) is not None


def id_of(label: str) -> str | None:
    """
    Returns the id of the Cell Ontology's term that a label means, or None if it means no term or a deprecated one.
    """
    if (term_id := as_id(label)) is not None:
        return term_id if is_term(term_id) else None
    if is_term(term_id := ids_by_name("CL").get(label, "")):
        return term_id
    # A table is made when the ones before do not have the name.
    tables = _SPELLINGS if _is_two_types(label) else (*_SPELLINGS, *_IN_ANY_ORDER)
    looked_up = (_ids(names, key).get(key(label)) for names, key in tables)
    found = next((term_id for term_id in looked_up if term_id is not None), None)
    words = normalized(label).split()
    if found is not None or _CYCLING.isdisjoint(words) or _CYCLING.issuperset(words):
        return found
    # Proliferating cells of a type: the ontology has a term for some, and otherwise they are cells of the type.
    resting = id_of(" ".join(word for word in words if word not in _CYCLING))
    if resting is None:
        return None
    return ids_by_name("CL").get(f"cycling {get_term(resting).name}", resting)


def _is_two_types(label: str) -> bool:
    """Returns true for the names of several types, none of which is a kind of another (`T cells, NK cells`)."""
    parts = _PERHAPS_BETWEEN.split(label)
    ids = [id_of(part) for part in parts] if len(parts) > 1 else [None]
    known = [term_id for term_id in ids if term_id is not None]
    return len(known) == len(ids) and not any(related(one, other) for one, other in combinations(known, 2))


def find_term(label: str) -> Term:
    """
    Returns the term that a `CL:` id, a name, an everyday name or a synonym means, regardless of spelling, plural and
    the order of the words. A name without a species means a human cell.

    Raises:
        InputError: There is no such term; the message names the closest ones.

    ```python
    >>> from modeling_langcell.ontology import find_term
    >>> find_term("B cells").id, find_term("Tregs").name, find_term("T CD4").id
    ('CL:0000236', 'regulatory T cell', 'CL:0000624')

    ```"""
    require_text(label, "The name of a cell type", LONGEST_NAME)
    if (term_id := as_id(label)) is not None:
        return get_term(term_id)
    if (term_id := id_of(label)) is None:
        raise unknown_names([label])
    return get_term(term_id)


def short_name(label: str) -> str:
    """
    Returns a name of at most 24 characters for plots: the catalogue's, or else the label, cut if it is longer.

    ```python
    >>> from modeling_langcell.ontology import short_name
    >>> short_name("CD8-positive, alpha-beta T cell"), short_name("a cell that nobody has seen before")
    ('CD8 T', 'a cell that nobody has …')

    ```"""
    known = cell_type(id_of(label))
    if known is not None:
        return known.short_name
    return label if len(label) <= _SHORT else label[: _SHORT - 1] + "…"


def unknown_names(labels: list[str]) -> InputError:
    """Returns the error for labels that the Cell Ontology does not know, with the closest types of each."""
    shown = "; ".join(f"{label!r} (closest: {', '.join(_closest(label))})" for label in labels)
    return InputError(
        f"The Cell Ontology does not know {shown}. Give one of the closest, or your own description: "
        "{" + repr(labels[0]) + ": 'cell type: ...'}."
    )


def _closest(label: str) -> list[str]:
    """Returns the human types with the names most like a label: those of the catalogue, if they are as close."""
    exact = _ids(_synonyms, normalized) | _ids(_everyday, normalized) | _ids(_own_and_foreign, normalized)
    query = normalized(label)
    # Abbreviations are like every short word: they answer to short queries alone.
    shortest = min(len(query) - 2, _ABBREVIATION + 1)
    human = {name: i for name, i in exact.items() if not of_other_species(get_term(i).name)}
    names = [name for name in human if len(name) >= shortest]
    scores: dict[str, float] = {}
    for scorer in (fuzz.token_sort_ratio, fuzz.token_set_ratio):
        for name, score, _ in process.extract(query, names, scorer=scorer, limit=30):
            whole = fuzz.ratio(query, name)
            known = 5 if cell_type(exact[name]) else 0
            scores[exact[name]] = max(scores.get(exact[name], 0), 0.5 * score + 0.5 * whole + known)
    best = sorted(scores, key=lambda term_id: -scores[term_id])[:_SUGGESTIONS]
    return [f"{get_term(term_id).name!r} {term_id}" for term_id in best]


def descendants(root: str) -> tuple[Term, ...]:
    """
    Returns the term with a name or id, and all human terms below it: the candidates of `--ontology-root`. For a term of
    another species, the terms of other species too.
    """
    top = find_term(root)
    found = below(top.id)
    return (top, *(term for term in found if of_other_species(top.name) or not of_other_species(term.name)))


__all__ = ["descendants", "find_term", "id_of", "is_id", "normalized", "short_name", "unknown_names"]
