"""What `./bootstrap demo` shows: real documents go in, a small KV cache comes out, and what a model answers from it.

usage: demo.py --bin DIR --model PATH [--questions FILE.jsonl] [--count N] [--ratio R]

Only calls samkvctl --json, as anyone can; every figure and every answer is printed as it came. Standard library only.
"""
import argparse
import json
import pathlib
import signal
import sys
import textwrap
import time

from harness import DATA, Daemon, HarnessError

WIDTH = 80
COLLECTION = "demo"
# Paragraphs of 150 tokens: small blocks and anchors, and more of each than of a long document.
BLOCK_TOKENS, ANCHOR_TOKENS, RATIO = 8, 8, 0.25
SELECTION = ("--selection", "fixed", "--update", "cosine")
MAX_ANSWER_TOKENS = 24
# The front of a conversation in the model's own format, with one example of a short answer; `ask` puts the question
# behind the documents and opens the answer's turn.
PREAMBLE = """<|im_start|>system
Answer the question with a name, a number or a few words from the documents.<|im_end|>
<|im_start|>user
The Eiffel Tower
The Eiffel Tower is a tower in Paris, built by the company of Gustave Eiffel from 1887 to 1889.

Question: Who built the tower in Paris?<|im_end|>
<|im_start|>assistant
Gustave Eiffel<|im_end|>
<|im_start|>user
"""
METHODS = ("full", "reuse", "samkv")


def fit(text, width):
    """One line of at most `width` columns."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[:width - 1] + "…"


def paragraph(text, indent=""):
    print(textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent)))


def row(begin, answer):
    """A table's row whose last column is text, wrapped below itself."""
    lines = textwrap.wrap(" ".join(answer.split()), WIDTH - len(begin)) or ["(nothing)"]
    print(begin + ("\n" + " " * len(begin)).join(lines), flush=True)


def megabytes(count):
    return "%.1f MB" % (count / 1e6)


def block_bar(kept, count, width=32):
    """One character a block (or a few blocks): # kept, . dropped."""
    cells = min(width, count)
    kept = set(kept)
    edges = [i * count // cells for i in range(cells + 1)]
    return "".join("#" if any(b in kept for b in range(a, z)) else "." for a, z in zip(edges, edges[1:]))


def show_row(front, text):
    """A table's row whose last column runs on below itself."""
    lines = textwrap.wrap(" ".join(text.split()), WIDTH - len(front)) or ["(nothing)"]
    for i, line in enumerate(lines):
        print((" " * len(front) if i else front) + line, flush=True)


class Demo:
    def __init__(self, daemon, questions, ratio):
        self.daemon, self.questions, self.ratio = daemon, questions, ratio
        self.seconds = {method: 0.0 for method in METHODS}
        self.kept = self.total = 0

    @staticmethod
    def document_id(q, d):
        return "q%d-%d" % (q + 1, d + 1)

    def label(self, q, d):
        return self.document_id(q, d) + " " + (self.questions[q]["documents"][d]["title"] or "")

    def ingest(self):
        """All questions' documents, each behind its title."""
        lines = []
        for q, question in enumerate(self.questions):
            for d, document in enumerate(question["documents"]):
                text = "\n".join(filter(None, (document["title"], document["text"]))) + "\n\n"
                lines.append(json.dumps({"id": self.document_id(q, d), "title": document["title"], "text": text}))
        print("Ingesting %d documents: each is prefilled once, by itself ..." % len(lines), flush=True)
        said = self.daemon.json("ingest", "-", "--collection", COLLECTION, "--preamble", PREAMBLE, "--block-size",
                                BLOCK_TOKENS, "--init-tokens", ANCHOR_TOKENS, "--local-tokens", ANCHOR_TOKENS,
                                text="\n".join(lines) + "\n")
        print("  %d tokens in %.1f s (%d tokens/s); KV %s, stored losslessly in %s\n" %
              (said["tokens"], said["seconds"], said["tokens"] / max(said["seconds"], 1e-9),
               megabytes(said["bytes_raw"]), megabytes(said["bytes_stored"])))

    def names(self, q):
        return [arg for d in range(len(self.questions[q]["documents"])) for arg in ("--docs", self.document_id(q, d))]

    def show_kept(self, q):
        """A fetch by itself: what was kept of each document, what was read, how long it took."""
        question = self.questions[q]
        got = self.daemon.json("fetch", "--collection", COLLECTION, *self.names(q), "--ratio", self.ratio, *SELECTION,
                               "--query", question["question"])
        print("  %-30s %6s %5s  %s" % ("document", "tokens", "kept", "blocks of %d tokens: # kept" % BLOCK_TOKENS))
        for d, (keep, tokens) in enumerate(zip(got["keep"], got["document_tokens"])):
            kept = sum(min(BLOCK_TOKENS, tokens - b * BLOCK_TOKENS) for b in keep)
            print("  %-30s %6d %5d  %s" % (fit(self.label(q, d), 30), tokens, kept,
                                           block_bar(keep, -(-tokens // BLOCK_TOKENS))))
        self.kept, self.total = self.kept + got["kept_tokens"], self.total + got["total_tokens"]
        print("  kept %d of %d tokens: sequence ratio %.3f" %
              (got["kept_tokens"], got["total_tokens"], got["sequence_ratio"]))
        print("  read %s of %s stored: %.0f %%" % (megabytes(got["bytes_read"]), megabytes(got["bytes_stored"]),
                                                  100.0 * got["bytes_read"] / got["bytes_stored"]))
        parts = ", ".join("%s %.0f" % (name, got["timing_ms"][name])
                          for name in ("index", "query", "select", "read", "recompute", "reply"))
        print("  fetch %.0f ms (%s)\n" % (got["timing_ms"]["total"], parts))

    def show_answers(self, q):
        """The same question over the fully recomputed, the naively reused and the sparse cache."""
        question = self.questions[q]
        print("  %-8s %11s %13s   %s" % ("method", "sees tokens", "first token", "answer"))
        for method in METHODS:
            options = ["--ratio", self.ratio, *SELECTION] if method == "samkv" else []
            said = self.daemon.json("ask", "--collection", COLLECTION, *self.names(q), "--method", method, *options,
                                    "--max-tokens", MAX_ANSWER_TOKENS, question["question"])
            self.seconds[method] += said["first_token_ms"] / 1000
            show_row("  %-8s %11d %10.0f ms   " % (method, said["prompt_tokens"], said["first_token_ms"]),
                     said["answer"])
        show_row("  %-8s %11s %13s   " % ("expected", "", ""), " / ".join(question["answers"]))
        print(flush=True)

    def run(self):
        self.ingest()
        for q, question in enumerate(self.questions):
            print("-" * WIDTH)
            paragraph(question["question"], "Question %d: " % (q + 1))
            print()
            self.show_kept(q)
            self.show_answers(q)
        print("-" * WIDTH)
        full, samkv = self.seconds["full"], self.seconds["samkv"]
        print("To the first token, %d questions: full %.2f s, reuse %.2f s, samkv %.2f s." %
              (len(self.questions), full, self.seconds["reuse"], samkv))
        print("samkv: %.1f times sooner than full, with %.0f %% of the documents' tokens." %
              (full / samkv, 100 * self.kept / self.total))


def read_questions(path, count):
    with open(path, encoding="utf-8") as file:
        questions = [json.loads(line) for line in file if line.strip()]
    return questions[:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, help="folder of samkvd and samkvctl")
    parser.add_argument("--model", required=True, help="a .gguf file or a Hugging Face directory")
    parser.add_argument("--questions", default=DATA / "questions.jsonl")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--ratio", type=float, default=RATIO)
    o = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    model = pathlib.Path(o.model).resolve()
    print("Starting a private samkvd with %s ...\n" % model.name, flush=True)
    with Daemon({"demo": model}, dtype="auto", binaries=pathlib.Path(o.bin).resolve()) as daemon:
        Demo(daemon, read_questions(o.questions, o.count), o.ratio).run()
    print("The daemon is stopped and its store removed. %.0f s in all." % (time.monotonic() - began))
    print("On your own files: README.md, or build/release/bin/samkvctl --help")


if __name__ == "__main__":
    try:
        main()
    except HarnessError as error:
        sys.exit("demo: %s" % error)
    except KeyboardInterrupt:
        sys.exit(130)
