"""samkvctl as a person or a script meets it: what is printed, exit codes, one clear line for each mistake."""
import json
import os
import pty
import signal
import subprocess
import tempfile
import time
import unittest

import cases
import models
import wire
from harness import DATA, DONE, NO_DAEMON, SOME_FAILED, WRONG_USAGE, Daemon, comma, documents_jsonl, enter


def byte_tokenizer(folder):
    """A tokenizer.json of the byte-level kind without merges: one token a byte, ids 0 to 255 in byte order."""
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    letters, extra = {}, 0
    for byte in range(256):
        letters[byte] = chr(byte if byte in printable else 256 + extra)
        extra += byte not in printable
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {letters[byte]: byte for byte in range(256)}, "merges": []}}))


class CommandLine(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(folder.cleanup)
        paths = {name: models.make_model("%s/%s" % (folder.name, name), name) for name in ("llama", "qwen3")}
        byte_tokenizer(paths["llama"])
        cls.daemon = enter(cls, Daemon(paths))
        cls.rng = cases.seeded(11)

    def ingest(self, collection, documents, *options):
        return self.daemon.json("ingest", "-", "--collection", collection, *options, text=documents_jsonl(documents))

    def refuse(self, code, *arguments, text=None):
        return self.daemon.refuse(self, code, *arguments, text=text)

    def ids(self, collection):
        return [d["id"] for d in self.daemon.json("ls", "--collection", collection)["documents"]]

    def folder(self, **files):
        """A temporary folder; names use __ for / and _dot_ for a dot."""
        out = tempfile.TemporaryDirectory(prefix="samkv-files-")
        self.addCleanup(out.cleanup)
        for name, content in files.items():
            path = os.path.join(out.name, name.replace("__", "/").replace("_dot_", "."))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content if isinstance(content, bytes) else content.encode())
        return out.name

    # -------------------------------------------------------------- usage

    def test_help_and_wrong_usage(self):
        for arguments in (["--help"], ["ingest", "--help"], ["fetch", "--help"]):
            done = self.daemon.ctl(*arguments)
            self.assertEqual(done.returncode, DONE, done.stderr)
            self.assertTrue(done.stdout)
        for arguments in ([], ["no-such-command"], ["fetch"], ["fetch", "--docs"], ["fetch", "--no-such-option"],
                          ["ingest"], ["show"], ["rm"], ["fetch", "--docs", "a", "--query-tokens", "1,x"],
                          ["fetch", "--docs", "a", "--query-tokens", "1", "--ratio", "many"],
                          ["fetch", "--docs", "a", "--query-tokens", "1", "--selection", "best"]):
            with self.subTest(arguments=arguments):
                done = self.daemon.ctl(*arguments)
                self.assertEqual(done.returncode, WRONG_USAGE, done)
                self.assertTrue(done.stderr.strip())

    def test_ping_and_status(self):
        self.assertEqual(self.daemon.ctl("ping").returncode, DONE)
        said = self.daemon.json("status")
        self.assertEqual({m["name"] for m in said["models"]}, {"llama", "qwen3"})
        self.assertTrue(self.daemon.ctl("status").stdout.strip())

    # -------------------------------------------------------------- documents come, change and go

    def test_ingest_replace_show_remove(self):
        documents = {"a": cases.tokens(self.rng, 50), "b": cases.tokens(self.rng, 20)}
        said = self.ingest("life", documents)
        self.assertEqual((said["ids"], said["ingested"], said["skipped"], said["failed"], said["tokens"]),
                         (["a", "b"], 2, 0, 0, 70))
        self.assertGreater(said["bytes_raw"], said["bytes_stored"])
        self.assertGreater(said["bytes_stored"], 0)
        again = self.ingest("life", documents)
        self.assertEqual((again["ingested"], again["skipped"]), (0, 2))
        replaced = self.ingest("life", {"a": cases.tokens(self.rng, 33)})
        self.assertEqual(replaced["ingested"], 1)
        shown = self.daemon.json("show", "a", "--collection", "life")["document"]
        self.assertEqual((shown["id"], shown["tokens"]), ("a", 33))
        self.assertEqual(self.ids("life"), ["a", "b"])
        self.assertEqual(self.daemon.ctl("rm", "a", "--collection", "life").returncode, DONE)
        self.assertEqual(self.ids("life"), ["b"])
        self.refuse(SOME_FAILED, "show", "a", "--collection", "life")
        self.refuse(SOME_FAILED, "rm", "a", "--collection", "life")
        self.refuse(SOME_FAILED, "fetch", "--docs", "a,b", "--collection", "life", "--query-tokens", "5")
        self.assertEqual(self.daemon.json("verify")["damaged"], 0)

    def test_compacting_makes_the_data_file_as_small_as_what_it_holds(self):
        documents = {f"d{i}": cases.tokens(self.rng, 700) for i in range(12)}
        self.assertEqual(self.ingest("space", documents)["failed"], 0)
        asked = ("fetch", "--docs", "d0", "--collection", "space", "--query-tokens", "5,6")
        before = self.daemon.json(*asked)["keep"]
        self.daemon.json("rm", *[f"d{i}" for i in range(1, 12)], "--collection", "space")
        said = self.daemon.json("compact")
        self.assertLess(said["bytes_file"], said["bytes_file_before"])
        self.assertLessEqual(said["bytes_file"], said["bytes_used"] * 1.3 + (1 << 20))
        self.assertLessEqual(said["bytes_allocated"], said["bytes_used"] * 1.3 + (1 << 20))
        self.assertEqual(self.daemon.json(*asked)["keep"], before)
        self.assertEqual(self.daemon.json("verify")["damaged"], 0)
        self.assertIn("in use", self.daemon.ctl("compact").stdout)
        self.refuse(WRONG_USAGE, "compact", "now")
        counters = self.daemon.json("status")["counters"]
        self.assertGreaterEqual(counters["store_compactions"], 2)

    def test_the_same_text_is_stored_once(self):
        same = cases.tokens(self.rng, 500)
        self.ingest("twice", {"one": same})
        before = self.daemon.json("status")["bytes_stored"]
        self.assertEqual(self.ingest("twice", {"two": same})["failed"], 0)
        self.assertEqual(self.ids("twice"), ["one", "two"])
        self.assertEqual(self.daemon.json("status")["bytes_stored"], before)
        self.daemon.json("rm", "one", "--collection", "twice")
        fetched = self.daemon.json("fetch", "--docs", "two", "--collection", "twice", "--query-tokens", "5")
        self.assertEqual(fetched["total_tokens"], 500)

    def test_what_belongs_to_the_collection_stays(self):
        options = ["--block-size", 8, "--init-tokens", 4, "--local-tokens", 12, "--preamble-tokens", "1,2,3",
                   "--model", "qwen3"]
        self.ingest("set", {"a": cases.tokens(self.rng, 30)}, *options)
        self.assertEqual(self.ingest("set", {"b": cases.tokens(self.rng, 30)})["ingested"], 1)
        self.assertEqual(self.ingest("set", {"c": cases.tokens(self.rng, 30)}, *options)["ingested"], 1)
        for change in (["--block-size", 16], ["--init-tokens", 5], ["--local-tokens", 5], ["--preamble-tokens", "1,2"],
                       ["--model", "llama"]):
            with self.subTest(change=change):
                done = self.daemon.ctl("ingest", "-", "--collection", "set", *change,
                                       text=documents_jsonl({"d": cases.tokens(self.rng, 30)}))
                self.assertEqual(done.returncode, SOME_FAILED, done)
                self.assertTrue(done.stderr.strip())
        self.assertEqual(self.ids("set"), ["a", "b", "c"])

    def test_a_collection_has_a_codec(self):
        documents = {"a": cases.tokens(self.rng, 300)}
        fetched, keys, stored = {}, {}, {}
        for codec in ("rans", "raw", "q8", "q4"):
            name, out = "codec-" + codec, self.daemon.folder / (codec + ".safetensors")
            self.ingest(name, documents, "--codec", codec)
            self.ingest(name, {"b": cases.tokens(self.rng, 20)})  # what was set stays
            self.assertIn("codec       " + codec, self.daemon.ctl("show", "a", "--collection", name).stdout)
            shown = self.daemon.json("show", "a", "--collection", name)
            listed = {c["name"]: c["codec"] for c in self.daemon.json("ls", "--collections")["collections"]}
            self.assertEqual((shown["collection"]["codec"], listed[name]), (codec, codec))
            keys[codec], stored[codec] = shown["document"]["key"], shown["document"]["bytes_stored"]
            self.daemon.json("fetch", "--docs", "a", "--collection", name, "--query-tokens", "9,8,7", "--no-recompute",
                             "--out", out)
            fetched[codec] = out.read_bytes()
        self.assertEqual((keys["raw"], fetched["raw"]), (keys["rans"], fetched["rans"]))
        self.assertEqual(len(set(keys.values())), 3)
        self.assertEqual(len(set(fetched.values())), 3)
        self.assertTrue(stored["rans"] > stored["q8"] > stored["q4"], stored)
        for change, says in ((["--codec", "q8"], "another codec"), (["--codec", "q5"], "raw, zstd, rans")):
            done = self.daemon.ctl("ingest", "-", "--collection", "codec-q4", *change, text=documents_jsonl(documents))
            self.assertEqual(done.returncode, SOME_FAILED, done)
            self.assertIn(says, done.stderr)

    def test_restart_keeps_everything(self):
        self.ingest("restart", {"a": cases.tokens(self.rng, 100), "b": cases.tokens(self.rng, 60)}, "--block-size", 8)
        out, request = self.daemon.folder / "r.safetensors", [
            "fetch", "--docs", "b,a", "--collection", "restart", "--query-tokens", "9,8,7", "--ratio", 0.5,
            "--init-tokens", 8, "--local-tokens", 8]
        self.daemon.json(*request, "--out", out)
        before = out.read_bytes(), self.daemon.json("ls", "--collection", "restart")
        self.daemon.stop()
        self.assertEqual(self.daemon.ctl("ping").returncode, NO_DAEMON)
        self.daemon.start()
        listed = self.daemon.json("ls", "--collection", "restart")    # before the next use is noted
        self.daemon.json(*request, "--out", out)
        self.assertEqual((out.read_bytes(), listed), before)

    def test_many_documents_are_listed(self):
        documents = {"n%04d" % i: [5 + i % 200, 7, i // 200 + 3] for i in range(1200)}
        self.assertEqual(self.ingest("many", documents)["ingested"], 1200)
        self.assertEqual(self.ids("many"), sorted(documents))

    # -------------------------------------------------------------- sources

    def test_text_files_and_folders(self):
        folder = self.folder(a_dot_txt="One file of text.\n", sub__b_dot_txt="Another one, further down.\n",
                             sub__c_dot_md="# And a third\n")
        said = self.daemon.json("ingest", folder, "--collection", "files", "--model", "llama")
        self.assertEqual((said["ingested"], said["failed"]), (3, 0))
        self.assertEqual(self.ids("files"), sorted(said["ids"]))
        self.assertEqual(sorted(said["ids"]), ["a.txt", "sub/b.txt", "sub/c.md"])
        shown = self.daemon.ctl("show", "a.txt", "--collection", "files")
        self.assertIn("One file of text.", shown.stdout)
        self.assertEqual(self.daemon.json("ingest", folder, "--collection", "files")["skipped"], 3)

    def test_the_sample_corpus(self):
        said = self.daemon.json("ingest", DATA / "corpus", "--collection", "corpus", "--model", "llama",
                                "--chunk-tokens", 700)
        self.assertEqual(said["failed"], 0)
        self.assertGreater(said["ingested"], 4)
        self.assertEqual(said["tokens"], sum(p.stat().st_size for p in (DATA / "corpus").iterdir()))

    def test_long_documents_are_split_or_refused_by_name(self):
        text = "".join("Paragraph %d says what it has to say, and ends.\n\n" % i for i in range(150))
        folder = self.folder(long_dot_txt=text)
        done = self.daemon.ctl("ingest", folder, "--collection", "chunks", "--model", "llama")
        self.assertEqual(done.returncode, SOME_FAILED)
        self.assertIn("long.txt", done.stderr)
        said = self.daemon.json("ingest", folder, "--collection", "chunks", "--model", "llama", "--chunk-tokens", 1000)
        self.assertEqual(said["ids"], ["long.txt#%d" % (i + 1) for i in range(len(said["ids"]))])
        self.assertEqual(said["tokens"], len(text))
        pieces = [self.daemon.json("show", name, "--collection", "chunks")["document"] for name in said["ids"]]
        self.assertLessEqual(max(p["tokens"] for p in pieces), 1000)
        self.assertGreaterEqual(len(pieces), len(text) // 1000)

    def test_broken_lines_are_named_and_the_rest_goes_in(self):
        lines = ['{"id": "ok1", "tokens": [5, 6]}', "{not json", '{"id": "no content"}', '{"tokens": [5]}', "",
                 '{"id": "ok2", "tokens": [7]}', '{"id": "far", "tokens": [999999]}', '{"id": "neg", "tokens": [-1]}',
                 '{"id": [5], "tokens": [5]}', '{"id": "words", "tokens": ["a"]}', '{"id": "", "tokens": [5]}',
                 '{"id": "ok3", "tokens": [8], "title": "T"}', '["id"]', "\x00\x01", '{"id": "cut", "tokens": [5']
        done = self.daemon.ctl("ingest", "-", "--collection", "lines", "--model", "llama", "--json",
                               text="\n".join(lines) + "\n")
        self.assertEqual(done.returncode, SOME_FAILED)
        said = json.loads(done.stdout)
        self.assertEqual(said["ids"], ["ok1", "ok2", "ok3"])
        self.assertEqual(said["failed"], 11)
        self.assertEqual(self.ids("lines"), ["ok1", "ok2", "ok3"])
        for number in (2, 3, 4, 7, 8, 9, 10, 11, 13, 14, 15):
            self.assertRegex(done.stderr, r"(?m)\b%d\b" % number)
        path = self.folder(x_dot_jsonl=lines[0] + "\nbroken\n")
        done = self.daemon.ctl("ingest", path + "/x.jsonl", "--collection", "lines")
        self.assertRegex(done.stderr, r"x\.jsonl:2\b")

    def test_sources_that_are_no_text(self):
        """In a folder they are passed over with a word; named by themselves they are failures."""
        folder = self.folder(good_dot_txt="good", binary_dot_txt=b"\xff\xfe\x00 not utf-8", empty_dot_txt="")
        done = self.daemon.ctl("ingest", folder, "--collection", "no-text", "--model", "llama")
        self.assertEqual(done.returncode, DONE)
        self.assertEqual(self.ids("no-text"), ["good.txt"])
        for name in ("empty.txt", "binary.txt"):
            self.assertIn(name, done.stderr)
            self.refuse_ingest(folder + "/" + name)
        self.refuse_ingest("/no/such/path")

    def refuse_ingest(self, path):
        done = self.daemon.ctl("ingest", path)
        self.assertEqual((done.returncode, len(done.stderr.splitlines())), (SOME_FAILED, 1), done)
        self.assertIn(path, done.stderr)

    # -------------------------------------------------------------- fetch

    def test_fetch_says_what_it_did(self):
        self.ingest("say", {"a": cases.tokens(self.rng, 300), "b": cases.tokens(self.rng, 200)}, "--block-size", 8,
                    "--init-tokens", 8, "--local-tokens", 8, "--preamble-tokens", "4,5")
        query = ["--query-tokens", "3,4,5", "--ratio", 0.2]
        request = ["fetch", "--collection", "say", "--docs", "a", "--docs", "b", *query]
        info = self.daemon.json(*request)
        for name in ("kept_tokens", "total_tokens", "sequence_ratio", "recompute_ratio", "top_p", "keep",
                     "stable_layers", "bytes_read", "bytes_stored", "backend", "timing_ms"):
            self.assertIn(name, info)
        self.assertLessEqual(set("total index query select read recompute reply".split()), set(info["timing_ms"]))
        self.assertEqual(info["total_tokens"], 500)
        self.assertLessEqual(info["kept_tokens"], 100)
        self.assertLess(info["bytes_read"], info["bytes_stored"])
        self.assertTrue(self.daemon.ctl(*request).stdout.strip())
        swapped = self.daemon.json("fetch", "--collection", "say", "--docs", "b,a", *query)
        self.assertEqual([len(swapped["keep"]), swapped["total_tokens"]], [2, 500])

    def test_out_is_written_whole_or_not_at_all(self):
        self.ingest("out", {"a": cases.tokens(self.rng, 30)})
        request = ["fetch", "--collection", "out", "--docs", "a", "--query-tokens", "5"]
        out = self.daemon.folder / "o.safetensors"
        self.daemon.json(*request, "--with-query", "--out", out)
        tensors = models.load_safetensors(out)
        self.assertEqual(tensors["logits"].shape, (models.VOCABULARY,))
        self.assertEqual(tensors["k.0"].shape[0], len(tensors["tokens"]))
        self.assertEqual(list(tensors["doc"][-1:]), [-2])
        self.refuse(SOME_FAILED, *request, "--out", "/no/such/folder/x.safetensors")

    def test_bad_requests_of_the_command_line(self):
        self.ingest("bad", {"a": cases.tokens(self.rng, 40)})
        base = ["fetch", "--collection", "bad", "--docs", "a"]
        query = base + ["--query-tokens", "5,6"]
        usage = [query + ["--ratio", "0"], query + ["--ratio", "2"], query + ["--ratio", "nan"], base + ["--query", ""],
                 base + ["--query-tokens", "-3"], query + ["--update", "1.5"]]
        refused = [query + ["--stable-layers", "4"], query + ["--stable-layers", "99"],
                   base + ["--query-tokens", "256"], query + ["--docs", "nobody"],
                   ["fetch", "--collection", "nowhere", "--docs", "a", "--query-tokens", "5"],
                   ["show", "nobody", "--collection", "bad"],
                   base[:3] + ["--docs", comma([1] * 10000), "--query-tokens", "5"]]
        for arguments in usage + refused:
            with self.subTest(arguments=str(arguments)[:200]):
                done = self.daemon.ctl(*arguments)
                codes = (SOME_FAILED, WRONG_USAGE) if arguments in usage else (SOME_FAILED,)
                self.assertIn(done.returncode, codes, done)
                self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr[-500:])
                self.assertEqual(self.daemon.ctl("ping").returncode, DONE)

    # -------------------------------------------------------------- ask

    def test_ask_by_each_method(self):
        """A random model says nothing sensible, but with everything kept and recomputed samkv says the same as full."""
        folder = self.folder(a_dot_txt="Alice was born in Paris. " * 8, b_dot_txt="Bob lives with Alice. " * 8)
        self.daemon.json("ingest", folder, "--collection", "ask", "--model", "llama", "--block-size", 8)
        question = ["ask", "--collection", "ask", "--docs", "a.txt,b.txt", "Where does Bob live?", "--max-tokens", 8]
        answers = {}
        for method in ("samkv", "full", "reuse"):
            said = self.daemon.json(*question, "--method", method)
            answers[method] = said
            self.assertGreater(said["first_token_ms"], 0)
            self.assertLessEqual(said["answer_tokens"], 8)
        exact = self.daemon.json(*question, "--method", "samkv", "--ratio", 1, "--selection", "fixed",
                                 "--stable-layers", "3")
        self.assertEqual(exact["answer"], answers["full"]["answer"])
        self.assertLess(answers["samkv"]["prompt_tokens"], answers["full"]["prompt_tokens"])

    # -------------------------------------------------------------- a person at a terminal

    def test_interrupted_ingest_keeps_what_is_finished(self):
        documents = {"i%03d" % i: cases.tokens(self.rng, 900) for i in range(300)}
        source = self.daemon.folder / "interrupt.jsonl"
        source.write_text(documents_jsonl(documents))
        client = subprocess.Popen(self.daemon.command("ingest", source, "--collection", "interrupt", "--json"),
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not self.has_documents("interrupt") and time.monotonic() < deadline:
            time.sleep(0.02)
        client.send_signal(signal.SIGINT)
        _, error = client.communicate(timeout=60)
        self.assertNotEqual(client.returncode, DONE)
        self.assertNotIn("Traceback", error)
        kept = self.ids("interrupt")
        self.assertGreater(len(kept), 0)
        self.assertLess(len(kept), len(documents))
        rest = {name: documents[name] for name in list(documents)[:len(kept) + 5]}
        said = self.ingest("interrupt", rest)
        self.assertEqual((said["failed"], said["skipped"] + said["ingested"]), (0, len(rest)))
        self.assertGreaterEqual(said["skipped"], 1)

    def has_documents(self, collection):
        done = self.daemon.ctl("ls", "--collection", collection, "--json")
        return done.returncode == DONE and json.loads(done.stdout)["documents"]

    def test_progress_on_a_terminal_and_plain_lines_elsewhere(self):
        source = self.daemon.folder / "p.jsonl"
        source.write_text(documents_jsonl({"p%d" % i: cases.tokens(self.rng, 200) for i in range(30)}))
        plain = self.daemon.ctl("ingest", source, "--collection", "plain")
        self.assertEqual(plain.returncode, DONE)
        self.assertNotIn("\r", plain.stdout + plain.stderr)
        self.assertNotIn("\x1b", plain.stdout + plain.stderr)
        ours, theirs = pty.openpty()
        client = subprocess.Popen(self.daemon.command("ingest", source, "--collection", "terminal"), stdin=theirs,
                                  stdout=theirs, stderr=theirs, env=dict(self.daemon.environment, TERM="xterm"))
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:    # the terminal's other end is closed
                break
            if not piece:
                break
            shown += piece
        os.close(ours)
        self.assertEqual(client.wait(60), DONE)
        self.assertIn(b"\r", shown.replace(b"\r\n", b"\n"))
        self.assertEqual(len(self.ids("terminal")), 30)

    # -------------------------------------------------------------- concurrent use

    def test_a_fetch_keeps_what_it_began_with(self):
        """While an id is replaced again and again, every fetch sees one of its contents, whole."""
        contents = [cases.tokens(self.rng, n) for n in (60, 90)]
        self.ingest("swap", {"a": contents[0]}, "--block-size", 8)
        with wire.Connection(self.daemon.socket) as writer, wire.Connection(self.daemon.socket) as reader:
            for i in range(40):
                writer.send(wire.INGEST, wire.message(f1="swap", f2="a", f5=wire.tokens(contents[i % 2])))
                everything = wire.message(f1="swap", f2=["a"], f4=wire.tokens([5]), f5=1.0, f6=1)
                flags, reply = reader.ask(wire.FETCH, everything)
                self.assertFalse(flags & wire.ERROR, reply)
                self.assertIn(wire.fields(reply)[22][0], (60, 90))
                self.assertFalse(writer.receive()[1] & wire.ERROR)


if __name__ == "__main__":
    unittest.main(verbosity=2)
