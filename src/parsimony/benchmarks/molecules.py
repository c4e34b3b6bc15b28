"""Molecules as SMILES strings from descriptions, by masked diffusion models (arXiv 2508.10111)."""

from __future__ import annotations

from parsimony.benchmarks.code_blocks import CodeBlocks, Request


class Molecules(CodeBlocks):
    """Rows of smiles-eval: is the answer a sentence of SMILES, is it the molecule that is described?"""

    ASSET, FILE, NAME = "smiles_eval", "test.parquet", "smiles"

    def request(self, row: dict) -> Request:
        return Request(f"Write as a SMILES string, in a block of code:\n\n{row['input']}", row["output"].strip())

    def grade(self, asked: Request, text: str) -> dict[str, float]:
        found = asked.block(text).strip()
        parses = bool(found) and self.is_sentence(found)
        same = parses and canonical(found) is not None and canonical(found) == canonical(asked.wanted)
        return {"score": float(same), "parses": float(parses)}


def canonical(text: str) -> str | None:
    """The one SMILES string of a molecule, stereochemistry included; None if the text is no molecule."""
    from rdkit import Chem, RDLogger

    RDLogger.DisableLog("rdApp.*")
    molecule = Chem.MolFromSmiles(text)
    return None if molecule is None else Chem.MolToSmiles(molecule)
