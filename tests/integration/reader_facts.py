#!/usr/bin/env python3
"""Adds to cases of the small reader which tokens of their documents the answer needs, for `samkvctl eval`.

    reader_facts.py CASES.jsonl > WITH_FACTS.jsonl

A case is {"id", "type", "preamble", "docs", "query", "answer"}, all token ids. A document begins with 6 and the two
tokens of the entity that it is about; a fact is an entity, a relation and a value, two tokens, one and two. 7 stands for
the entity that the document is about, and 22 8 for "the same as in the document before". Types: single (one fact), pron
(one fact about 7), same (a fact 7 relation 8 and the document before's 7 relation value), two (a fact whose value is
the entity of the second one). A question is 3 relation entity.. 4, for two hops 3 second-relation first-relation entity 4.
"""
import json
import sys

TITLE, ITSELF, AS_BEFORE = 6, 7, 8


def find(docs, pattern, among=None):
    """[document, first token, tokens] of every place of the pattern."""
    return [[i, at, len(pattern)] for i, doc in enumerate(docs) if among is None or i in among
            for at in range(len(doc) - len(pattern) + 1) if doc[at:at + len(pattern)] == pattern]


def about(docs, entity):
    return [i for i, doc in enumerate(docs) if doc[1:3] == entity]


def facts_of(case):
    docs, query, answer = case["docs"], case["query"], case["answer"]
    if case["type"] == "two":
        second, first, entity = query[1], query[2], query[3:5]
        for i, at, _ in find(docs, entity + [first]):
            bridge = docs[i][at + 3:at + 5]
            ends = find(docs, bridge + [second] + answer)
            if ends:
                return [[i, at, 5], ends[0]]
        return []
    relation, entity = query[1], query[2:4]
    if case["type"] == "single":
        return find(docs, entity + [relation] + answer)[:1]
    its = about(docs, entity)
    if case["type"] == "pron":
        return find(docs, [ITSELF, relation] + answer, its)[:1]
    for i in its:
        here = find(docs, [ITSELF, relation, AS_BEFORE], [i])
        there = find(docs, [ITSELF, relation] + answer, [i - 1])
        if here and there:
            return here[:1] + there[:1]
    return []


def main():
    found = lines = 0
    with open(sys.argv[1], encoding="utf-8") as cases:
        for line in cases:
            case = json.loads(line)
            case["facts"] = facts_of(case)
            lines, found = lines + 1, found + bool(case["facts"])
            print(json.dumps(case))
    print("%d of %d cases have their facts" % (found, lines), file=sys.stderr)


if __name__ == "__main__":
    main()
