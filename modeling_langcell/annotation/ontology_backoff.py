# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Probabilities of the terms above the candidates in the Cell Ontology, and the most specific term to answer with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..ontology import UNINFORMATIVE, ancestors, depth, get_term, id_of, kinds_below

#: The answer where no term is probable enough.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class TermNode:
    """
    A possible answer: a term of the Cell Ontology, or a label that the ontology does not have.

    Args:
        name: The term's name, or the label.
        id: The term's id; empty for a label that the ontology does not have.
    """

    name: str
    id: str

    @property
    def depth(self) -> int:
        """Steps up to the nearest uninformative term; 0 for a label that the ontology does not have."""
        return depth(self.id) if self.id else 0


class OntologyBackoff:
    """
    The candidates and the terms above them. A label that the Cell Ontology has belongs to its own term and to every
    informative term above it; any other label is a node of its own.

    Args:
        labels: The candidates.

    ```python
    >>> import numpy as np
    >>> from modeling_langcell.annotation.ontology_backoff import OntologyBackoff
    >>> backoff = OntologyBackoff(["CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell", "B cell"])
    >>> label_probabilities = np.array([[0.5, 0.45, 0.05], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]])
    >>> answers, confidence = backoff.answer_labels(label_probabilities, threshold=0.7)
    >>> [backoff.nodes[answer].name for answer in answers]
    ['mature alpha-beta T cell', 'B cell', 'lymphocyte']

    ```"""

    def __init__(self, labels: Sequence[str]):
        nodes_of = []
        for label in labels:
            term = id_of(label)
            nodes_of.append({TermNode(label, "")} if term is None else {_node(i) for i in _informative(term)})
        #: Possible answers, each before all terms above it.
        self.nodes = sorted({node for nodes in nodes_of for node in nodes}, key=_breadth)
        index = {node: number for number, node in enumerate(self.nodes)}
        rows, columns = zip(
            *((index[node], label) for label, nodes in enumerate(nodes_of) for node in nodes), strict=True
        )
        shape = (len(self.nodes), len(labels))
        self._covered = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape)

    def probabilities(self, label_probabilities: np.ndarray) -> np.ndarray:
        """Sums the `(cells, labels)` probabilities under each node; `(cells, nodes)`."""
        return (self._covered @ label_probabilities.T).T

    def answer(self, probabilities: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """
        Chooses the most specific node that is probable enough for each cell.

        Args:
            probabilities: `(cells, nodes)`, as `probabilities` returns them.
            threshold: Lowest probability of an answer.

        Returns:
            `(cells,)` numbers of nodes, -1 where no node is probable enough, and `(cells,)` their probabilities; where
            there is no answer, the probability of the most probable node.
        """
        enough = probabilities >= threshold
        answers = np.where(enough.any(axis=1), enough.argmax(axis=1), -1)
        confidence = np.where(answers >= 0, probabilities[np.arange(len(answers)), answers], probabilities.max(axis=1))
        return answers, confidence.clip(0, 1)

    def answer_above(self, label_probabilities: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
        """
        Chooses the most specific node that is probable enough among the nodes of a label and those above it.

        Args:
            label_probabilities: `(clusters, labels)`.
            labels: `(clusters,)` numbers of labels.
            threshold: Lowest probability of an answer.

        Returns:
            `(clusters,)` numbers of nodes, -1 where no node is probable enough.
        """
        above = self._covered[:, labels].T.toarray()
        return self.answer(self.probabilities(label_probabilities) * above, threshold)[0]

    def answer_labels(self, label_probabilities: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Chooses answers in the same way as `answer`, from `(cells, labels)` probabilities."""
        return self.answer(self.probabilities(label_probabilities), threshold)

    def holds(self, answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """
        Tests answers against labels; `(cells,)` true where an answer is the label's own node or one above it.

        Args:
            answers: `(cells,)` numbers of nodes; false where -1.
            labels: `(cells,)` numbers of labels; false where -1.
        """
        pairs = (answers >= 0) & (labels >= 0)
        found = np.zeros(len(answers), dtype=bool)
        if pairs.any():  # SciPy cannot index with empty arrays.
            found[pairs] = np.asarray(self._covered[answers[pairs], labels[pairs]]).ravel() > 0
        return found

    def right(self, answers: np.ndarray, truth: Sequence[str]) -> np.ndarray:
        """
        Tests answers against known types; `(cells,)` true where an answer is the cell's type or a term above it.

        Args:
            answers: `(cells,)` numbers of nodes; false where -1.
            truth: Known types of the cells, as labels.
        """
        correct = {label: self._correct_nodes(label) for label in dict.fromkeys(truth)}
        return np.array([answer in correct[label] for answer, label in zip(answers.tolist(), truth, strict=True)], bool)

    def narrower(self, answers: np.ndarray, truth: Sequence[str]) -> np.ndarray:
        """Tests answers in the same way as `right`; true where an answer is a kind of the cell's type."""
        below = {label: self._nodes_below(id_of(label)) for label in dict.fromkeys(truth)}
        return np.array([answer in below[label] for answer, label in zip(answers.tolist(), truth, strict=True)], bool)

    def _nodes_below(self, term: str | None) -> set[int]:
        return {number for number, node in enumerate(self.nodes) if node.id and term in ancestors(node.id)}

    def _correct_nodes(self, label: str) -> set[int]:
        term = id_of(label)
        known = {label} if term is None else {term, *ancestors(term)}
        return {number for number, node in enumerate(self.nodes) if (node.id or node.name) in known}


def _informative(term_id: str) -> set[str]:
    return {term_id} | (ancestors(term_id) - UNINFORMATIVE)


def _node(term_id: str) -> TermNode:
    return TermNode(get_term(term_id).name, term_id)


def _breadth(node: TermNode) -> tuple[int, int, str]:
    """Returns a sort key: nodes with fewer terms below them come first, and deeper ones first among equals."""
    return (kinds_below(node.id) if node.id else 0, -node.depth, node.name)


__all__ = ["UNKNOWN", "OntologyBackoff", "TermNode"]
