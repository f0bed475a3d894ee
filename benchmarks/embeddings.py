"""Tokens/s of the text encoder beside the naive padded loop: `python benchmarks/embeddings.py --reports CSV`.

The reports are those of `medsyn embed` (report_id, findings, impression, split); every section of a report is a text.
The encoder is a BERT of the given size with random weights and a vocabulary of the reports. The naive loop pads every
batch, in the table's order, to the longest input of the language model, as the authors' code does. Counted are the
tokens of the texts, without padding, per CPU second (on a GPU per second). Prints the largest difference of the states
as well.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medsyn.config import TextEncoderConfig
from medsyn.errors import InputError
from medsyn.text.bert import new_language_model
from medsyn.text.corpus import read_reports
from medsyn.text.encoder import TextEncoder
from medsyn.text.sections import SECTIONS
from medsyn.text.tokenizer import token_ids, train_tokenizer

NUM_TOKENS = 192


class NaiveEncoder(TextEncoder):
    """Batches in the order of the texts, all padded to the longest input."""

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """As TextEncoder.encode."""
        inputs = [self._input(*pair) for pair in zip(texts, token_ids(self._tokenizer, texts), strict=True)]
        parts = [self._forward(inputs[i : i + batch_size], self.max_tokens) for i in range(0, len(inputs), batch_size)]
        return np.concatenate([states for states, _ in parts]), np.concatenate([mask for _, mask in parts])


def main() -> None:
    """Print one row a way of encoding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", required=True, type=Path, help="CSV: report_id, findings, impression, split")
    parser.add_argument("--count", type=int, default=64, help="reports to encode (default 64)")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest input (default 512; the authors: 2048)")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--num-layers", type=int, default=4)
    args = parser.parse_args()
    try:
        reports = read_reports(args.reports)[: args.count]
    except InputError as error:
        parser.error(str(error))
    texts = [report.text(section) for report in reports for section in SECTIONS]
    config = TextEncoderConfig(
        vocabulary_size=3000, hidden_size=args.hidden_size, num_layers=args.num_layers, max_tokens=args.max_tokens
    )
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer([report.text("report") for report in reports], config.vocabulary_size)
        tokenizer.save_pretrained(folder)
        torch.manual_seed(0)
        new_language_model(config, len(tokenizer)).save_pretrained(folder)
        common = {"num_tokens": NUM_TOKENS, "max_tokens": args.max_tokens}
        naive = NaiveEncoder(folder, mask_padding=False, **common)
        kept = TextEncoder(folder, mask_padding=False, **common)
        masked = TextEncoder(folder, mask_padding=True, **common)
    lengths = [len(ids) for ids in tokenizer(texts, truncation=True, max_length=args.max_tokens)["input_ids"]]
    print(f"{len(texts)} texts, {np.mean(lengths):.0f} tokens each, {torch.get_num_threads()} threads")
    states, naive_seconds = timed(lambda: naive.encode(texts)[0])
    print(f"| naive, padded to {args.max_tokens} | {sum(lengths) / naive_seconds:.0f} tokens/s | 1 |")
    for name, encoder in (("padding kept", kept), ("padding masked", masked)):
        found, seconds = timed(lambda encoder=encoder: encoder.encode(texts)[0])  # type: ignore[misc]
        difference = np.abs(found - states)[found != 0].max()
        print(f"| {name} | {sum(lengths) / seconds:.0f} tokens/s | {naive_seconds / seconds:.1f} | {difference:.1g} |")


def timed(work: Callable[[], NDArray[np.float32]]) -> tuple[NDArray[np.float32], float]:
    """Result and seconds."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    result = work()
    return result, clock() - start


if __name__ == "__main__":
    main()
