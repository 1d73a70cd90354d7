# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What is known of a cell at every level of the Cell Ontology, and the most specific of it that is sure enough."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..ontology import UNINFORMATIVE, ancestors, depth, get_term, id_of, kinds_below

#: The name of the answer where nothing is sure enough.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class TermNode:
    """
    What an answer can be: a term of the Cell Ontology, or a label that it does not know.

    Args:
        name: The term's name, or the label.
        id: The term's; empty for a label of no term.
    """

    name: str
    id: str

    @property
    def depth(self) -> int:
        """Steps up to a term that says next to nothing of a cell; 0 for a label of no term."""
        return depth(self.id) if self.id else 0


class OntologyBackoff:
    """
    Candidates, and all that they are kinds of. A label that the Cell Ontology knows belongs to its term and to every
    term above it but those that say next to nothing of a cell; any other label stands alone.

    Args:
        labels: The candidates.

    ```python
    >>> import numpy as np
    >>> from modeling_langcell.annotation.ontology_backoff import OntologyBackoff
    >>> hierarchy = OntologyBackoff(["CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell", "B cell"])
    >>> of_rungs = hierarchy.probabilities(np.array([[0.5, 0.45, 0.05], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]))
    >>> answers, confidence = hierarchy.answer(of_rungs, 0.7)
    >>> [hierarchy.nodes[answer].name for answer in answers]
    ['mature alpha-beta T cell', 'B cell', 'lymphocyte']

    ```"""

    def __init__(self, labels: Sequence[str]):
        above = []
        for label in labels:
            term = id_of(label)
            above.append({TermNode(label, "")} if term is None else {_rung(i) for i in _informative(term)})
        #: The most specific first: each comes before all that it is a kind of.
        self.nodes = sorted({node for of_label in above for node in of_label}, key=_breadth)
        place = {node: number for number, node in enumerate(self.nodes)}
        rows, columns = zip(*((place[node], label) for label, of in enumerate(above) for node in of), strict=True)
        shape = (len(self.nodes), len(labels))
        self._kinds = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape)

    def probabilities(self, of_labels: np.ndarray) -> np.ndarray:
        """`(cells, labels)` probabilities that add up to 1, to `(cells, rungs)`: each label's counts for all above."""
        return (self._kinds @ of_labels.T).T

    def answer(self, probabilities: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """
        Of each cell the most specific rung that is probable enough.

        Args:
            probabilities: `(cells, rungs)`, as `probabilities` gives them.
            threshold: The least probability of an answer.

        Returns:
            `(cells,)` numbers of rungs, -1 where none is probable enough; and `(cells,)` their probabilities, those of
            the most probable rung where there is no answer.
        """
        enough = probabilities >= threshold
        answers = np.where(enough.any(axis=1), enough.argmax(axis=1), -1)
        confidence = np.where(answers >= 0, probabilities[np.arange(len(answers)), answers], probabilities.max(axis=1))
        return answers, confidence.clip(0, 1)

    def holds(self, answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """
        `(cells,)` whether an answer is a label's own rung or above it.

        Args:
            answers: `(cells,)` numbers of rungs; -1, which says nothing, holds of none.
            labels: `(cells,)` numbers of labels; of none where -1.
        """
        pairs = (answers >= 0) & (labels >= 0)
        found = np.zeros(len(answers), dtype=bool)
        if pairs.any():  # SciPy has no table of no places.
            found[pairs] = np.asarray(self._kinds[answers[pairs], labels[pairs]]).ravel() > 0
        return found

    def right(self, answers: np.ndarray, truth: Sequence[str]) -> np.ndarray:
        """
        `(cells,)` whether an answer is true: the cell's type, or something that the type is a kind of.

        Args:
            answers: `(cells,)` numbers of rungs; -1, which says nothing, is not true.
            truth: The cells' types, as labels.
        """
        true = {label: self._true_of(label) for label in dict.fromkeys(truth)}
        return np.array([answer in true[label] for answer, label in zip(answers.tolist(), truth, strict=True)], bool)

    def _true_of(self, label: str) -> set[int]:
        term = id_of(label)
        known = {label} if term is None else {term, *ancestors(term)}
        return {number for number, node in enumerate(self.nodes) if (node.id or node.name) in known}


def _informative(term_id: str) -> set[str]:
    return {term_id} | (ancestors(term_id) - UNINFORMATIVE)


def _rung(term_id: str) -> TermNode:
    return TermNode(get_term(term_id).name, term_id)


def _breadth(node: TermNode) -> tuple[int, int, str]:
    """Fewer terms below come first; of as many, the deeper."""
    return (kinds_below(node.id) if node.id else 0, -node.depth, node.name)


__all__ = ["UNKNOWN", "OntologyBackoff", "TermNode"]
