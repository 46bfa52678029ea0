#!/usr/bin/env python3
"""Answers questions over a folder of text files: samkvd keeps the files' KV caches, transformers answers.

    answer_folder.py MODEL FOLDER [QUESTION]... [--ratio R] [--max-tokens N] [--socket PATH] [--glob PATTERN]

MODEL is what samkvd serves too: a Hugging Face directory, or a .gguf file. Without questions on the command line they are
read from standard input, one a line. A file is prefilled once, whenever it is new or has changed; each question then
gets only the tokens that it needs. Needs torch and transformers 5.10 or later (for .gguf files also accelerate and gguf).
"""
import argparse
import pathlib
import sys
import time

import transformers

import samkv
from samkv.transformers import generation_inputs

MARK = "[the documents and the question]"
SYSTEM = "Answer the question from the documents, in a few words."


def load(path):
    """(model, tokenizer)"""
    where = {"pretrained_model_name_or_path": path}
    if path.endswith(".gguf"):
        file = pathlib.Path(path)
        where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    return transformers.AutoModelForCausalLM.from_pretrained(**where, dtype="auto").eval(), tokenizer


def frame(tokenizer):
    """What stands in front of the documents and behind the question, in the model's own format."""
    if not tokenizer.chat_template:
        return tokenizer.bos_token or "", "\nAnswer:"
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": MARK}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    front, back = text.split(MARK)
    return front, back


def ingest(client, folder, pattern, collection, preamble):
    """Stores what is new, forgets what is gone; the ids in order."""
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob(pattern)) if p.is_file()}
    ids = []
    for name, path in files.items():
        text = path.read_text(errors="replace").strip()
        if text:
            said = client.ingest(name, "%s\n%s\n\n" % (name, text), collection=collection, preamble=preamble,
                                 chunk_tokens=1024)
            ids += [document.id for document in said.documents]
    gone = [document.id for document in client.ls(collection) if document.id not in ids]
    if gone:
        client.rm(gone, collection)
    return ids


def answer(client, model, tokenizer, ids, collection, question, closing, options):
    """Prints the answer as it comes, and what it took."""
    started = time.monotonic()
    text = "\n\nQuestion: %s%s" % (question, closing)
    query = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with client.fetch(ids, query[0].tolist(), collection=collection, ratio=options.ratio) as cache:
        fetched = time.monotonic()
        streamer = transformers.TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        model.generate(**generation_inputs(model, cache, query), max_new_tokens=options.max_tokens, do_sample=False,
                       pad_token_id=tokenizer.eos_token_id, streamer=streamer)
        print("  (%d of %d tokens; fetched in %.2f s, answered in %.2f s)" %
              (cache.rows, cache.figures.total_tokens, fetched - started, time.monotonic() - fetched), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("questions", nargs="*")
    parser.add_argument("--ratio", type=float, default=0.15, help="of the documents' tokens to keep [0.15]")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--socket", help="of samkvd [as samkvctl]")
    parser.add_argument("--glob", default="*.txt")
    parser.add_argument("--collection", default="answer_folder")
    options = parser.parse_intermixed_args()
    try:
        with samkv.Client(options.socket) as client:
            model, tokenizer = load(options.model)
            front, closing = frame(tokenizer)
            preamble = tokenizer(front, add_special_tokens=False).input_ids
            ids = ingest(client, options.folder, options.glob, options.collection, preamble)
            if not ids:
                sys.exit("no text in %s: see --glob" % options.folder)
            for question in options.questions or map(str.strip, sys.stdin):
                if question:
                    print(question)
                    answer(client, model, tokenizer, ids, options.collection, question, closing, options)
    except samkv.SamkvError as error:
        sys.exit(error.text)


if __name__ == "__main__":
    main()
