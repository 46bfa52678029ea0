#!/usr/bin/env python3
"""A page with tables and plots of the measurements that tests/device/fetch.py wrote.

usage: page.py RESULTS.jsonl FOLDER

Writes FOLDER/README.md and the plots as SVG beside it. Needs nothing but Python. Steps that are not in RESULTS are left
out and named; nothing is computed that the results do not hold, but for the data sheets' bandwidths in BANDWIDTH_TB_S.
"""
import argparse
import json
import pathlib
import sys

import plots

# Device memory by NVIDIA's data sheets, for the query's floor. A device that is not here gets no such floor.
BANDWIDTH_TB_S = {"NVIDIA H100 80GB HBM3": (3.35, "H100 SXM"), "NVIDIA H200": (4.8, "H200")}
BYTES = 2  # of a bf16 number

PHASES = (("index", "index + anchors", plots.SKY), ("query_ms", "query", plots.BLUE), ("select", "select", plots.PINK),
          ("recompute", "recompute", plots.ORANGE), ("reply", "reply", plots.GREEN))
RESTS = (("rest, daemon", plots.GREY), ("rest, client", plots.LIGHT))
WHOLE = ("not broken down", plots.FAINT)

STEPS = (("setup", "device and shape of the model"), ("copy", "bandwidth of copies"), ("hf", "Hugging Face prefill"),
         ("ingest", "ingest"), ("hot", "hot fetches"), ("warm in host memory", "fetches from host memory"),
         ("cold", "fetches from disk"), ("documents", "sweep over documents"), ("ratio", "sweep over ratios"),
         ("clients", "several clients"), ("full prefill", "full prefill by samkvd"), ("naive reuse", "naive reuse"),
         ("blend", "recomputation in the manner of CacheBlend"))


class Results:
    def __init__(self, lines):
        self.errors = [l for l in lines if "error" in l]
        self.lines = [l for l in lines if "error" not in l and "step" in l]

    def of(self, step, **fields):
        """Lines of a step ("blend": of any step so called), in their order."""
        if step == "blend":
            found = [l for l in self.lines if "blend" in (l["step"] + l.get("label", "")).lower() and "ms" in l]
        else:
            found = [l for l in self.lines if l["step"] == step]
        return [l for l in found if all(l.get(k) == v for k, v in fields.items())]

    def one(self, step, **fields):
        """The line in the middle by time, when a measurement was repeated in lines of its own."""
        found = self.of(step, **fields)
        return sorted(found, key=lambda l: l.get("ms", 0))[(len(found) - 1) // 2] if found else None

    def full(self, tokens):
        """Hugging Face's prefill of as many tokens."""
        return self.one("hf", what="prompt", tokens=tokens)


def prompt_tokens(line):
    """What a full prefill in the fetch's place has to read: the documents and the query."""
    return line["total"] + line["query"] if "total" in line else None


def times(r, line):
    """How many times faster than Hugging Face's prefill of the same number of tokens, or None."""
    alike = r.main and line.get("documents") == r.main["documents"]
    full = line if line["step"] == "hf" else r.full(prompt_tokens(line) or (r.main_tokens if alike else None))
    return full["ms"] / line["ms"] if full else None


def read(path):
    r = Results([json.loads(l) for l in path.read_text().splitlines() if l.strip()])
    r.hot = r.one("hot", placement="device") or r.one("hot")
    alike = [r.hot] + [r.one(step) for step in ("warm in host memory", "cold", "naive reuse", "full prefill")]
    r.main = next((l for l in alike if l), None)  # what all of them have in common stands in any of them
    r.main_tokens = prompt_tokens(r.main) if r.main else None
    return r


# ------------------------------------------------------------------ where the time goes

def divided(line):
    """Milliseconds of the phases, the daemon's rest and the client's rest; or the whole alone."""
    if "recompute" not in line or "daemon" not in line:
        return [0.0] * (len(PHASES) + len(RESTS)) + [line["ms"]]
    phases = [line[key] for key, _, _ in PHASES]
    return phases + [line["daemon"] - sum(phases), line["ms"] - line["daemon"], 0.0]


def paths(r):
    """(label, line) of the ways to get at K and V: SamKV's, and the others."""
    ours = [("hot, in device memory", r.one("hot", placement="device")),
            ("warm, in host memory", r.one("warm in host memory", placement="device") or r.one("warm in host memory")),
            ("cold, from disk", r.one("cold", placement="device") or r.one("cold")),
            ("hot, reply in host memory", r.one("hot", placement="host"))]
    others = [("naive reuse", r.one("naive reuse")), ("CacheBlend-style", r.one("blend")),
              ("full prefill, samkvd", r.one("full prefill")),
              ("full prefill, HF SDPA", r.full(r.main_tokens))]
    return [p for p in ours if p[1]], [p for p in others if p[1]]


def bars_of(r, some):
    out = []
    for label, line in some:
        faster = times(r, line)
        behind = plots.number(line["ms"]) + " ms"
        if faster and line["step"] != "hf":
            behind += " (%.1f×)" % faster
        out.append((label, [max(v, 0) for v in divided(line)], behind))
    return out


def plot_phases(r):
    ours, others = paths(r)
    head = r.main
    if not head:
        return None
    groups = []
    if ours:
        groups.append(("SamKV at ratio %g" % ours[0][1]["ratio"], bars_of(r, ours)))
    if others:
        groups.append(("Beside it: everything kept", bars_of(r, others)))
    unit = "milliseconds" + ("; ×: times faster than the Hugging Face prefill of the same run" if r.full(r.main_tokens) else "")
    names = [name for _, name, _ in PHASES] + [name for name, _ in RESTS] + [WHOLE[0]]
    colours = [colour for _, _, colour in PHASES] + [colour for _, colour in RESTS] + [WHOLE[1]]
    return plots.stacked_bars(
        "From request to usable K and V: %d documents, %s tokens" % (head["documents"], "{:,}".format(head["total"])),
        "Stacked horizontal bars: the phases of a fetch from device memory, host memory and disk, beside full prefills and "
        "naive reuse.", unit, names, colours, groups)


# ------------------------------------------------------------------ the sweeps

def sweep(r, step):
    """Lines of a sweep with the placement that it was run with first."""
    lines = r.of(step)
    return [l for l in lines if l["placement"] == lines[0]["placement"]]


def plot_documents(r):
    lines = sweep(r, "documents")
    if not lines:
        return None
    series = [("samkvd, ratio %g" % lines[0]["ratio"], plots.BLUE, "circle", None, [(l["documents"], l["ms"]) for l in lines])]
    full = [(l["documents"], r.full(prompt_tokens(l))["ms"]) for l in lines if r.full(prompt_tokens(l))]
    if full:
        series.append(("full prefill, HF SDPA", plots.RED, "square", "7 4", full))
    panel = plots.Panel("", "documents of %d tokens (logarithmic)" % (lines[0]["total"] // lines[0]["documents"]),
                        "milliseconds (logarithmic)", series, log_x=True, log_y=True,
                        x_ticks=sorted({l["documents"] for l in lines}))
    return plots.panels("Time against the number of documents", "Lines: milliseconds of a fetch, and of a full prefill, for "
                        "each number of documents.", [panel], names=140)


def plot_ratios(r):
    lines = sweep(r, "ratio")
    if not lines:
        return None
    full = r.full(prompt_tokens(lines[0]))
    rules = [("full prefill, HF SDPA: %s ms" % plots.number(full["ms"]), plots.RED, full["ms"])] if full else []
    series = [("samkvd", plots.BLUE, "circle", None, [(l["ratio"], l["ms"]) for l in lines])]
    panel = plots.Panel("", "ratio: share of the documents' tokens that is kept and recomputed", "milliseconds", series, rules,
                        x_ticks=[0, 0.2, 0.4, 0.6, 0.8, 1.0])
    return plots.panels("Time against the ratio, %d documents" % lines[0]["documents"],
                        "Line: milliseconds of a fetch for each ratio; dashed: the full prefill.", [panel], names=70)


def plot_clients(r):
    lines = sweep(r, "clients")
    if not lines:
        return None
    ticks = sorted({l["clients"] for l in lines})
    rate = plots.Panel("Fetches a second", "clients (logarithmic)", "fetches / s",
                       [("fetches a second", plots.GREEN, "triangle", None, [(l["clients"], l["fetches_s"]) for l in lines])],
                       x_ticks=ticks, log_x=True, label=plots.number)
    wait = plots.Panel("Latency of one fetch", "clients (logarithmic)", "milliseconds",
                       [("p50", plots.BLUE, "circle", None, [(l["clients"], l["ms"]) for l in lines]),
                        ("p90", plots.RED, "square", "7 4", [(l["clients"], l["p90"]) for l in lines])],
                       x_ticks=ticks, log_x=True)
    return plots.panels("Clients at the same time, %d documents, ratio %g" % (lines[0]["documents"], lines[0]["ratio"]),
                        "Two panels: fetches a second, and latency p50 and p90, against clients.", [rate, wait])


PLOTS = (("phases", plot_phases), ("documents", plot_documents), ("ratios", plot_ratios), ("clients", plot_clients))


# ------------------------------------------------------------------ floors

class Model:
    """The shape, from the results; what a pass over it costs at the least."""

    def __init__(self, setup):
        s = setup["shape"]
        self.layers, self.hidden = setup["layers"], s["hidden"]
        self.q, self.kv, self.ffn = s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"], s["ffn"]

    def layer(self):
        return self.hidden * (2 * self.q + 2 * self.kv + 3 * self.ffn)

    def tflop(self, rows):
        """K and V of every layer for `rows` tokens that see each other causally. The last layer owes its K and V alone."""
        products = (self.layers - 1) * self.layer() + self.hidden * 2 * self.kv
        return (2 * rows * products + (self.layers - 1) * 2 * rows ** 2 * self.q) * 1e-12

    def query_bytes(self):
        """Weights that the query's pass reads: all but what follows the last layer's Q, K and V."""
        return BYTES * (self.layers * self.layer() - self.hidden * (self.q + 3 * self.ffn))

    def rows(self, line):
        return round(line["mb_cache"] * 1e6 / (2 * BYTES * self.layers * self.kv))

    def recomputed(self, line):
        """Rows that a fetch recomputes in all layers, the query's included; None where depths differ from row to row."""
        if abs(line["recompute_ratio"] - line["sequence_ratio"]) > 1e-6:
            return None
        return line["kept"] + min(line["query"], self.rows(line) - line["kept"])


def compute_floors(r, m, rate, add):
    ours, others = paths(r)
    for label, line in ours + others:
        if line["step"] == "hf":
            add(label, "%.1f TFLOP / %.1f TFLOP/s" % (m.tflop(line["tokens"]), rate),
                m.tflop(line["tokens"]) / rate * 1e3, line["ms"])
        elif "sequence_ratio" in line and m.recomputed(line):
            work = m.tflop(m.recomputed(line))
            add(label + ": recompute", "%.1f TFLOP / %.1f TFLOP/s" % (work, rate), work / rate * 1e3, line["recompute"])


def floors(r):
    """Rows (part, formula with numbers, floor in ms, measured ms)."""
    rows, setup = [], r.one("setup")

    def add(part, formula, floor, measured):
        rows.append((part, formula, floor, measured))

    product = r.one("hf", what="product 8192^3")
    if not setup:
        return rows
    m = Model(setup)
    if product:
        compute_floors(r, m, product["tflop_s"], add)
    bandwidth = BANDWIDTH_TB_S.get(setup["device"])
    if bandwidth and r.hot:
        add("query", "%.2f GB of weights / %.2f TB/s (data sheet, %s)" % (m.query_bytes() * 1e-9, *bandwidth),
            m.query_bytes() / bandwidth[0] * 1e-9, r.hot["query_ms"])
    up, down = r.one("copy", what="host to device"), r.one("copy", what="device to host")
    warm, host = r.one("warm in host memory"), r.one("hot", placement="host")
    if up and warm:
        add("warm, in host memory: index + anchors", "%.2f MB read / %.1f GB/s up" % (warm["mb_read"], up["gb_s"]),
            warm["mb_read"] / up["gb_s"], warm["index"])
    disk, cold = r.one("disk"), r.one("cold")
    if disk and cold:
        add("cold, from disk: index + anchors", "%.2f MB read / %.2f GB/s" % (cold["mb_read"], disk["gb_s"]),
            cold["mb_read"] / disk["gb_s"], cold["index"])
    if down and host:
        add("hot, reply in host memory: reply", "%.2f MB / %.1f GB/s down" % (host["mb_cache"], down["gb_s"]),
            host["mb_cache"] / down["gb_s"], host["reply"])
    return rows


# ------------------------------------------------------------------ the page

def ms(value):
    return "–" if value is None else "{:,.1f}".format(value) if abs(value) >= 100 else "%.2f" % value


def faster(value):
    return "–" if value is None else "%.2f×" % value


def table(heads, rows):
    """Markdown; columns behind the first one are aligned to the right."""
    def cells(row):
        return "| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |"
    return "\n".join([cells(heads), "|---|" + "---:|" * (len(heads) - 1)] + [cells(row) for row in rows])


def picture(name, what):
    return "![%s](%s.svg)" % (what, name)


def section_headline(r):
    ours, others = paths(r)
    if not ours:
        return None
    main, setup = ours[0][1], r.one("setup")
    full = r.full(r.main_tokens)
    text = "## From request to usable K and V\n\n"
    text += "%d documents, %s tokens, a query of %d tokens, ratio %g; %s of the tokens are kept and recomputed.%s\n\n" % (
        main["documents"], "{:,}".format(main["total"]), main["query"], main["ratio"],
        "%.1f %%" % (100 * main["sequence_ratio"]), " Device: %s." % setup["device"] if setup else "")
    if full and r.hot:
        ratio = times(r, r.hot)
        what = "%.1f times faster than" % ratio if ratio >= 1 else "at %.2f times the speed of" % ratio
        text += ("A fetch of hot documents is **%s** Hugging Face's prefill (SDPA) of the same %s tokens in the same run: "
                 "%s ms beside %s ms, medians. The prefill runs in the process that wants K and V; the fetch is timed "
                 "in a client, through the socket, until the memory is mapped.\n\n" % (
                     what, "{:,}".format(full["tokens"]), ms(r.hot["ms"]), ms(full["ms"])))
    rows = [(label, faster(times(r, line)), ms(line["ms"]), ms(line.get("p10")), ms(line.get("p90")), line.get("fetches", "–"))
            for label, line in ours + others]
    return text + table(("", "faster than HF", "ms", "p10", "p90", "fetches"), rows)


def said_of_cold(r):
    lines = r.of("cold")
    if not lines:
        return []
    text = ("Cold is the first fetch of these documents by a daemon that has served others, the store's files having been "
            "dropped from the page cache; %d such fetches, of which the middle one is shown. " % len(lines))
    if any("mb_disk" in l for l in lines):
        counted = ", ".join("–" if "mb_disk" not in l else ms(l["mb_disk"]) for l in lines)
        return [text + "The kernel counted %s MB read from the disk meanwhile, what it reads ahead included." % counted]
    return [text + "The kernel did not say what came from the disk, so that it was the disk is not verified."]


def said_of_overhead(r):
    if not r.hot or "overhead" not in r.hot:
        return []
    return ["Fetch by fetch, what a hot fetch spends on anything but index, query, selection and recomputation (socket, reply, "
            "mapping and unmapping, waits between the parts) is **%s ms**, median." % ms(r.hot["overhead"])]


def section_phases(r):
    ours, others = paths(r)
    rows = []
    for label, line in ours + others:
        if "daemon" in line:
            d = divided(line)
            rows.append([label, ms(line["ms"])] + [ms(v) for v in d[:-1]] + [ms(line["read"])])
    if not rows:
        return None
    heads = ["", "all"] + [name for _, name, _ in PHASES] + [*[name for name, _ in RESTS], "(read)"]
    return "\n\n".join([
        "## Where the time goes, in milliseconds", picture("phases", "Phases of a fetch, and the alternatives"), table(heads, rows),
        "Every number is a median of its own, so a row adds up by its rests: *daemon* is the daemon's total without the phases "
        "named here, *client* is what the client waits beyond the daemon's total (socket, mapping, unmapping). *Read* brings "
        "and places the kept blocks; where they are only overwritten it runs beside other phases, so it is not added. "
        "Naive reuse recomputes the query's rows alone. Full prefill by samkvd is a fetch that keeps and "
        "recomputes everything. CacheBlend-style recomputation (all tokens through two layers, 15 % through the others) is "
        "timed inside one process, without a socket or a hand-off."] + said_of_overhead(r) + said_of_cold(r))


def section_floors(r):
    rows = floors(r)
    if not rows:
        return None
    text = ("## Floors\n\nWhat a part would take if it did nothing but its arithmetic or its copies at full rate:\n\n"
            "- recomputation and prefill: FLOPs over the rate of an 8192³ bf16 product by cuBLAS in the same run. FLOPs for n "
            "rows and L layers: 2·n·((L − 1)·(weights of a layer) + (weights of K and V)) + (L − 1)·2·n²·heads·head_dim; the "
            "last layer owes its K and V alone, and attention is causal;\n"
            "- query: bytes of the weights that its pass reads, over the memory bandwidth of NVIDIA's data sheet;\n"
            "- copies: bytes over the bandwidth of copies from and to pinned memory, measured in the same run. What is read is "
            "counted as stored, that is compressed, so more than that is copied;\n"
            "- the disk: bytes over the rate at which the store's file was read past the page cache in the same run.\n\n")
    text += table(("part", "floor from", "floor, ms", "measured, ms", "measured / floor"),
                  [(p, f, ms(floor), ms(measured), "%.2f" % (measured / floor)) for p, f, floor, measured in rows])
    by_part = {p: floor for p, _, floor, _ in rows}
    query, recompute, full = by_part.get("query"), by_part.get("hot, in device memory: recompute"), r.full(r.main_tokens)
    if query and recompute and full:
        text += ("\n\nQuery and recomputation cannot overlap: the first says what the second computes. Their floors add up to %s ms, "
                 "%s faster than Hugging Face's prefill; a hot fetch takes %.2f times as long." % (
                     ms(query + recompute), faster(full["ms"] / (query + recompute)), r.hot["ms"] / (query + recompute)))
    return text


def section_documents(r):
    rows = []
    for l in r.of("documents"):
        full = r.full(prompt_tokens(l))
        rows.append((l["documents"], "{:,}".format(l["total"]), l["placement"], faster(times(r, l)), ms(l["ms"]), ms(l["p90"]),
                     ms(full["ms"]) if full else "–", ms(l["query_ms"]), ms(l["recompute"]), ms(l["mb_cache"])))
    if not rows:
        return None
    heads = ("documents", "tokens", "reply", "faster than HF", "ms", "p90", "HF, ms", "query", "recompute", "MB of K and V")
    return "\n\n".join(["## Number of documents", picture("documents", "Time against documents"), table(heads, rows)])


def section_ratios(r):
    rows = [(l["ratio"], "%.1f %%" % (100 * l["sequence_ratio"]), l["placement"], faster(times(r, l)), ms(l["ms"]), ms(l["p90"]),
             ms(l["recompute"]), ms(l["mb_cache"])) for l in r.of("ratio")]
    if not rows:
        return None
    heads = ("ratio", "kept", "reply", "faster than HF", "ms", "p90", "recompute", "MB of K and V")
    return "\n\n".join(["## Ratio", picture("ratios", "Time against the ratio"), table(heads, rows)])


def section_clients(r):
    lines = r.of("clients")
    if not lines:
        return None
    alone = {l["placement"]: l["fetches_s"] for l in lines if l["clients"] == 1}
    rows = [(l["clients"], l["placement"],
             faster(l["fetches_s"] / alone[l["placement"]] if l["placement"] in alone else None),
             "%.2f" % l["fetches_s"], ms(l["ms"]), ms(l["p90"]), l["fetches"]) for l in lines]
    heads = ("clients", "reply", "rate beside one client", "fetches/s", "p50, ms", "p90, ms", "fetches")
    return "\n\n".join(["## Clients", picture("clients", "Fetches a second and latency against clients"), table(heads, rows),
                        "Each client asks for the next fetch when it has the last one."])


def section_variants(r):
    named = {"hot dynamic": "top-P selection, a budget for each document", "hot cosine": "update \"cosine\"",
             "hot no query": "K and V of the query left out", "warm in host memory, cosine": "warm, update \"cosine\"",
             "cold, cosine": "cold, update \"cosine\""}
    rows = []
    for step, what in named.items():
        for placement in ("device", "host"):
            line = r.one(step, placement=placement)
            if line:
                rows.append((what, placement, faster(times(r, line)), ms(line["ms"]), ms(line["p90"]), ms(line["daemon"]),
                             ms(line["read"]), ms(line["mb_read"])))
    if not rows:
        return None
    return "## Variants\n\n" + table(("", "reply", "faster than HF", "ms", "p90", "daemon", "read", "MB read"), rows)


def section_ingest(r):
    lines, product = r.of("ingest"), r.one("hf", what="product 8192^3")
    if not lines:
        return None
    rows = []
    for l in lines:
        share = "%.0f %%" % (100 * l["tflop_s"] / product["tflop_s"]) if product and "tflop_s" in l else "–"
        rows.append((l["collection"], l["documents"], "{:,}".format(l["tokens"]), "{:,}".format(l["tokens_s"]),
                     "%.2f" % l["seconds"], ms(l.get("prefill_ms")), l.get("tflop_s", "–"), share, l["gb_stored"], l["gb_raw"]))
    heads = ("collection", "documents", "tokens", "tokens/s, to disk", "s", "prefill alone, ms", "its TFLOP/s",
             "of the product's rate", "GB stored", "GB of K and V")
    return "## Ingest\n\n" + table(heads, rows) + (
        "\n\nTFLOP are counted here with the whole last layer, as for Hugging Face, though ingest owes only its K and V.")


def section_reference(r):
    rows = [(l["what"], "{:,}".format(l["tokens"]) if "tokens" in l else "–", l["ms"], l.get("tflop_s", "–")) for l in r.of("hf")]
    rows += [("copy, " + l["what"], "–", l["ms"], "%s GB/s" % l["gb_s"]) for l in r.of("copy")]
    if not rows:
        return None
    return "## Reference\n\nHugging Face transformers (SDPA, bf16), cuBLAS and copies, by PyTorch, in the same run.\n\n" + table(
        ("what", "tokens", "ms", "TFLOP/s, or as said"), rows)


def section_errors(r):
    if not r.errors:
        return None
    return "## Failed\n\n" + "\n".join("- %s: `%s`%s" % (
        l.get("step", "?"), " ".join(str(l["error"]).replace("`", "'").split()),
        "".join(", %s %s" % (k, v) for k, v in l.items() if k not in ("step", "error"))) for l in r.errors)


def section_repeat(_):
    return """## To repeat it

```
cmake --preset cuda -DSAMKV_TESTS=ON && cmake --build build/cuda --target device_bundle
tests/device/fetch.py build/cuda/device results.jsonl     # on the machine with the GPU; needs PyTorch and transformers
tests/bench/page.py results.jsonl FOLDER                  # anywhere: this page and its plots
```"""


def section_not_measured(r):
    missing = [what for step, what in STEPS if not r.of(step)]
    text = "## Not measured\n\n"
    if missing:
        text += "- Missing from this run: " + ", ".join(missing) + ".\n"
    return text + (
        "- The quality of answers: the weights and the tokens are random. With real ones K and V compress otherwise, and so "
        "other amounts are read and stored.\n"
        "- Other shapes of models, other lengths of documents and queries, and other GPUs.\n"
        "- An engine that goes on with the cache, and serving engines (vLLM, SGLang) in place of Hugging Face transformers.\n"
        "- Hugging Face with several clients; its prefill is of one prompt, alone on the device.")


SECTIONS = (section_headline, section_phases, section_floors, section_documents, section_ratios, section_clients,
            section_variants, section_ingest, section_reference, section_errors, section_repeat, section_not_measured)


def page(r):
    setup = r.one("setup")
    head = "# Fetches on a GPU\n\n"
    if setup:
        s = setup["shape"]
        head += "%s, PyTorch %s; a model of %d layers, hidden size %d, %d heads and %d KV heads of %d, bf16, random weights.\n" % (
            setup["device"], setup["torch"], setup["layers"], s["hidden"], s["heads"], s["kv_heads"], s["head_dim"])
    head += ("All figures come from one run on one machine. Such machines are shared and differ from each other and from hour "
             "to hour, so look at the ratios first; times are milliseconds, medians where nothing else is said.")
    return "\n\n".join([head] + [text for text in (section(r) for section in SECTIONS) if text]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    o = parser.parse_args()
    r = read(o.results)
    o.folder.mkdir(parents=True, exist_ok=True)
    for name, plot in PLOTS:
        path, drawn = o.folder / (name + ".svg"), plot(r)
        path.unlink(missing_ok=True)  # an earlier run's
        if drawn:
            path.write_text(drawn, encoding="utf-8")
    (o.folder / "README.md").write_text(page(r), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
