"""Every factor that estimates of memory, disk and time rest on, with how it was found.

Those marked "to be measured" are counted or guessed, and want what a conversion of a large model shows.
"""

from __future__ import annotations

MIB = 1 << 20

IMPORT_BYTES = 480 * MIB
"""Memory of the main process with torch, transformers and scikit-learn loaded, without weights: 437 MiB measured behind
the imports, 480 with samples and tokenizer of the demo model."""
PLAIN_BYTES = 180 * MIB
"""The same where the analysis is there and torch is not loaded. Measured: 136 MiB, 181 with the tokenizer."""
CHILD_BYTES = 56 * MIB
"""Memory of the quantizer's process with llama.cpp loaded and nothing to do; it is there all the time. Measured: 53."""
PIECE_BYTES = 700
"""What a token of the vocabulary takes in header and tokenizer. Measured: 110 MiB for the 152,064 of Qwen2.5-VL."""
KEPT_BYTES = 56 * MIB
"""What the main process still holds of the analysis when it is done. Measured on the demo model; to be measured."""
JUDGE_BYTES = 110 * MIB
"""llama.cpp loaded in the main process, and the process that renders chats. Measured on the demo model."""
HIDDEN_COPIES = 8
"""Rows of the hidden size that are alive at once in a decoder layer: states in and out, norms, q, attention's output
and the sums of both. Counted in transformers' decoder layers; to be measured."""
FFN_COPIES = 4
"""Rows of the FFN's width alive at once: gate, its activation, up and their product. Counted; to be measured."""
DISTANCE_BYTES = 8
"""A number of the table of distances that all runs of K-means share, and of the vectors it is made of."""
TOWER_HIDDEN_COPIES = 10
"""As HIDDEN_COPIES, in a block of the vision tower, whose q, k and v stand side by side. To be measured."""
TOWER_FFN_COPIES = 4
"""As FFN_COPIES, in a block of the vision tower. To be measured."""
TOKEN_BYTES = 64
"""What a token takes beside its states for the length of the analysis: its modalities, id and kind. Counted."""
SAMPLE_BYTES = 4096
"""What a tokenized sample takes in Python objects. To be measured."""
LOGIT_BYTES = 12
"""A logit while the reference is made: float32, then float64."""
JUDGE_TOKEN_ROWS = 2
"""Rows of the FFN's width that llama.cpp holds a token of a batch, beside one of logits. To be measured."""

JSON_BYTES_A_TENSOR, JSON_BYTES_A_LAYER = 160, 4096
"""Of plan.json and tensor-types.txt, and of scores.json and manifest.json. Measured on the demo model, rounded up."""
RECORD_BYTES = 320 * 1024
"""Of all records beside what grows with the model, and of the report with its plots. Measured on the demo model: 215 KB
the report, the plots and what they show of the samples."""

START_SECONDS = 4.0
"""What a process takes to import torch and transformers and to find the model. To be measured."""
LAYER_OVERHEAD = 1.1
"""A decoder layer's seconds by those of its products and attention: norms, activations, sums. Measured on four layers
of a 7B model's width: 1.08."""
TOWER_OVERHEAD = 1.3
"""The same of the vision tower."""
PICTURE_SECONDS = 0.05
"""What reading a picture and cutting it into patches takes. To be measured."""
CLUSTERS, CLUSTER_ROUNDS = 100, 35
"""Distances of all vectors to so many centers, so often for a run of K-means, the start included, at the rate of large
products. Measured on the 4,000 vectors of 3,584 numbers of a layer: 3.0 s for five runs on two threads."""
QUANTIZE_OVERHEAD = 1.1
"""Quantizing by llama.cpp by the time of its inner function: rows are widened, checked and written. To be measured."""
TABLE_TYPES = {
    "IQ1_S": (0.74, 73e6), "IQ1_M": (0.90, 73e6), "IQ2_XXS": (0.27, 8e6), "IQ2_XS": (0.13, 19e6), "IQ2_S": (0.62, 33e6),
}  # fmt: skip
"""Types before whose first row ggml makes tables for seconds: numbers a second by those of Q4_K, and how many numbers
become Q4_K meanwhile. Measured on one core of an AMD EPYC with rows of random numbers; to be measured elsewhere."""
CONVERT_RATE = 1e9
"""Bytes a second that are read from a checkpoint, checked and converted, where the disk is no limit. To be measured."""
JUDGE_SHARE = 2.0
"""Multiply-adds a second of llama.cpp's prompts in a quantized file, by torch's in float32 on as many threads.
Measured: 85e9 and 42e9 on one core of an AMD EPYC with VNNI, in a file of a 7B model with IQ1_M in 12 layers."""
JUDGE_SECONDS = 1.0
"""What llama.cpp takes to load a file besides reading it. To be measured."""
PICTURE_SHARE = 1.2
"""The same of the vision part, in F16. Measured on F16 in the same model's decoder: 52e9."""
BRIEF_TOKENS, BRIEF_WEIGHTS = 1000, 8e12
"""Of `probing`: held-out tokens that judge a try, or so many weights by the model's."""

BATCH_TOKENS, GROUP_TOKENS, HEAD_ROWS, HEAD_PLACES = 2048, 1024, 4096, 1024
"""Of `activations`, `decoder_modules` and `reference`; a test holds them together."""
VECTORS, SEEDS = 4000, 5
"""Of `entropy`: token vectors of a kind, and runs of K-means."""
JUDGE_CONTEXT, JUDGE_BATCH = 4352, 512
"""Tokens of the context in which files are judged, and that llama.cpp computes at once."""
REFERENCE_TOP = 64
SUMS_ITEM, MODALITY_COUNT = 8, 3
