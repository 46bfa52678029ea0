"""Prometheus' text format, version 0.0.4, read strictly: anything that a scraper would refuse, or that promtool would
complain of, raises. https://prometheus.io/docs/instrumenting/exposition_formats and …/practices/naming.
"""
import math
import re

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"')
TYPES = ("counter", "gauge", "histogram")
NOT_BASE_UNITS = ("_ms", "_us", "_milliseconds", "_kb", "_mb", "_kilobytes", "_percent")


class Malformed(AssertionError):
    """What is wrong, and in which line."""


class Family:
    def __init__(self, name):
        self.name, self.type, self.help, self.samples = name, None, None, {}


def _labels(text, line):
    out, at = {}, 0
    while at < len(text):
        match = LABEL.match(text, at)
        if not match or match.group(1) in out:
            raise Malformed("labels of: " + line)
        out[match.group(1)] = match.group(2)
        at = match.end()
        if at < len(text):
            if text[at] != ",":
                raise Malformed("labels of: " + line)
            at += 1
    return out


def _sample(line):
    match = re.fullmatch(r"([^ {]+)(?:\{(.*)\})? ([^ ]+)", line)
    if not match or not NAME.fullmatch(match.group(1)):
        raise Malformed("no sample: " + line)
    value = {"+Inf": math.inf, "-Inf": -math.inf, "NaN": math.nan}.get(match.group(3))
    try:
        value = float(match.group(3)) if value is None else value
    except ValueError:
        raise Malformed("no number: " + line) from None
    return match.group(1), _labels(match.group(2) or "", line), value


def _belongs(name, family):
    suffixes = ("_bucket", "_sum", "_count") if family.type == "histogram" else ("",)
    return any(name == family.name + suffix for suffix in suffixes)


def parse(text):
    """name → Family; its samples are (name, frozenset of labels) → value."""
    families, current = {}, None
    if not text.endswith("\n"):
        raise Malformed("the last line does not end")
    for line in text.split("\n")[:-1]:
        if line.startswith("# "):
            kind, name, rest = line[2:].split(" ", 2)
            if kind not in ("HELP", "TYPE") or not NAME.fullmatch(name) or not rest:
                raise Malformed(line)
            if current is None or current.name != name:
                if name in families:
                    raise Malformed("a family in two places: " + line)
                current = families[name] = Family(name)
            attribute = kind.lower()
            if getattr(current, attribute) is not None or current.samples:
                raise Malformed("twice, or behind samples: " + line)
            setattr(current, attribute, rest)
            continue
        name, labels, value = _sample(line)
        if current is None or not _belongs(name, current):
            raise Malformed("a sample of no family: " + line)
        key = (name, frozenset(labels.items()))
        if key in current.samples:
            raise Malformed("twice: " + line)
        current.samples[key] = value
    for family in families.values():
        _check(family)
    return families


def _check(family):
    if family.type not in TYPES or not family.help or not family.samples:
        raise Malformed("%s: type %s, help %s, %d samples" % (family.name, family.type, family.help,
                                                              len(family.samples)))
    if (family.type == "counter") != family.name.endswith("_total"):
        raise Malformed("%s is a %s" % (family.name, family.type))
    if any(unit in family.name + "_" for unit in (u + "_" for u in NOT_BASE_UNITS)):
        raise Malformed("%s: no base unit" % family.name)
    names = {frozenset(k for k, _ in labels if k != "le") for _, labels in family.samples}
    if len(names) != 1:
        raise Malformed("%s: samples with different labels" % family.name)
    if family.type == "counter" and any(not v >= 0 for v in family.samples.values()):
        raise Malformed("%s: below 0" % family.name)
    if family.type == "histogram":
        for labels in {frozenset(p for p in labels if p[0] != "le") for _, labels in family.samples}:
            _check_histogram(family, labels)


def buckets(family, labels=frozenset()):
    """[(bound, how many are at most that)], in the order of bounds."""
    out = []
    for (name, its), value in family.samples.items():
        le = dict(its).get("le")
        if name == family.name + "_bucket" and its - {("le", le)} == labels:
            out.append((math.inf if le == "+Inf" else float(le), value))
    return out


def _check_histogram(family, labels):
    found = buckets(family, labels)
    count = family.samples.get((family.name + "_count", labels))
    total = family.samples.get((family.name + "_sum", labels))
    if found != sorted(found) or not found or found[-1][0] != math.inf:
        raise Malformed("%s: bounds do not ascend to +Inf" % family.name)
    if any(a[1] > b[1] for a, b in zip(found, found[1:])) or found[-1][1] != count:
        raise Malformed("%s: buckets do not add up" % family.name)
    if total is None or not 0 <= total < math.inf or (count == 0 and total != 0):
        raise Malformed("%s: sum %s of %s" % (family.name, total, count))


def value(families, name, **labels):
    """Of one sample; name may have a histogram's suffix. KeyError when there is none."""
    wanted = frozenset(labels.items())
    for family in families.values():
        if (name, wanted) in family.samples:
            return family.samples[(name, wanted)]
    raise KeyError((name, labels))


def self_test():
    good = '# HELP a_total x\n# TYPE a_total counter\na_total{b="c\\"d"} 1\n'
    assert value(parse(good), "a_total", b='c\\"d') == 1
    histogram = ('# HELP h x\n# TYPE h histogram\nh_bucket{le="0.1"} 1\nh_bucket{le="+Inf"} 2\nh_sum 0.5\n'
                 "h_count 2\n")
    parse(histogram)
    bad = [good[:-1], good.replace("_total", ""), good + good, good + 'a_total{b="e"} 1', good + "other 1\n",
           good.replace(" 1\n", " x\n"), good.replace("counter", "number"), good.replace("# HELP a_total x\n", ""),
           good + 'a_total{b="c\\"d"} 2\n', good + "a_total 2\n", good.replace('="c', "=c"),
           good.replace("a_total", "a_ms_total"), good.replace("} 1", "} -1"), good.replace(" counter", " gauge"),
           histogram.replace("0.1", "abc"), histogram.replace("} 1", "} 3"), histogram.replace("h_count 2", "h_count 3"),
           histogram.replace("h_sum 0.5\n", ""), histogram.replace('h_bucket{le="+Inf"} 2\n', "")]
    for text in bad:
        try:
            parse(text)
        except (Malformed, ValueError):
            continue
        raise AssertionError("not refused:\n" + text)


self_test()
