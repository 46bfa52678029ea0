"""Sparse KV caches from a samkvd daemon.

    with samkv.Client() as client:
        client.ingest("a.txt", text)
        cache = client.fetch(["a.txt"], "Who did it?", ratio=0.15)

`Client` talks to the daemon, `Cache` is what a fetch gives: K and V of the kept tokens as arrays over the memory that
the daemon filled, without a copy. `samkv.transformers` and `samkv.llama` hand a cache to those engines; they import
torch, transformers and llama_cpp only when they are used.

Words (as in samkv.h): a *collection* has one model, preamble, block size and anchor sizes; a *row* is one token of a
cache: the preamble's rows first, then kept document tokens, then the query's (with_query).

Threads. Calls of one client wait for each other; for requests at the same time, make a client a thread. A cache may be
read by any number of threads.
"""
from ._library import library_path
from .cache import Cache, DeviceArray, Figures, Tensors
from .client import (Answer, Client, Collected, Collection, Document, Ingested, IngestResult, Model, Quality,
                     Shown, StatusReport, Verified, default_socket)
from .errors import ConnectionEnded, NoDaemon, NotFound, SamkvError, Status, TimedOut

__all__ = ["Answer", "Cache", "Client", "Collected", "Collection", "ConnectionEnded", "DeviceArray", "Document", "Figures",
           "Ingested", "IngestResult", "Model", "NoDaemon", "NotFound", "Quality", "SamkvError", "Shown", "Status", "StatusReport",
           "Tensors", "TimedOut", "Verified", "default_socket", "library_path"]
__version__ = "0.1.0"
