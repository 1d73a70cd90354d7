# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The feature extractor: reads counts, matches genes, and encodes cells as ranked gene ids (LangCell, section 3.1)."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import Any, Literal, TypeVar

import numpy as np
import scipy.sparse as sp
from transformers import BatchFeature, FeatureExtractionMixin

from .count_matrix import CountMatrix
from .count_sources import open_anndata, open_matrix
from .count_values import Counts, check_values
from .errors import InputError, Remedy
from .gene_columns import noted_other_organism
from .gene_matching import GeneMatch, GeneVocabulary, UsualPlaces
from .ranking import RankedCells, RankedChunks

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=Callable)


class LangCellFeatureExtractor(FeatureExtractionMixin):
    r"""
    Encodes counts as ranked gene ids: every count is divided by the gene's median over the pre-training corpus, and a
    cell becomes `<cls>` and its genes from the highest value down. Ties go to the lower gene id, so that the order of
    the matrix's columns never matters.

    Args:
        gene_vocabulary: The genes in the order of their ids, as three lists of one length: `ensembl_ids`; `medians`,
            the non-zero medians (`None` for a gene that is never used); `names`, symbol and synonyms joined by `|`.
            Ids are `<pad>` 0, `<mask>` 1, genes from 2 on, `<cls>` last. Optional: `organism`, human by default; and
            `orthologs`, by the name of another organism, whose cells can then be read: a list of the Ensembl id and the
            symbol of each gene's one-to-one ortholog, joined by `|`, or `""`.
        max_length: Longest sequence, including `<cls>`.
        min_matched_genes: Smallest share of a matrix's genes that must be known; below it the input is refused.
        gene_places: What is usual for each gene, in the order of `gene_vocabulary`: lists `means` and `spreads` of its
            place in the whole ranking of a cell (1 for the first of the cell's genes, 0 for one that is not expressed).
            Marker evidence is measured against it. Without it every gene counts as an average one.

    Example:

    ```python
    >>> import scipy.sparse as sp
    >>> from modeling_langcell import LangCellFeatureExtractor
    >>> extractor = LangCellFeatureExtractor(
    ...     {"ensembl_ids": ["ENSG01", "ENSG02"], "medians": [1.0, 4.0], "names": ["CD3E", "LYZ|LYZF1"]}
    ... )
    >>> extractor(sp.csr_matrix([[2, 4], [0, 3]]), gene_ids=["CD3E", "LYZF1"])["cell_input_ids"]
    [[4, 2, 3], [4, 3, 0]]

    ```"""

    _auto_class = "AutoFeatureExtractor"

    model_input_names = ["cell_input_ids", "cell_attention_mask"]

    def __init__(
        self,
        gene_vocabulary: dict[str, Any],
        max_length: int = 2048,
        min_matched_genes: float = 0.1,
        gene_places: dict[str, list] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(max_length, int) or not isinstance(min_matched_genes, (int, float)):
            raise InputError(f"max_length={max_length!r} and min_matched_genes={min_matched_genes!r} must be numbers.")
        self.gene_vocabulary = gene_vocabulary
        self.max_length = max_length
        self.min_matched_genes = min_matched_genes
        self.gene_places = gene_places
        self._genes = GeneVocabulary(gene_vocabulary)
        UsualPlaces(gene_places, len(self._genes))  # Refuses lists that do not fit.
        self.pad_token_id, self.mask_token_id = self._genes.pad_token_id, self._genes.mask_token_id
        self.cls_token_id = self._genes.cls_token_id

    def __len__(self) -> int:
        """Number of ids, including special ones: the cell tower's `vocab_size`."""
        return self.cls_token_id + 1

    def to_dict(self) -> dict[str, Any]:
        """Returns the arguments, which are what is saved, without the tables made from them."""
        output = {key: value for key, value in super().to_dict().items() if not key.startswith("_")}
        if self.gene_places is None:
            del output["gene_places"]
        for derived in ("pad_token_id", "mask_token_id", "cls_token_id"):
            output.pop(derived)
        # A processor that was saved has added its own class.
        output["auto_map"] = {self._auto_class: f"feature_extraction_langcell.{type(self).__name__}"}
        return output

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self) - 3} genes, max_length={self.max_length})"

    # ------------------------------------------------------------------ genes

    def match_genes(self, *columns: Sequence[str], organism: str | None = None) -> GeneMatch:
        """Finds the genes of a matrix in the vocabulary: see `GeneVocabulary.match`."""
        return self._genes.match(*columns, organism=organism)

    def by_gene(self, counts: sp.csr_matrix, match: GeneMatch) -> sp.csr_matrix:
        """Returns the positive counts of known genes, `(cells, vocabulary)`, with duplicated genes summed."""
        return self._genes.sum_by_gene(counts, match)

    @property
    def genes(self) -> GeneVocabulary:
        """The genes that the model knows."""
        return self._genes

    @property
    def usual_places(self) -> UsualPlaces:
        """Mean and spread of the place of each gene in the rankings of cells."""
        return UsualPlaces(self.gene_places, len(self._genes))

    # ------------------------------------------------------------------ cells

    def __call__(
        self,
        cells: Any,
        *,
        gene_ids: Sequence[str] | None = None,
        layer: str | None = None,
        use_raw: bool = False,
        gene_column: str | None = None,
        organism: str | None = None,
        counts: Counts = "auto",
        empty_cells: Literal["error", "mark"] = "error",
        max_length: int | None = None,
        padding: bool | Literal["longest", "max_length", "do_not_pad"] = True,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """
        Encodes cells as one batch.

        Args:
            cells: An AnnData, in memory or backed; or a sparse or dense `(cells, genes)` matrix with `gene_ids`.
            gene_ids: `(genes,)` Ensembl ids or symbols of a matrix's columns.
            layer: A layer of the AnnData to read in place of `X`.
            use_raw: Read `.raw` of the AnnData in place of `X`.
            gene_column: The column of `var` that names the genes. By default its index and the usual columns
                (`ensembl_id`, `gene_ids`, `feature_name`, `symbol` and the like) are all considered.
            organism: The organism whose genes are read: the checkpoint's own, or one whose orthologs it knows, such as
                mouse. By default the one that knows the most of the genes.
            counts: Kind of the values: `"raw"` counts; `"corrected"` ones, such as those of SoupX and DecontX;
                `"normalized"`, scaled by one factor per cell (CPM, for example); `"log1p"`, the logarithm of such
                values, whose base is told from the values or `uns["log1p"]`. Raw, normalised and logarithms give the
                same ranks, since a value that is a whole multiple of its cell's smallest one, up to float32's
                rounding, is taken as exactly that. By default (`"auto"`) the kind is told from the values and, if no
                array is named, the first of X, raw and a layer called counts is read that holds counts.
            empty_cells: Treatment of a cell without any known gene: `"error"` refuses the input, `"mark"` keeps only
                `<cls>`.
            max_length: Longest sequence, including `<cls>`; the extractor's own by default.
            padding: Pads to the longest cell (`True`), to `max_length`, or not at all.
            return_tensors: `"pt"` or `"np"`; lists if left out.

        Returns:
            `cell_input_ids` and `cell_attention_mask`, `(cells, genes)` int64.

        Raises:
            InputError: Values that are not of the kind that `counts` names, too few known genes, no cells, no genes, a
                cell without known genes.
        """
        if padding not in (True, False, "longest", "max_length", "do_not_pad"):
            raise InputError(f"padding={padding!r} is not one of True, 'longest', 'max_length', False, 'do_not_pad'.")
        ranked = self.rank(
            cells,
            gene_ids=gene_ids,
            layer=layer,
            use_raw=use_raw,
            gene_column=gene_column,
            organism=organism,
            counts=counts,
            empty_cells=empty_cells,
            max_length=max_length,
        )
        if padding in (False, "do_not_pad"):
            if return_tensors and len(set(ranked.lengths.tolist())) > 1:
                raise InputError("Cells of different lengths do not fit one tensor: pad them, or omit return_tensors.")
            rows = [ranked[cell].tolist() for cell in range(len(ranked))]
            batch: dict[str, Any] = {"cell_input_ids": rows, "cell_attention_mask": [[1] * len(row) for row in rows]}
        else:
            ids, mask = ranked.pad(length=(max_length or self.max_length) if padding == "max_length" else None)
            arrays = {"cell_input_ids": ids, "cell_attention_mask": mask}
            batch = arrays if return_tensors else {name: array.tolist() for name, array in arrays.items()}
        return BatchFeature(batch, tensor_type=return_tensors)

    def pad(
        self,
        encoded: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | Literal["longest", "max_length", "do_not_pad"] = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """
        Pads encoded cells to one length, as tokenizers do for `transformers.DataCollatorWithPadding`.

        Args:
            encoded: A batch that a call returned, or the same for each cell. Padding that is in it already is left out.
                Other values, such as labels, are kept.
            padding: Pads to the longest cell (`True`), to `max_length`, or not at all.
            max_length: Length of `padding="max_length"`; the extractor's own by default.
            pad_to_multiple_of: Pads further, to a multiple of this.
            return_tensors: `"pt"` or `"np"`; lists if left out.

        Raises:
            InputError: There are no cells, or one is longer than `max_length`.
        """
        if not isinstance(encoded, Mapping):
            encoded = {name: [cell[name] for cell in encoded] for name in (encoded[0] if len(encoded) else ())}
        ids_name, mask_name = self.model_input_names
        if ids_name not in encoded:
            raise InputError(f"There is no {ids_name} to pad, only {', '.join(encoded) or 'nothing'}.")
        rows = [np.asarray(row) for row in encoded[ids_name]]
        masks = encoded.get(mask_name, [np.ones(len(row)) for row in rows])
        cells = RankedCells.from_rows([row[np.asarray(mask) > 0] for row, mask in zip(rows, masks, strict=True)])
        length = cells.lengths.max()
        if padding == "max_length":
            limit = self.max_length if max_length is None else max_length
            if length > limit:
                raise InputError(f"A cell of {length} ids is longer than max_length={limit}.")
            length = limit
        batch: dict[str, Any] = dict(encoded)
        if padding not in (False, "do_not_pad"):
            ids, mask = cells.pad(length=-(-length // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1))
            arrays = {ids_name: ids, mask_name: mask}
            batch |= arrays if return_tensors else {name: array.tolist() for name, array in arrays.items()}
        return BatchFeature(batch, tensor_type=return_tensors)

    def rank(self, cells: Any, **kwargs: Any) -> RankedCells:
        """Ranks all the cells at once. Arguments are those of a call, without padding and tensors."""
        return RankedCells.concatenate(list(self.stream(cells, **kwargs)))

    def stream(self, cells: Any, **kwargs: Any) -> Iterator[RankedCells]:
        """
        Ranks the cells `chunk_size` at a time, in order: memory grows with the chunk and not with the input. Arguments
        are those of `chunks`. Errors in a later chunk are raised when that chunk is reached.
        """
        return iter(self.chunks(cells, **kwargs))

    def chunks(
        self,
        cells: Any,
        *,
        chunk_size: int = 4096,
        gene_ids: Sequence[str] | None = None,
        layer: str | None = None,
        use_raw: bool = False,
        gene_column: str | None = None,
        organism: str | None = None,
        counts: Counts = "auto",
        empty_cells: Literal["error", "mark"] = "error",
        max_length: int | None = None,
        places_of: Sequence[int] = (),
    ) -> RankedChunks:
        """
        Opens the cells as chunks of `chunk_size`, each of which is read and ranked when it is requested. `places_of`
        are ids of genes whose places in each cell's whole ranking are wanted. The other arguments are those of a call.

        Raises:
            InputError: Arguments that do not fit, no cells, no genes, too few known genes. Errors in the values of
                later cells are raised when their chunk is read.
        """
        if empty_cells not in ("error", "mark"):
            raise InputError(f"empty_cells={empty_cells!r} is not one of 'error' and 'mark'.")
        if chunk_size < 1:
            raise InputError(f"chunk_size={chunk_size} is not a number of cells.")
        limit = self.max_length if max_length is None else max_length
        if limit < 2:
            raise InputError(f"max_length={limit} leaves no room for genes: it counts <cls> too.")
        source, match = self.open(
            cells,
            gene_ids=gene_ids,
            layer=layer,
            use_raw=use_raw,
            gene_column=gene_column,
            organism=organism,
            counts=counts,
        )
        return RankedChunks(
            source,
            self._genes,
            match,
            chunk_size=chunk_size,
            empty_cells=empty_cells,
            max_length=limit,
            gene_column=gene_column,
            organism=organism,
            places_of=places_of,
        )

    def open(
        self,
        cells: Any,
        *,
        gene_ids: Sequence[str] | None = None,
        layer: str | None = None,
        use_raw: bool = False,
        gene_column: str | None = None,
        organism: str | None = None,
        counts: Counts = "auto",
    ) -> tuple[CountMatrix, GeneMatch]:
        """
        Opens the array that is read, tells the kind of its values from the first cells, and matches its genes to the
        vocabulary. Arguments are those of a call.

        Raises:
            InputError: No such layer, column, raw or organism; no cells or no genes; fewer than `min_matched_genes`
                known; genes of several organisms, or of one that is not known; values of another kind than `counts`.
        """
        if hasattr(cells, "var_names"):
            if gene_ids is not None:
                raise InputError("gene_ids is for a matrix; for an AnnData, give their column of var with gene_column.")
            source, names = open_anndata(cells, layer, use_raw, gene_column, counts)
        else:
            if layer is not None or use_raw or gene_column is not None:
                raise InputError("layer, use_raw and gene_column are for an AnnData; a matrix takes only gene_ids.")
            source, names = open_matrix(cells, gene_ids, counts)
        n_cells, n_genes = len(source), source.n_genes
        if n_cells == 0 or n_genes == 0:
            raise InputError(f"{source.label} is empty: {n_cells} cells x {n_genes} genes.")
        columns = [list(map(str, column)) for column in names.values()]
        match = self.match_genes(*columns, organism=organism)
        if organism is None:
            self._require_one_organism(match, source.label)
            self._require_its_organism(match, cells)
        if match.fraction < self.min_matched_genes:
            examples = ", ".join(repr(name) for name in columns[0][:3])
            remedy = self._other_names(cells, match, columns, gene_column, organism)
            raise InputError(
                f"{(match.token_ids >= 0).sum()} of the {n_genes} genes of {source.label} are known "
                f"({match.fraction:.1%}; at least {self.min_matched_genes:.0%} are required). Names in "
                f"{', '.join(names)}: {examples}, ... Ensembl ids or gene symbols of "
                f"{' or '.join(self._genes.organisms if organism is None else [match.organism])} are expected.",
                remedy,
            )
        logger.info(
            "%s: %d of %d %s genes are known (%d by Ensembl id, %d by symbol, %d by synonym); others are skipped.",
            *(source.label, (match.token_ids >= 0).sum(), n_genes, match.organism),
            *(match.by_ensembl_id, match.by_symbol, match.by_synonym),
        )
        if match.has_duplicates:
            logger.info("%s: some genes have several columns, whose counts are summed.", source.label)
        return source, match

    def _require_one_organism(self, match: GeneMatch, label: str) -> None:
        """
        Raises:
            InputError: Many of the genes are those of a second organism, or their ids of one that is not known.
        """
        n_genes, known = len(match.token_ids), " and ".join(self._genes.organisms)
        for other, number in match.only_elsewhere.items():
            if min(match.fraction, number / n_genes) >= self.min_matched_genes:
                raise InputError(
                    f"{label} has genes of {match.organism} and of {other}. Keep the cells of one of them.",
                    Remedy("Then read its genes alone: pass {option}, for example.", "organism", match.organism),
                )
        if match.is_foreign.any() and match.is_foreign.mean() >= self.min_matched_genes:
            raise InputError(
                f"{label} has genes of another genome than that of {match.organism}. Keep the cells of one organism.",
                Remedy("Then read its genes alone: pass {option}, for example.", "organism", match.organism),
            )
        if match.foreign_ids is not None:
            said = f"{label} has Ensembl ids of another organism, {match.foreign_ids}...: those of {known} are known."
            if match.fraction < self.min_matched_genes:
                raise InputError(said, Remedy("Give the genes the names of their orthologs in one of these."))
            read = f"To read its symbols as those of {match.organism} genes, pass {{option}}."
            raise InputError(said, Remedy(read, "organism", match.organism))

    def _require_its_organism(self, match: GeneMatch, cells: Any) -> None:
        """
        Raises:
            InputError: The AnnData says that its cells are of an organism that is not known.
        """
        noted = noted_other_organism(cells) if hasattr(cells, "var_names") else None
        if noted is None or set(self._genes.organisms).isdisjoint(("human", "mouse")):
            return
        raise InputError(
            f"The cells are of another organism than the genes that are known: {noted!r}.",
            Remedy(
                f"To read their genes as those of {match.organism} of the same names, pass {{option}}.",
                "organism",
                match.organism,
            ),
        )

    def _other_names(
        self,
        cells: Any,
        match: GeneMatch,
        columns: Sequence[Sequence[str]],
        gene_column: str | None,
        organism: str | None,
    ) -> Remedy:
        """
        Returns what to do about genes that are not known: another organism, or another column of names, if more are
        known with it.
        """
        if organism is not None:
            told = self.match_genes(*columns)
            if told.fraction >= self.min_matched_genes:
                return Remedy(f"They are genes of {told.organism}: pass {{option}}.", "organism", told.organism)
        known = {}
        if hasattr(cells, "var_names") and gene_column is None:
            texts = (column for _, column in cells.var.items() if column.dtype.kind not in "biufc")
            known = {column.name: self.match_genes(list(map(str, column))).fraction for column in texts}
        best = max(known, key=lambda column: known[column], default=None)
        if best is None or known[best] <= max(match.fraction, self.min_matched_genes):
            return Remedy("Give their column of var with {option}.", "gene_column")
        return Remedy(f"Column {best!r} of var has such names: pass {{option}}.", "gene_column", best)

    def read_counts(self, cells: Any, **where: Any) -> tuple[sp.csr_matrix, np.ndarray]:
        """
        Reads raw counts, all cells at once. Arguments and errors are those of `open`.

        Returns:
            Counts of the known genes by id, `(cells, vocabulary)`, and `(cells,)` totals over all genes of the matrix,
            known or not.

        Raises:
            InputError: Same as for `open`, or the values are not raw counts.
        """
        try:
            source, match = self.open(cells, counts="raw", **where)
            counts = source.rows(0, len(source))
            check_values(counts, source.kind, source, 0)
        except InputError as error:
            raise error.without("counts") from None
        return self._genes.sum_by_gene(counts, match), np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()


#: Arguments that say how the cells of an AnnData are read.
_CELL_OPTIONS = [
    name
    for name in signature(LangCellFeatureExtractor.chunks).parameters
    if name not in ("self", "cells", "chunk_size", "gene_ids")
]


def require_cell_options(names: Iterable[str], function: Callable | None = None) -> None:
    """
    Checks names of arguments that say how the cells of an AnnData are read.

    Args:
        names: The names.
        function: The function that takes them besides its own arguments.

    Raises:
        TypeError: There is no such argument; the message names the function and the closest argument.
    """
    own = [] if function is None else [name for name in signature(function).parameters if name != "self"]
    known = [*own, *_CELL_OPTIONS]
    for name in names:
        if name not in known:
            where = "There is" if function is None else f"{function.__qualname__} has"
            close = get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"cells are read by {', '.join(_CELL_OPTIONS)}."
            raise TypeError(f"{where} no argument {name!r}: {hint}")


def takes_cell_options(function: T) -> T:
    """Lets a function whose further arguments say how cells are read refuse others before it does anything."""

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        require_cell_options(kwargs, function)
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]


__all__ = ["LangCellFeatureExtractor", "require_cell_options", "takes_cell_options"]
