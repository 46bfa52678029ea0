"""libsamkv.so.1 through ctypes: the structures of samkv.h and samkv_llama.h, and typed functions.

The library says how large its structures are: one that was built with others than those below is refused. A test compares
every size and offset with the header's.
"""
import ctypes
import os
import pathlib
from ctypes import (POINTER, Structure, Union, c_bool, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t,
                    c_uint32, c_uint64, c_void_p)

from .errors import error_for

SONAME = "libsamkv.so.1"
ENVIRONMENT = "SAMKV_LIBRARY"


class Error(Structure):
    _fields_ = [("status", c_int), ("text", ctypes.c_char * 512)]


class CollectionOptions(Structure):
    _fields_ = [("model", c_char_p), ("has_preamble", c_bool), ("preamble", c_void_p), ("preamble_bytes", c_size_t),
                ("preamble_tokens", POINTER(c_int32)), ("preamble_token_count", c_size_t),
                ("block_tokens", c_int64), ("init_tokens", c_int64), ("local_tokens", c_int64),
                ("quota_bytes", c_int64), ("ttl_s", c_int64), ("codec", c_char_p), ("mode", c_uint32)]


class DocumentInput(Structure):
    _fields_ = [("collection", c_char_p), ("id", c_char_p), ("title", c_char_p), ("text", c_void_p),
                ("text_bytes", c_size_t), ("tokens", POINTER(c_int32)), ("token_count", c_size_t),
                ("chunk_tokens", c_uint32), ("spec", CollectionOptions), ("reserved", c_uint64 * 3)]


class FetchOptions(Structure):
    _fields_ = [("collection", c_char_p), ("ids", POINTER(c_char_p)), ("id_count", c_size_t), ("query", c_void_p),
                ("query_bytes", c_size_t), ("query_tokens", POINTER(c_int32)), ("query_token_count", c_size_t),
                ("ratio", c_double), ("selection", c_int), ("stable_layers", POINTER(c_uint32)),
                ("stable_layer_count", c_size_t), ("init_tokens", c_int64), ("local_tokens", c_int64),
                ("update", c_int), ("theta", c_double), ("no_recompute", c_bool), ("positions", c_int),
                ("with_query", c_bool), ("placement", c_int), ("deadline_ms", c_uint32), ("scoring", c_int),
                ("neighbours", c_int), ("reserved", c_uint64 * 3)]


class AskOptions(Structure):
    _fields_ = [("fetch", FetchOptions), ("question", c_void_p), ("question_bytes", c_size_t), ("method", c_int),
                ("max_tokens", c_uint32), ("raw", c_bool), ("reserved", c_uint64 * 4)]


class Timing(Structure):
    _fields_ = [(name, c_double) for name in
                ("total", "index", "query", "select", "read", "recompute", "reply", "queue")]


class BlocksKept(Structure):
    _fields_ = [("blocks", POINTER(c_uint32)), ("count", c_size_t)]


class FiguresInput(Structure):
    _fields_ = [("documents", c_uint32), ("preamble_tokens", c_uint32), ("kept_tokens", c_uint32),
                ("total_tokens", c_uint32), ("next_position", c_uint32), ("block_tokens", c_uint32),
                ("sequence_ratio", c_double), ("recompute_ratio", c_double), ("top_p", POINTER(c_double)),
                ("document_tokens", POINTER(c_uint32)), ("keep", POINTER(BlocksKept)),
                ("stable_layers", POINTER(c_uint32)), ("stable_layer_count", c_size_t), ("bytes_read", c_uint64),
                ("bytes_stored", c_uint64), ("anchors_exceed_budget", c_bool), ("backend", c_char_p),
                ("timing_ms", Timing), ("request", c_uint64), ("decision", c_int), ("ratio", c_double),
                ("sparse_ms", c_double), ("full_ms", c_double)]


class CacheInput(Structure):
    _fields_ = [("layers", c_uint32), ("rows", c_uint32), ("kv_heads", c_uint32), ("head_dim", c_uint32),
                ("dtype", c_int), ("where", c_int), ("device", c_int), ("layer_stride_bytes", c_size_t),
                ("row_stride_bytes", c_size_t), ("head_stride_bytes", c_size_t), ("tokens", POINTER(c_int32)),
                ("doc", POINTER(c_int32)), ("index", POINTER(c_int32)), ("position", POINTER(c_int32)),
                ("logits", POINTER(c_float)), ("vocab", c_uint32), ("figures", FiguresInput), ("memory", c_void_p),
                ("memory_bytes", c_size_t), ("owner", c_void_p)]


class IngestedDocument(Structure):
    _fields_ = [("id", c_char_p), ("skipped", c_bool), ("tokens", c_uint32), ("bytes_raw", c_uint64),
                ("bytes_stored", c_uint64)]


class DocumentInfo(Structure):
    _fields_ = [("collection", c_char_p), ("id", c_char_p), ("title", c_char_p), ("key", c_char_p),
                ("tokens", c_uint32), ("blocks", c_uint32), ("bytes_raw", c_uint64), ("bytes_stored", c_uint64),
                ("bytes_index", c_uint64), ("created_unix_s", c_int64), ("pinned", c_bool), ("put_unix_s", c_int64),
                ("expires_unix_s", c_int64), ("used_unix_s", c_int64), ("uses", c_uint64)]


class CollectionInfo(Structure):
    _fields_ = [("name", c_char_p), ("model", c_char_p), ("dtype", c_char_p), ("fingerprint", c_char_p),
                ("block_tokens", c_uint32), ("init_tokens", c_uint32), ("local_tokens", c_uint32),
                ("preamble_tokens", c_uint32), ("documents", c_uint64), ("quota_bytes", c_uint64), ("ttl_s", c_uint64),
                ("bytes_raw", c_uint64), ("bytes_stored", c_uint64), ("codec", c_char_p), ("owner", c_uint32),
                ("group", c_uint32), ("mode", c_uint32)]


class ModelInfo(Structure):
    _fields_ = [("name", c_char_p), ("path", c_char_p), ("device", c_char_p), ("fingerprint", c_char_p),
                ("dtype", c_char_p), ("layers", c_uint32), ("context_tokens", c_uint32), ("weight_bytes", c_uint64),
                ("chat", c_char_p)]


class Counter(Structure):
    _fields_ = [("name", c_char_p), ("value", c_double)]


class QualityInfo(Structure):
    _fields_ = [("collection", c_char_p), ("target", c_char_p), ("share", c_double), ("level", c_uint32),
                ("ratio", c_double), ("full", c_bool), ("estimate", c_double), ("bound", c_double),
                ("measurements", c_double), ("met", c_bool), ("measured", c_uint64), ("raised", c_uint64),
                ("lowered", c_uint64)]


class IngestAnswer(Structure):
    _fields_ = [("documents", POINTER(IngestedDocument)), ("count", c_size_t), ("prefill_ms", c_double),
                ("request", c_uint64)]


class AskAnswer(Structure):
    _fields_ = [("text", c_void_p), ("text_bytes", c_size_t), ("answer_tokens", c_uint32), ("prompt_tokens", c_uint32),
                ("first_token_ms", c_double), ("total_ms", c_double), ("figures", POINTER(FiguresInput))]


class ListAnswer(Structure):
    _fields_ = [("documents", POINTER(DocumentInfo)), ("document_count", c_size_t),
                ("collections", POINTER(CollectionInfo)), ("collection_count", c_size_t), ("more", c_bool)]


class ShowAnswer(Structure):
    _fields_ = [("document", DocumentInfo), ("collection", CollectionInfo), ("text", c_void_p),
                ("text_bytes", c_size_t), ("quality", POINTER(QualityInfo)), ("calibration", c_void_p)]


class RemoveAnswer(Structure):
    _fields_ = [("removed", c_uint32), ("missing", POINTER(c_char_p)), ("missing_count", c_size_t)]


class StatusAnswer(Structure):
    _fields_ = [("version", c_char_p), ("store", c_char_p), ("uptime_s", c_uint64), ("collections", c_uint64),
                ("documents", c_uint64), ("names", c_uint64), ("connections", c_uint64), ("bytes_file", c_uint64),
                ("bytes_used", c_uint64), ("bytes_limit", c_uint64), ("bytes_raw", c_uint64),
                ("bytes_stored", c_uint64), ("resident_bytes", c_uint64), ("models", POINTER(ModelInfo)),
                ("model_count", c_size_t), ("counters", POINTER(Counter)), ("counter_count", c_size_t),
                ("bytes_disk_free", c_uint64), ("bytes_reclaimable", c_uint64), ("oldest_reader_s", c_uint64),
                ("evictions", c_uint64), ("evicted_bytes", c_uint64), ("expirations", c_uint64),
                ("collection_list", POINTER(CollectionInfo)), ("collection_count", c_size_t),
                ("histograms", c_void_p), ("histogram_count", c_size_t), ("user", c_uint32), ("user_bytes", c_uint64),
                ("user_quota_bytes", c_uint64), ("partial", c_bool),
                ("qualities", POINTER(QualityInfo)), ("quality_count", c_size_t), ("calibrations", c_void_p),
                ("calibration_count", c_size_t)]


class VerifyAnswer(Structure):
    _fields_ = [("documents", c_uint64), ("documents_total", c_uint64), ("blocks", c_uint64), ("bytes", c_uint64),
                ("damaged", c_uint64), ("repaired", c_uint64), ("damaged_ids", POINTER(c_char_p)),
                ("damaged_id_count", c_size_t)]


class ConfigureAnswer(Structure):
    _fields_ = [("collection", CollectionInfo), ("evicted", c_uint64), ("quality", POINTER(QualityInfo))]


class PinAnswer(Structure):
    _fields_ = [("pinned", c_uint32), ("missing", POINTER(c_char_p)), ("missing_count", c_size_t)]


class GcAnswer(Structure):
    _fields_ = [("names_expired", c_uint64), ("names_orphaned", c_uint64), ("documents_unreferenced", c_uint64),
                ("documents_unfinished", c_uint64), ("bytes_freed", c_uint64)]


class _Answer(Union):
    _fields_ = [("ingest", IngestAnswer), ("ask", AskAnswer), ("list", ListAnswer), ("show", ShowAnswer),
                ("remove", RemoveAnswer), ("status", StatusAnswer), ("verify", VerifyAnswer),
                ("configure", ConfigureAnswer), ("pin", PinAnswer), ("gc", GcAnswer),
                ("reserved", c_uint64 * 64)]


class Reply(Structure):
    _fields_ = [("request", c_uint64), ("operation", c_int), ("more", c_bool), ("status", c_int), ("error", Error),
                ("cache", POINTER(CacheInput)), ("answer", _Answer), ("owner", c_void_p)]


class LlamaLayout(Structure):
    _fields_ = [("streams", c_uint32), ("layers", c_uint32), ("width", c_uint32), ("k_type", c_int32),
                ("v_type", c_int32), ("v_transposed", c_bool), ("rope_type", c_int32), ("reserved", c_uint64 * 4)]


# C name of each structure above.
STRUCTS = {"samkv_error": Error, "samkv_collection_options": CollectionOptions, "samkv_document": DocumentInput,
           "samkv_fetch_options": FetchOptions, "samkv_ask_options": AskOptions, "samkv_timing": Timing,
           "samkv_blocks_kept": BlocksKept, "samkv_figures": FiguresInput, "samkv_cache": CacheInput,
           "samkv_ingested_document": IngestedDocument, "samkv_document_info": DocumentInfo,
           "samkv_collection_info": CollectionInfo, "samkv_model_info": ModelInfo, "samkv_quality_info": QualityInfo, "samkv_counter": Counter,
           "samkv_ingest_answer": IngestAnswer, "samkv_ask_answer": AskAnswer, "samkv_list_answer": ListAnswer,
           "samkv_show_answer": ShowAnswer, "samkv_remove_answer": RemoveAnswer, "samkv_status_answer": StatusAnswer,
           "samkv_verify_answer": VerifyAnswer, "samkv_configure_answer": ConfigureAnswer,
           "samkv_pin_answer": PinAnswer, "samkv_gc_answer": GcAnswer, "samkv_reply": Reply,
           "samkv_llama_layout": LlamaLayout}

ON_TEXT = ctypes.CFUNCTYPE(c_bool, c_void_p, c_void_p, c_size_t)

_ERROR, _REPLY, _CACHE, _LAYOUT = POINTER(Error), POINTER(Reply), POINTER(CacheInput), POINTER(LlamaLayout)
# name: (result, arguments). A result of _CALL is a status that is checked: the last argument is the error's.
_CALL = object()
_FUNCTIONS = {
    "samkv_client_version": (c_char_p, []),
    "samkv_client_struct_bytes": (c_size_t, [c_char_p]),
    "samkv_client_path": (_CALL, [c_char_p, c_char_p, c_size_t, _ERROR]),
    "samkv_client_connect": (_CALL, [c_char_p, POINTER(c_void_p), _ERROR]),
    "samkv_client_close": (None, [c_void_p]),
    "samkv_client_server": (c_char_p, [c_void_p]),
    "samkv_client_set_timeout_ms": (None, [c_void_p, c_int]),
    "samkv_document_init": (None, [POINTER(DocumentInput)]),
    "samkv_fetch_options_init": (None, [POINTER(FetchOptions)]),
    "samkv_ask_options_init": (None, [POINTER(AskOptions)]),
    "samkv_client_ping": (_CALL, [c_void_p, _ERROR]),
    "samkv_client_ingest": (_CALL, [c_void_p, POINTER(DocumentInput), _REPLY, _ERROR]),
    "samkv_client_fetch": (_CALL, [c_void_p, POINTER(FetchOptions), POINTER(_CACHE), _ERROR]),
    "samkv_client_ask": (_CALL, [c_void_p, POINTER(AskOptions), ON_TEXT, c_void_p, _REPLY, _ERROR]),
    "samkv_client_list": (_CALL, [c_void_p, c_char_p, c_char_p, c_uint32, _REPLY, _ERROR]),
    "samkv_client_list_collections": (_CALL, [c_void_p, c_char_p, c_uint32, _REPLY, _ERROR]),
    "samkv_client_show": (_CALL, [c_void_p, c_char_p, c_char_p, _REPLY, _ERROR]),
    "samkv_client_remove": (_CALL, [c_void_p, c_char_p, POINTER(c_char_p), c_size_t, _REPLY, _ERROR]),
    "samkv_client_remove_collection": (_CALL, [c_void_p, c_char_p, c_void_p, c_void_p, _REPLY, _ERROR]),
    "samkv_client_pin": (_CALL, [c_void_p, c_char_p, POINTER(c_char_p), c_size_t, c_bool, _REPLY, _ERROR]),
    "samkv_client_share": (_CALL, [c_void_p, c_char_p, c_int64, c_int64, _REPLY, _ERROR]),
    "samkv_client_configure": (_CALL, [c_void_p, c_char_p, c_int64, c_int64, _REPLY, _ERROR]),
    "samkv_client_set_quality": (_CALL, [c_void_p, c_char_p, c_char_p, c_double, _REPLY, _ERROR]),
    "samkv_client_gc": (_CALL, [c_void_p, c_void_p, c_void_p, _REPLY, _ERROR]),
    "samkv_client_status": (_CALL, [c_void_p, _REPLY, _ERROR]),
    "samkv_client_verify": (_CALL, [c_void_p, c_char_p, c_bool, c_void_p, c_void_p, _REPLY, _ERROR]),
    "samkv_reply_deinit": (None, [_REPLY]),
    "samkv_cache_k": (c_void_p, [_CACHE, c_uint32]),
    "samkv_cache_v": (c_void_p, [_CACHE, c_uint32]),
    "samkv_cache_fd": (c_int, [_CACHE]),
    "samkv_cache_save": (_CALL, [_CACHE, c_char_p, _ERROR]),
    "samkv_cache_free": (None, [_CACHE]),
    "samkv_llama_layout_read": (_CALL, [c_void_p, c_size_t, c_int, _LAYOUT, _ERROR]),
    "samkv_llama_state_bytes": (_CALL, [_CACHE, _LAYOUT, POINTER(c_size_t), _ERROR]),
    "samkv_llama_state_write": (_CALL, [_CACHE, _LAYOUT, c_int32, c_void_p, c_size_t, _ERROR]),
}


def _open():
    """(library, the name or path that it was opened by)"""
    named = os.environ.get(ENVIRONMENT)
    beside = pathlib.Path(__file__).with_name(SONAME)
    path = named or (str(beside) if beside.exists() else SONAME)
    try:
        return ctypes.CDLL(path), path
    except OSError as error:
        raise ImportError("cannot load %s (%s): install samkvd, or name its client library in %s" %
                          (path, error, ENVIRONMENT)) from None


_library, _path = _open()


def _bind(name, result, arguments):
    try:
        function = getattr(_library, name)
    except AttributeError:
        raise ImportError("%s has no %s: it is older than this package; update samkvd" % (_path, name)) from None
    function.argtypes, function.restype = arguments, c_int if result is _CALL else result
    return function


_functions = {name: _bind(name, *signature) for name, signature in _FUNCTIONS.items()}


def _check_structures():
    for name, kind in STRUCTS.items():
        if _functions["samkv_client_struct_bytes"](name.encode()) != ctypes.sizeof(kind):
            raise ImportError("%s has another struct %s than this package knows: install the package of its version, %s" %
                              (_path, name, _functions["samkv_client_version"]().decode()))


_check_structures()


def library_path() -> str:
    """The name or path that libsamkv was loaded by."""
    return _path


def call(name, *arguments):
    """Calls a function of the library; the error argument is added, and a status but OK raises SamkvError."""
    function = _functions[name]
    if _FUNCTIONS[name][0] is not _CALL:
        return function(*arguments)
    error = Error()
    status = function(*arguments, ctypes.byref(error))
    if status:
        raise error_for(status, error.text.decode("utf-8", "replace"))
    return None


def text(value) -> str:
    """A C string of the library, or None → str."""
    return value.decode("utf-8", "replace") if value else ""
