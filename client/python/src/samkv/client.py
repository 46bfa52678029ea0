"""Talking to a samkvd daemon."""
import ctypes
import dataclasses
import os
import threading
import typing

from . import _library
from ._library import call, text
from .cache import Cache, Figures, read_figures
from .errors import SamkvError

Tokens = typing.Sequence[int]
TextOrTokens = typing.Union[str, bytes, Tokens]

_SELECTIONS = {"dynamic": 0, "fixed": 1}
_UPDATES = {"overwrite": 0, "cosine": 1, "delta": 3}
_SCORES = {"mean": 0, "tokens": 1, "exact": 2, "last": 3, "attend": 4}
_NEIGHBOURS = {"none": 0, "left": 1, "both": 2}
_POSITIONS = {"original": 0, "compact": 1}
_PLACEMENTS = {"host": 0, "device": 1}
_METHODS = {"samkv": 0, "full": 1, "reuse": 2}


@dataclasses.dataclass(frozen=True)
class Ingested:
    """One stored document: as given, or a piece (`id#1`, `id#2`, …) of a split one."""
    id: str
    skipped: bool       # the same content was there already
    tokens: int
    bytes_raw: int
    bytes_stored: int


@dataclasses.dataclass(frozen=True)
class IngestResult:
    documents: typing.List[Ingested]
    prefill_ms: float   # device time
    request: int        # the daemon's number of this request


@dataclasses.dataclass(frozen=True)
class Document:
    collection: str
    id: str
    title: str
    key: str            # of its content, hex
    tokens: int
    blocks: int
    bytes_raw: int
    bytes_stored: int
    bytes_index: int
    created_unix_s: int
    pinned: bool        # survives eviction and its collection's time to live
    put_unix_s: int     # when the id was last ingested; 0: not known
    expires_unix_s: int     # 0: never
    used_unix_s: int    # by a fetch; 0: never
    uses: int


@dataclasses.dataclass(frozen=True)
class Collection:
    name: str
    model: str
    dtype: str
    fingerprint: str    # of the model, hex
    block_tokens: int
    init_tokens: int
    local_tokens: int
    preamble_tokens: int
    documents: int
    quota_bytes: int    # 0: none
    ttl_s: int          # 0: none
    bytes_raw: int      # of its documents; what another collection has too counts in both
    bytes_stored: int
    codec: str          # "rans", "zstd", "raw", "q8", "q4"
    owner: int          # user; 0: the daemon's own, and root's
    group: int          # 0: the daemon's
    mode: int           # as a file's: 0o640


@dataclasses.dataclass(frozen=True)
class Quality:
    """What a collection needs of its sparse answers, and how far it is met."""
    collection: str
    target: str         # "agreement=0.95", "kl=0.05"
    share: float        # of fetches that are measured
    level: int          # 0: fetches keep what they ask for
    ratio: float        # that they keep at least
    full: bool          # everything is recomputed
    estimate: float     # of the target's metric
    bound: float        # what it is surely not worse than
    measurements: float  # that the estimate rests on
    met: bool
    measured: int
    raised: int
    lowered: int


@dataclasses.dataclass(frozen=True)
class Shown:
    document: Document
    collection: Collection
    text: str           # decoded from the stored tokens


@dataclasses.dataclass(frozen=True)
class Model:
    name: str
    path: str
    device: str
    fingerprint: str
    dtype: str
    layers: int
    context_tokens: int
    weight_bytes: int


@dataclasses.dataclass(frozen=True)
class StatusReport:
    version: str
    store: str
    uptime_s: int
    collections: int
    documents: int
    names: int
    connections: int
    bytes_file: int
    bytes_used: int
    bytes_limit: int    # 0: none
    bytes_raw: int
    bytes_stored: int
    resident_bytes: int
    bytes_disk_free: int
    bytes_reclaimable: int
    oldest_reader_s: int
    evictions: int
    evicted_bytes: int
    expirations: int
    user: int           # who asks, as collections name owners
    user_bytes: int     # that its collections are charged with
    user_quota_bytes: int   # 0: none
    partial: bool       # no administrator asks: sums are of what it may read, and there are no counters
    models: typing.List[Model]
    counters: typing.Dict[str, float]


@dataclasses.dataclass(frozen=True)
class Verified:
    documents: int
    documents_total: int
    blocks: int
    bytes: int
    damaged: int
    repaired: int
    damaged_ids: typing.List[str]   # "collection/id", at most 100


@dataclasses.dataclass(frozen=True)
class Collected:
    names_expired: int
    names_orphaned: int     # of collections that are gone
    documents_unreferenced: int
    documents_unfinished: int
    bytes_freed: int


@dataclasses.dataclass(frozen=True)
class Answer:
    text: str
    answer_tokens: int
    prompt_tokens: int      # rows that were there before the answer began
    first_token_ms: float
    total_ms: float
    figures: typing.Optional[Figures]   # of the sparse cache; None for the other methods


def _record(kind, struct, **more):
    """A dataclass from the struct's members of the same names."""
    values = {}
    for field in dataclasses.fields(kind):
        if field.name not in more:
            value = getattr(struct, field.name)
            values[field.name] = text(value) if isinstance(value, (bytes, type(None))) else value
    return kind(**values, **more)


def _name(value):
    return None if value is None else value.encode()


def _choice(table, value, what):
    if value not in table:
        raise ValueError("%s is %r: choose one of %s" % (what, value, ", ".join(table)))
    return table[value]


class _Arena:
    """Keeps what the C structures point at, until the call is over."""

    def __init__(self):
        self.kept = []

    def text(self, value):
        """(address, bytes) of a text; NULs are allowed."""
        raw = value.encode() if isinstance(value, str) else bytes(value)
        buffer = ctypes.create_string_buffer(raw, len(raw) + 1)
        self.kept.append(buffer)
        return ctypes.addressof(buffer), len(raw)

    def integers(self, values, kind=ctypes.c_int32):
        values = [int(v) for v in values]
        low, high = (0, 2**32 - 1) if kind is ctypes.c_uint32 else (-2**31, 2**31 - 1)
        if any(not low <= v <= high for v in values):
            raise ValueError("not a 32-bit number among %r…" % values[:8])
        array = (kind * max(len(values), 1))(*values)
        self.kept.append(array)
        return array, len(values)

    def strings(self, values):
        if isinstance(values, (str, bytes)):
            raise TypeError("a list of ids is needed, not one string")
        raw = [v.encode() for v in values]
        array = (ctypes.c_char_p * max(len(raw), 1))(*raw)
        self.kept.append(array)
        return array, len(raw)


def default_socket(path: typing.Optional[str] = None) -> str:
    """The socket that `Client(path)` would use: the argument, else $SAMKV_SOCKET, else $XDG_RUNTIME_DIR/samkv.sock if
    it is there, else /run/samkv/samkv.sock."""
    buffer = ctypes.create_string_buffer(256)
    call("samkv_client_path", None if path is None else os.fsencode(path), buffer, len(buffer))
    return os.fsdecode(buffer.value)


class Client:
    """A connection to samkvd.

    path: the daemon's socket; None as `default_socket` says. timeout_s: how long a request may stay without any answer
    before `TimedOut`; None: forever. Raises NoDaemon when nobody listens.

    Threads: calls wait for each other (the interpreter runs on meanwhile). For requests at the same time, make a client
    a thread. After ConnectionEnded only another client helps; caches stay good. A context manager: closes at the end.
    """

    def __init__(self, path: typing.Union[str, os.PathLike, None] = None, timeout_s: typing.Optional[float] = None):
        self._lock, self._handle = threading.RLock(), ctypes.c_void_p()
        call("samkv_client_connect", None if path is None else os.fsencode(path), ctypes.byref(self._handle))
        if timeout_s is not None:
            call("samkv_client_set_timeout_ms", self._handle, max(1, min(int(timeout_s * 1000), 2**31 - 1)))

    def close(self) -> None:
        """Ends the connection. Caches stay good."""
        with self._lock:
            handle, self._handle = self._handle, ctypes.c_void_p()
            if handle:
                call("samkv_client_close", handle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        if getattr(self, "_handle", None):
            self.close()

    def _call(self, name, *arguments):
        with self._lock:
            if not self._handle:
                raise ValueError("the client is closed")
            call("samkv_client_" + name, self._handle, *arguments)

    def _answer(self, read, name, *arguments):
        """A call with a reply, which `read` turns into values before its memory goes."""
        reply = _library.Reply()
        self._call(name, *arguments, ctypes.byref(reply))
        try:
            return read(reply.answer)
        finally:
            call("samkv_reply_deinit", ctypes.byref(reply))

    @property
    def server(self) -> str:
        """The daemon's name and version ("samkvd/0.1.0")."""
        with self._lock:
            if not self._handle:
                raise ValueError("the client is closed")
            return text(call("samkv_client_server", self._handle))

    def ping(self) -> None:
        """Returns when the daemon has answered."""
        self._call("ping")

    # -------------------------------------------------------------------------------------------------- documents

    def ingest(self, id: str, text: TextOrTokens, *, title: typing.Optional[str] = None,
               collection: typing.Optional[str] = None, chunk_tokens: int = 0, model: typing.Optional[str] = None,
               preamble: typing.Optional[TextOrTokens] = None, block_tokens: int = -1, init_tokens: int = -1,
               local_tokens: int = -1, quota_bytes: int = -1, ttl_s: int = -1,
               codec: typing.Optional[str] = None, mode: int = 0) -> IngestResult:
        """Stores a document, given as text or as token ids; when this returns, it is on disk.

        The same id with other content replaces it. chunk_tokens splits a longer document into `id#1`, `id#2`, …; 0
        refuses what exceeds the model's context. The rest belongs to the collection: its first ingest sets it (-1 and
        None: 16, 16, 16, no quota, no time to live, no preamble, the daemon's codec and first model; mode 0: the
        daemon's, like 0o640), and whatever a later one says must agree.
        """
        arena, d = _Arena(), _library.DocumentInput()
        call("samkv_document_init", ctypes.byref(d))
        d.collection, d.id, d.title, d.chunk_tokens = _name(collection), id.encode(), _name(title), chunk_tokens
        if isinstance(text, (str, bytes)):
            d.text, d.text_bytes = arena.text(text)
        else:
            d.tokens, d.token_count = arena.integers(text)
        d.spec.model = _name(model)
        d.spec.block_tokens, d.spec.init_tokens, d.spec.local_tokens = block_tokens, init_tokens, local_tokens
        d.spec.quota_bytes, d.spec.ttl_s, d.spec.codec = quota_bytes, ttl_s, _name(codec)
        d.spec.mode = mode
        if preamble is not None:
            d.spec.has_preamble = True
            if isinstance(preamble, (str, bytes)):
                d.spec.preamble, d.spec.preamble_bytes = arena.text(preamble)
            else:
                d.spec.preamble_tokens, d.spec.preamble_token_count = arena.integers(preamble)
        return self._answer(lambda a: IngestResult([_record(Ingested, a.ingest.documents[i])
                                                    for i in range(a.ingest.count)], a.ingest.prefill_ms,
                                                   a.ingest.request),
                            "ingest", ctypes.byref(d))

    def ls(self, collection: typing.Optional[str] = None) -> typing.Iterator[Document]:
        """The collection's documents by id, asked for page by page."""
        after, more = None, True
        while more:
            page, more = self._answer(
                lambda a: ([_record(Document, a.list.documents[i]) for i in range(a.list.document_count)], a.list.more),
                "list", _name(collection), _name(after), 0)
            yield from page
            after, more = (page[-1].id, more) if page else (after, False)

    def collections(self) -> typing.Iterator[Collection]:
        """All collections by name, asked for page by page."""
        after, more = None, True
        while more:
            page, more = self._answer(
                lambda a: ([_record(Collection, a.list.collections[i]) for i in range(a.list.collection_count)],
                           a.list.more), "list_collections", _name(after), 0)
            yield from page
            after, more = (page[-1].name, more) if page else (after, False)

    def show(self, id: str, collection: typing.Optional[str] = None) -> Shown:
        """One document and its text. Raises NotFound."""
        return self._answer(lambda a: Shown(_record(Document, a.show.document), _record(Collection, a.show.collection),
                                            ctypes.string_at(a.show.text, a.show.text_bytes).decode("utf-8", "replace")
                                            if a.show.text else ""), "show", _name(collection), id.encode())

    def rm(self, ids: typing.Sequence[str], collection: typing.Optional[str] = None) -> typing.List[str]:
        """Removes documents; the ids that were not there."""
        arena = _Arena()
        array, count = arena.strings(ids)
        return self._answer(lambda a: [text(a.remove.missing[i]) for i in range(a.remove.missing_count)], "remove",
                            _name(collection), array, count)

    def rm_collection(self, name: str) -> int:
        """Removes a collection with its documents, pinned ones too; how many there were."""
        return self._answer(lambda a: a.remove.removed, "remove_collection", name.encode(), None, None)

    def pin(self, ids: typing.Sequence[str], collection: typing.Optional[str] = None,
            pinned: bool = True) -> typing.List[str]:
        """Pinned documents survive eviction and their collection's time to live; the ids that were not there."""
        arena = _Arena()
        array, count = arena.strings(ids)
        return self._answer(lambda a: [text(a.pin.missing[i]) for i in range(a.pin.missing_count)], "pin",
                            _name(collection), array, count, pinned)

    def configure(self, collection: typing.Optional[str] = None, quota_bytes: int = -1, ttl_s: int = -1) -> Collection:
        """Changes a collection's quota and time to live: -1 leaves one as it is, 0 lifts it. A lowered quota evicts
        before the answer."""
        return self._answer(lambda a: _record(Collection, a.configure.collection), "configure", _name(collection),
                            quota_bytes, ttl_s)

    def share(self, collection: typing.Optional[str] = None, group: int = -1, mode: int = -1) -> Collection:
        """Says who may use a collection: a group of one's own (0: the daemon's) and a mode like 0o640 (4 is reading, 6
        reading and writing); -1 leaves one as it is."""
        return self._answer(lambda a: _record(Collection, a.configure.collection), "share", _name(collection), group,
                            mode)

    def set_quality(self, quality: typing.Optional[str], collection: typing.Optional[str] = None,
                    share: float = -1) -> typing.Optional[Quality]:
        """Changes the quality that a collection's sparse answers need: "agreement=0.95", "kl=0.05" or "none"; None
        leaves it. share: of fetches that are measured against full recomputation; -1 leaves it. What is known of it."""
        return self._answer(lambda a: _record(Quality, a.configure.quality.contents) if a.configure.quality else None,
                            "set_quality", _name(collection), _name(quality), share)

    # ---------------------------------------------------------------------------------------------------- fetching

    def _fill(self, arena, options, ids, *, collection, ratio, selection, stable_layers, init_tokens, local_tokens,
              update, recompute, positions, score, neighbours):
        options.collection = _name(collection)
        options.ids, options.id_count = arena.strings(ids)
        options.ratio, options.selection = -1 if ratio is None else ratio, _choice(_SELECTIONS, selection, "selection")
        if stable_layers is not None:
            options.stable_layers, options.stable_layer_count = arena.integers(stable_layers, ctypes.c_uint32)
        options.init_tokens, options.local_tokens = init_tokens, local_tokens
        if isinstance(update, (int, float)):
            options.update, options.theta = 2, update
        else:
            options.update = _choice(_UPDATES, update, "update")
        options.no_recompute, options.positions = not recompute, _choice(_POSITIONS, positions, "positions")
        options.scoring = _choice(_SCORES, score, "score")
        options.neighbours = _choice(_NEIGHBOURS, neighbours, "neighbours")

    def fetch(self, ids: typing.Sequence[str], query: TextOrTokens, *, collection: typing.Optional[str] = None,
              ratio: typing.Optional[float] = None, selection: str = "dynamic",
              stable_layers: typing.Optional[Tokens] = None, init_tokens: int = -1, local_tokens: int = -1,
              update: typing.Union[str, float] = "overwrite", recompute: bool = True, positions: str = "original",
              with_query: bool = False, placement: str = "host", deadline_ms: int = 0,
              score: str = "mean", neighbours: str = "none") -> Cache:
        """What a query (text or token ids) needs of some documents, as a ready-to-use KV cache.

        ids: in the order of the prompt. ratio: of the documents' tokens to keep, (0, 1]; None: what
        the model's calibration found, else 0.15. selection: "dynamic", where
        the budget is a bound, or "fixed", where it is filled. stable_layers: whose ranking of blocks is used; None: the
        model's. init_tokens, local_tokens: anchors, -1 the collection's. update: how recomputed K and V meet the cached
        ones: "overwrite", "cosine", "delta" (what the other documents change is added; recomputes twice), or a number
        theta in [0, 1]: theta * new + (1 - theta) * old. recompute=False leaves them as stored. score: of blocks: "mean"
        of the query, each of its "tokens", or these against every stored key ("exact", "last", "attend"). neighbours: of
        a chosen block that come along: "none", "left" or "both". positions: "original", joint positions with gaps, or "compact": 0, 1, 2, …. with_query:
        the query's rows and logits come along. placement: "host", or "device" for the memory of the daemon's GPU.
        deadline_ms: after so long the cache is of no use; then everything is recomputed where that is sooner than the
        sparse way, and TimedOut is raised at once where the daemon knows that neither is in time; it gives
        up what takes longer (CANCELLED). 0: as long as the daemon allows.
        """
        arena, options = _Arena(), _library.FetchOptions()
        call("samkv_fetch_options_init", ctypes.byref(options))
        self._fill(arena, options, ids, collection=collection, ratio=ratio, selection=selection,
                   stable_layers=stable_layers, init_tokens=init_tokens, local_tokens=local_tokens, update=update,
                   recompute=recompute, positions=positions, score=score, neighbours=neighbours)
        if isinstance(query, (str, bytes)):
            options.query, options.query_bytes = arena.text(query)
        else:
            options.query_tokens, options.query_token_count = arena.integers(query)
        options.with_query, options.placement = with_query, _choice(_PLACEMENTS, placement, "placement")
        options.deadline_ms = deadline_ms
        out = ctypes.POINTER(_library.CacheInput)()
        self._call("fetch", ctypes.byref(options), ctypes.byref(out))
        return Cache(out)

    def ask(self, ids: typing.Sequence[str], question: str, *, method: str = "samkv", max_tokens: int = 0,
            raw: bool = False, on_text: typing.Optional[typing.Callable[[str], object]] = None,
            collection: typing.Optional[str] = None, ratio: typing.Optional[float] = None, selection: str = "dynamic",
            stable_layers: typing.Optional[Tokens] = None, init_tokens: int = -1, local_tokens: int = -1,
            update: typing.Union[str, float] = "overwrite", recompute: bool = True,
            positions: str = "original", score: str = "mean", neighbours: str = "none") -> Answer:
        """The daemon's own model answers, greedily, over the sparse ("samkv"), the fully recomputed ("full") or the
        naively reused ("reuse") cache.

        max_tokens: 0: 64. raw: the question is the whole query, no chat template around it. on_text gets each piece of
        the answer as it comes; what it raises ends the request and is raised here. The rest is as in `fetch`.
        """
        arena, options = _Arena(), _library.AskOptions()
        call("samkv_ask_options_init", ctypes.byref(options))
        self._fill(arena, options.fetch, ids, collection=collection, ratio=ratio, selection=selection,
                   stable_layers=stable_layers, init_tokens=init_tokens, local_tokens=local_tokens, update=update,
                   recompute=recompute, positions=positions, score=score, neighbours=neighbours)
        options.question, options.question_bytes = arena.text(question)
        options.method, options.max_tokens, options.raw = _choice(_METHODS, method, "method"), max_tokens, raw
        pieces, raised = [], []

        def piece(_, address, count):
            said = ctypes.string_at(address, count).decode("utf-8", "replace") if count else ""
            pieces.append(said)
            try:
                if on_text is not None and said:
                    on_text(said)
            except BaseException as error:      # C code is between here and the caller
                raised.append(error)
            return not raised

        def read(a):
            figures = read_figures(a.ask.figures.contents) if a.ask.figures else None
            return Answer("".join(pieces), a.ask.answer_tokens, a.ask.prompt_tokens, a.ask.first_token_ms,
                          a.ask.total_ms, figures)

        try:
            return self._answer(read, "ask", ctypes.byref(options), _library.ON_TEXT(piece), None)
        except SamkvError as error:
            if raised:
                raise raised[0] from None
            raise error

    # ------------------------------------------------------------------------------------------------- the daemon

    def status(self) -> StatusReport:
        """Models, the store's size, and counters."""
        return self._answer(lambda a: _record(
            StatusReport, a.status, models=[_record(Model, a.status.models[i]) for i in range(a.status.model_count)],
            counters={text(a.status.counters[i].name): a.status.counters[i].value
                      for i in range(a.status.counter_count)}), "status")

    def verify(self, collection: typing.Optional[str] = None, repair: bool = False) -> Verified:
        """Reads every stored byte; collection None: of all collections. repair: recomputes what is damaged."""
        return self._answer(lambda a: _record(
            Verified, a.verify, damaged_ids=[text(a.verify.damaged_ids[i])
                                             for i in range(a.verify.damaged_id_count)]),
            "verify", _name(collection), repair, None, None)

    def gc(self) -> Collected:
        """Removes what nobody needs: expired ids, documents that nothing refers to, what ingests left behind."""
        return self._answer(lambda a: _record(Collected, a.gc), "gc", None, None)
