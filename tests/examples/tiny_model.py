"""Make a text classifier of a few kilobytes: python tiny_model.py FOLDER TEXT…

Prints what the model says of each text, as the example would answer. It runs as a process of its
own because importing torch takes seconds.
"""

from __future__ import annotations

import json
import sys

import torch
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertTokenizer,
    pipeline,
)

folder, *texts = sys.argv[1:]
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "!", ".", "what", "a", "love", "##ly", "day"]
words += ["this", "is", "sad", "story"]
torch.manual_seed(0)
config = DistilBertConfig(
    vocab_size=len(words),
    dim=16,
    n_layers=1,
    n_heads=2,
    hidden_dim=32,
    max_position_embeddings=32,
    # Wide enough for two texts to get two answers.
    initializer_range=0.4,
    id2label={0: "NEGATIVE", 1: "POSITIVE"},
    label2id={"NEGATIVE": 0, "POSITIVE": 1},
)
DistilBertForSequenceClassification(config).save_pretrained(folder)
vocabulary = {word: number for number, word in enumerate(words)}
DistilBertTokenizer(vocab=vocabulary, model_max_length=32).save_pretrained(folder)

classify = pipeline("text-classification", model=folder, device="cpu")
for text in texts:
    [answer] = classify(text, truncation=True)
    print(json.dumps({"label": answer["label"], "score": round(answer["score"], 3)}))
