# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Reads what an AnnData says of the rows of `var`: which are genes, by what names, and of which organism."""

import logging
import re
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError
from .gene_names import ENSEMBL_ID, ORGANISMS, is_missing, organism_of

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

#: Columns of `var` that may name the genes, besides its index: those of Ensembl ids, which are trusted most, and those
#: of symbols. Case, points, underscores and numbers in them do not matter.
_NAME_COLUMNS = (
    *("ensembl", "ensemblid", "ensemblids", "ensemblgeneid", "ensemblgeneids", "geneid", "geneids", "featureid"),
    *("featureids", "accession", "symbol", "symbols", "genesymbol", "genesymbols", "hgnc", "hgncsymbol"),
    *("featurename", "featurenames", "genename", "genenames", "geneshortname", "externalgenename"),
    *("gene", "genes", "feature", "features", "index"),
)
#: Columns of `var` that may say what is measured in each of its rows, such as "Gene Expression" or "Antibody Capture",
#: and those of the biotypes of genes, of which there are many.
_KIND_COLUMNS = {"featuretype", "featuretypes", "featurebiotype", "featureclass", "modality", "librarytype"}
_BIOTYPE_COLUMNS = {"genetype", "genebiotype"}
#: What Cell Ranger calls genes: a column that holds it tells kinds, whatever the column is called.
_OF_CELL_RANGER = "gene expression"
#: Biotypes say more of genes (`cell surface`, `guide RNA`): few of them are no genes.
_NO_BIOTYPES = re.compile(r"antibod|hashtag|multiplex|peak|spike")
_GENES = re.compile(r"gene|rna|transcript|expression|coding|\b(?:expr|gex)\b")
_NO_GENES = re.compile(
    r"antibod|hashtag|crispr|multiplex|peak|chromatin|antigen|spike|surface|epitope|protein(?!.?coding)|abseq|cite.?seq"
    r"|\b(?:adt|hto|guides?|custom|atac|prot|s?grnas?)\b"
)
#: Names that no gene has: regions of chromosomes, antibodies, guides, tags of samples, spike-ins.
_NO_GENE_NAME = re.compile(
    r"^(?:[a-z]+\d+_+)?(?:chr\w+?|\d{1,2}|[xy]|mt?|(?:gl|ki)\d+\.\d+)[:._-]\d+[._-]\d+$|totalseq"
    r"|^ercc[-._]\d{5}$|^(?:hto|hashtag|cmo)[-._]?\d+$"
    r"|(?:^|[^a-z0-9])(?:adt|hto|pabo|abseq|antibody|hashtag|s?grna)(?:$|[^a-z0-9])",
    re.IGNORECASE,
)
#: Organisms that some people annotate by the symbols that they share with human, and that files name.
_OTHER_ORGANISMS = re.compile(
    r"\b(?:macaca|macaques?|rhesus|cynomolgus|monkeys?|callithrix|marmosets?|microcebus|lemurs?|"
    r"pan troglodytes|pan paniscus|bonobos?|chimpanzees?|gorilla|pongo|orangutans?|papio|baboons?|"
    r"chlorocebus|vervets?|non.?human primates?|nhp|rattus|rats?|sus scrofa|pigs?|swine|porcine|"
    r"bos taurus|cows?|cattle|bovine|equus|horses?|sheep|ovis|goats?|canis|dogs?|felis|cats?|rabbits?|"
    r"oryctolagus|mesocricetus|hamsters?|cavia|guinea pigs?|mustela|ferrets?|heterocephalus|gallus|"
    r"chickens?|taeniopygia|danio|zebrafish|xenopus|frogs?|ambystoma|drosophila|fly|caenorhabditis)\b"
)
_KNOWN_ORGANISMS = re.compile(r"human(?! primate)|mouse|mice|homo sapiens|mus musculus")
_ORGANISM_COLUMNS = {"organism", "species", "organismontologytermid", "organismontologylabel", "speciesontologylabel"}
_TAXON = re.compile(r"NCBITaxon:\d+")


def name_columns(var: "pd.DataFrame", label: str, gene_column: str | None = None) -> dict[str, np.ndarray]:
    """
    Returns the columns that may name the rows of `var`, by their names in messages, the index first and then the most
    trusted ones.

    Args:
        var: The table.
        label: Its name in messages.
        gene_column: The only column to take.

    Raises:
        InputError: There is no such column.
    """
    if gene_column is not None:
        if gene_column not in var.columns:
            raise InputError(f"No column {gene_column!r} in {label}; columns here: {sorted(map(str, var.columns))}.")
        return {f"{label}[{gene_column!r}]": _texts(var.iloc[:, list(var.columns).index(gene_column)])}
    places: dict[str, int] = {}
    for place, column in enumerate(var.columns):
        places.setdefault(_key(column), place)
    usual = [places[key] for key in _NAME_COLUMNS if key in places]
    texts = {f"{label}[{var.columns[place]!r}]": _texts(var.iloc[:, place]) for place in usual}
    return {f"the index of {label}": _texts(var.index)} | texts


def find_genes(var: "pd.DataFrame", names: Mapping[str, np.ndarray], label: str) -> np.ndarray:
    """
    Returns `(rows of var,)` booleans: false for antibodies, peaks and the like, by the columns that say so and by names
    that no gene has. A row without such a kind, or of an unknown one but with an Ensembl id, is a gene.

    Raises:
        InputError: No row is a gene.
    """
    genes = np.array([not any(map(_NO_GENE_NAME.search, row)) for row in zip(*names.values(), strict=True)], dtype=bool)
    for place, column in enumerate(var.columns):
        if var.dtypes.iloc[place].kind not in "biufc":
            genes &= ~_are_told_others(_key(column), _texts(var.iloc[:, place]), names)
    if len(var) and not genes.any():
        raise InputError(f"{label} has no genes: its rows of var are antibodies, peaks or the like.")
    if not genes.all():
        logger.info(
            "%s: %d rows of var are no genes (antibodies, peaks, spike-ins): they are left out.", label, (~genes).sum()
        )
    return genes


def _are_told_others(key: str, kinds: np.ndarray, names: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns `(rows of var,)` booleans: true for what a column of kinds says to be no genes."""
    kinds = np.array([kind.casefold().replace("_", " ").strip() for kind in kinds], dtype=object)
    distinct = set(kinds)
    if key not in _KIND_COLUMNS | _BIOTYPE_COLUMNS and _OF_CELL_RANGER not in distinct:
        return np.zeros(len(kinds), dtype=bool)
    no_genes = _NO_BIOTYPES if key in _BIOTYPE_COLUMNS else _NO_GENES
    others = {kind for kind in distinct if no_genes.search(kind) and _OF_CELL_RANGER not in kind}
    genes = {kind for kind in distinct - others if _GENES.search(kind)}
    unknown = {kind for kind in distinct - others - genes if not is_missing(kind)}
    are_others = np.isin(kinds, list(others))
    if genes and unknown and key not in _BIOTYPE_COLUMNS:
        # Beside genes, what is called otherwise is none, unless an Ensembl id says so.
        are_others |= np.isin(kinds, list(unknown)) & ~_have_ensembl_id(names)
    return are_others


def described_by(raw_var: "pd.DataFrame", var: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the table of `raw` with what `var` alone says of the same rows: many files keep only the names there."""
    told = [column for column in var.columns if column not in raw_var.columns]
    if raw_var.index.equals(var.index):
        places = [place for place, column in enumerate(var.columns) if column in told]
        return raw_var.assign(**{str(var.columns[place]): var.iloc[:, place].to_numpy() for place in places})
    # Once rows were left out, numbers no longer name the same ones in both.
    are_numbers = all(map(str.isdigit, _texts(raw_var.index)))
    return raw_var.join(var[told]) if told and var.index.is_unique and not are_numbers else raw_var


def noted_other_organism(adata: Any) -> str | None:
    """Returns an organism that `obs` or `uns` names and that is neither human nor mouse; None if there is none."""
    obs, uns = adata.obs, adata.uns
    noted = [obs[column].unique() for column in obs.columns if names_organism(column)]
    noted += [[uns[key]] for key in uns if names_organism(key)]
    for name in map(str, chain.from_iterable(noted)):
        words = name.casefold().replace("_", " ")
        is_other = _OTHER_ORGANISMS.search(words) and not _KNOWN_ORGANISMS.search(words)
        if is_other or (_TAXON.fullmatch(name) and organism_of(name) not in ORGANISMS):
            return name
    return None


def names_organism(key: Any) -> bool:
    """Returns true for a column of `obs`, or a key of `uns`, that names the organism."""
    return _key(key) in _ORGANISM_COLUMNS


def _key(column: Any) -> str:
    """Returns a column's name in letters alone, so that `gene_ids-0` and `GeneID` are usual ones."""
    return re.sub(r"[^a-z]+", "", str(column).casefold())


def _texts(values: "pd.Series | pd.Index") -> np.ndarray:
    return np.array(list(map(str, values)), dtype=object)


def _have_ensembl_id(names: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.array([any(map(ENSEMBL_ID.search, row)) for row in zip(*names.values(), strict=True)], dtype=bool)


__all__ = ["described_by", "find_genes", "name_columns", "names_organism", "noted_other_organism"]
