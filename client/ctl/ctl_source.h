#pragma once
/*
 * Where documents come from: text files, directories, JSON Lines. One document at a time is in memory; what cannot be
 * read is reported and the rest goes on.
 */
#include <fts.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "samkv/samkv.h"

/* Lines of a file, however long the file is. */
struct ctl_lines {
    int fd;
    char *buffer; /* heap */
    size_t begin, end, capacity, max_bytes;
    uint64_t number; /* of the line last given, from 1 */
    bool at_end, skipping;
};

struct ctl_document {
    char *id, *title, *text; /* heap; title and text may be NULL */
    size_t text_bytes;
    int32_t *tokens; /* instead of text */
    size_t token_count;
    char *where;           /* "notes/a.txt" or "corpus.jsonl:12", for messages */
    uint64_t source_bytes; /* that it took of its source, for progress */
};

enum ctl_source_event {
    CTL_SOURCE_DOCUMENT, /* *out is filled, and the caller's to deinitialise */
    CTL_SOURCE_FAILED,   /* out->where and err say what and why; deinitialise too */
    CTL_SOURCE_IGNORED,  /* likewise: nothing that could be a document, found in a directory */
    CTL_SOURCE_END,
};

struct ctl_source {
    char *const *paths;
    int path_count, next_path;
    size_t max_bytes; /* of one document */
    const volatile sig_atomic_t *stop;
    FTS *tree; /* open directory, its root at paths[next_path - 1] */
    size_t root_bytes;
    struct ctl_lines lines; /* open JSON Lines: fd >= 0 */
    char *lines_name;
};

/* stop: not 0 ends the source at the next chance, even while it waits for input. */
void ctl_source_init(struct ctl_source *, char *const *paths, int count, size_t max_bytes,
                     const volatile sig_atomic_t *stop);
void ctl_source_deinit(struct ctl_source *);
enum ctl_source_event ctl_source_next(struct ctl_source *, struct ctl_document *out, struct samkv_error *err);
void ctl_document_deinit(struct ctl_document *);

/* What is there, without reading it. Each is negative when it cannot be known (standard input; documents of JSON
 * Lines). */
struct ctl_source_size {
    int64_t bytes, documents;
};
struct ctl_source_size ctl_source_measure(char *const *paths, int count);

/* ------------------------------------------------------------------ shared by the kinds of sources */

void ctl_lines_init(struct ctl_lines *, int fd, size_t max_bytes);
void ctl_lines_deinit(struct ctl_lines *);
/*
 * OK: [*line, *line + *bytes) without its newline, until the next call. TOO_LARGE: the line is passed over. NOT_FOUND:
 * no more lines. CANCELLED: *stop. used: bytes of the file that the call went over.
 */
enum samkv_status ctl_lines_next(struct ctl_lines *, const volatile sig_atomic_t *stop, char **line, size_t *bytes,
                                 uint64_t *used, struct samkv_error *) SAMKV_MUST_USE;

/* One line of JSON to a document. INVALID with the reason. */
enum samkv_status ctl_jsonl_parse(const char *line, size_t bytes, struct ctl_document *out,
                                  struct samkv_error *) SAMKV_MUST_USE;

/* NULL, or why these bytes are no text. */
const char *ctl_text_fault(const char *text, size_t bytes);
