#include "client/ctl/ctl_source.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ------------------------------------------------------------------ helpers */

/* Bytes of the well-formed UTF-8 character at text (no surrogates, nothing overlong), 0 when there is none. */
static size_t utf8_character(const unsigned char *text, size_t bytes)
{
    unsigned char c = text[0];
    if (c < 0x80)
        return 1;
    size_t n = c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;
    if (!n || n > bytes)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    bool bad = (c == 0xe0 && text[1] < 0xa0) || (c == 0xed && text[1] >= 0xa0) || (c == 0xf0 && text[1] < 0x90) ||
               (c == 0xf4 && text[1] >= 0x90);
    return bad ? 0 : n;
}

const char *ctl_text_fault(const char *text, size_t bytes)
{
    if (!bytes)
        return "empty";
    if (memchr(text, 0, bytes))
        return "not a text: it holds NUL bytes";
    for (size_t at = 0, n; at < bytes; at += n)
        if (!(n = utf8_character((const unsigned char *)text + at, bytes - at)))
            return "not a text in UTF-8";
    return NULL;
}

static bool is_jsonl(const char *path)
{
    size_t n = strlen(path);
    return n >= 6 && !strcmp(path + n - 6, ".jsonl");
}

void ctl_document_deinit(struct ctl_document *document)
{
    free(document->id);
    free(document->title);
    free(document->text);
    free(document->tokens);
    free(document->where);
    *document = (struct ctl_document){0};
}

static enum samkv_status no_memory(struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for a document");
}

/* ------------------------------------------------------------------ text files */

/* All of a file, one byte beyond the limit at most. */
static enum samkv_status read_all(int fd, size_t max_bytes, struct ctl_document *out, struct samkv_error *err)
{
    size_t capacity = 0;
    for (;;) {
        if (out->text_bytes == capacity) {
            capacity = capacity ? 2 * capacity : (size_t)64 << 10;
            char *grown = realloc(out->text, capacity);
            if (!grown)
                return no_memory(err);
            out->text = grown;
        }
        ssize_t n = read(fd, out->text + out->text_bytes, capacity - out->text_bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return samkv_fail_errno(err, errno, "cannot read");
        if (!n)
            return SAMKV_OK;
        out->text_bytes += (size_t)n;
        if (out->text_bytes > max_bytes)
            return samkv_fail(err, SAMKV_TOO_LARGE, "larger than the %zu MB that the daemon takes: split the file",
                              max_bytes / 1000000);
    }
}

static void drop_byte_order_mark(struct ctl_document *document)
{
    if (document->text_bytes < 3 || memcmp(document->text, "\xef\xbb\xbf", 3))
        return;
    document->text_bytes -= 3;
    memmove(document->text, document->text + 3, document->text_bytes);
}

static enum samkv_status read_text(const char *path, const char *id, size_t max_bytes, struct ctl_document *out,
                                   struct samkv_error *err)
{
    out->id = strdup(id);
    if (!out->id)
        return no_memory(err);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return samkv_fail_errno(err, errno, "cannot open");
    struct stat st = {0};
    enum samkv_status status;
    /* Not even a part of a huge file is read. */
    if (!fstat(fd, &st) && S_ISREG(st.st_mode) && (uint64_t)st.st_size > max_bytes)
        status = samkv_fail(err, SAMKV_TOO_LARGE, "larger than the %zu MB that the daemon takes: split the file",
                            max_bytes / 1000000);
    else
        status = read_all(fd, max_bytes, out, err);
    close(fd);
    out->source_bytes = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : out->text_bytes;
    if (status)
        return status;
    drop_byte_order_mark(out);
    const char *fault = ctl_text_fault(out->text, out->text_bytes);
    /* UNSUPPORTED is what a directory may hold besides texts. */
    return fault ? samkv_fail(err, SAMKV_UNSUPPORTED, "%s", fault) : SAMKV_OK;
}

static enum ctl_source_event give_text(struct ctl_source *source, const char *path, const char *id, bool named,
                                       struct ctl_document *out, struct samkv_error *err)
{
    enum samkv_status status = read_text(path, id, source->max_bytes, out, err);
    if (!status)
        return CTL_SOURCE_DOCUMENT;
    return status == SAMKV_UNSUPPORTED && !named ? CTL_SOURCE_IGNORED : CTL_SOURCE_FAILED;
}

/* ------------------------------------------------------------------ JSON Lines */

static enum samkv_status open_lines(struct ctl_source *source, const char *path, struct samkv_error *err)
{
    bool standard = !strcmp(path, "-");
    int fd = standard ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return samkv_fail_errno(err, errno, "cannot open");
    /* Escapes make JSON longer than its text. */
    ctl_lines_init(&source->lines, fd, 2 * source->max_bytes);
    source->lines_name = strdup(standard ? "standard input" : path);
    return source->lines_name ? SAMKV_OK : no_memory(err);
}

static void close_lines(struct ctl_source *source)
{
    ctl_lines_deinit(&source->lines);
    free(source->lines_name);
    source->lines_name = NULL;
}

static bool is_blank(const char *line, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r')
            return false;
    return true;
}

/* END: this file has no more lines. */
static enum ctl_source_event next_line(struct ctl_source *source, struct ctl_document *out, struct samkv_error *err)
{
    struct ctl_lines *lines = &source->lines;
    enum samkv_status status;
    for (;;) {
        char *line;
        size_t bytes;
        uint64_t used;
        status = ctl_lines_next(lines, source->stop, &line, &bytes, &used, err);
        out->source_bytes += used;
        if (status == SAMKV_NOT_FOUND || status == SAMKV_CANCELLED)
            return CTL_SOURCE_END;
        if (!status && lines->number == 1 && bytes >= 3 && !memcmp(line, "\xef\xbb\xbf", 3)) {
            line += 3;
            bytes -= 3;
        }
        if (!status && is_blank(line, bytes))
            continue;
        if (!status)
            status = ctl_jsonl_parse(line, bytes, out, err);
        break;
    }
    if (asprintf(&out->where, "%s:%llu", source->lines_name, (unsigned long long)lines->number) < 0)
        out->where = NULL;
    if (status == SAMKV_IO || status == SAMKV_NO_MEMORY)
        lines->begin = lines->end, lines->at_end = true; /* no use in trying again */
    return status ? CTL_SOURCE_FAILED : CTL_SOURCE_DOCUMENT;
}

/* ------------------------------------------------------------------ directories */

static int by_name(const FTSENT **a, const FTSENT **b)
{
    return strcmp((*a)->fts_name, (*b)->fts_name);
}

static bool is_hidden(const FTSENT *entry)
{
    return entry->fts_level > FTS_ROOTLEVEL && entry->fts_name[0] == '.';
}

static FTS *open_tree(const char *path, bool sorted)
{
    char *const roots[] = {(char *)path, NULL};
    return fts_open(roots, FTS_LOGICAL | FTS_NOCHDIR, sorted ? by_name : NULL);
}

static const char *relative(const struct ctl_source *source, const char *path)
{
    path += source->root_bytes;
    return path + strspn(path, "/");
}

/* One entry of the tree. END: none of our business, look at the next. */
static enum ctl_source_event take_entry(struct ctl_source *source, const FTSENT *entry, struct ctl_document *out,
                                        struct samkv_error *err)
{
    switch (entry->fts_info) {
    case FTS_F:
        if (!is_jsonl(entry->fts_path))
            return give_text(source, entry->fts_path, relative(source, entry->fts_path), false, out, err);
        return open_lines(source, entry->fts_path, err) ? CTL_SOURCE_FAILED : CTL_SOURCE_END;
    case FTS_DNR:
    case FTS_ERR:
    case FTS_NS:
        samkv_fail_errno(err, entry->fts_errno, "cannot read");
        return CTL_SOURCE_FAILED;
    case FTS_SLNONE:
        samkv_fail(err, SAMKV_NOT_FOUND, "a link to nothing");
        return CTL_SOURCE_IGNORED;
    case FTS_DC:
        samkv_fail(err, SAMKV_UNSUPPORTED, "a link to a directory above it");
        return CTL_SOURCE_IGNORED;
    default:
        return CTL_SOURCE_END;
    }
}

/* END: the tree has no more entries, or JSON Lines were found and are open now. */
static enum ctl_source_event next_entry(struct ctl_source *source, struct ctl_document *out, struct samkv_error *err)
{
    FTSENT *entry;
    while (!*source->stop && (entry = fts_read(source->tree))) {
        if (is_hidden(entry)) {
            if (entry->fts_info == FTS_D)
                fts_set(source->tree, entry, FTS_SKIP);
            continue;
        }
        enum ctl_source_event event = take_entry(source, entry, out, err);
        if (event != CTL_SOURCE_END) {
            if (!out->where)
                out->where = strdup(entry->fts_path);
            return event;
        }
        if (source->lines_name)
            return CTL_SOURCE_END;
    }
    fts_close(source->tree);
    source->tree = NULL;
    return CTL_SOURCE_END;
}

/* ------------------------------------------------------------------ the whole */

void ctl_source_init(struct ctl_source *source, char *const *paths, int count, size_t max_bytes,
                     const volatile sig_atomic_t *stop)
{
    *source = (struct ctl_source){
        .paths = paths, .path_count = count, .max_bytes = max_bytes, .stop = stop, .lines = {.fd = -1}};
}

void ctl_source_deinit(struct ctl_source *source)
{
    if (source->tree)
        fts_close(source->tree);
    close_lines(source);
}

/* Opens a path of the command line. END: look into what was opened. */
static enum ctl_source_event open_path(struct ctl_source *source, const char *path, struct ctl_document *out,
                                       struct samkv_error *err)
{
    struct stat st;
    bool standard = !strcmp(path, "-");
    out->where = strdup(path);
    if (!standard && stat(path, &st)) {
        samkv_fail_errno(err, errno, "cannot read");
        return CTL_SOURCE_FAILED;
    }
    if (standard || (!S_ISDIR(st.st_mode) && is_jsonl(path)))
        return open_lines(source, path, err) ? CTL_SOURCE_FAILED : CTL_SOURCE_END;
    if (!S_ISDIR(st.st_mode)) {
        const char *slash = strrchr(path, '/');
        return give_text(source, path, slash ? slash + 1 : path, true, out, err);
    }
    source->tree = open_tree(path, true);
    source->root_bytes = strlen(path);
    if (source->tree)
        return CTL_SOURCE_END;
    samkv_fail_errno(err, errno, "cannot read");
    return CTL_SOURCE_FAILED;
}

enum ctl_source_event ctl_source_next(struct ctl_source *source, struct ctl_document *out, struct samkv_error *err)
{
    *out = (struct ctl_document){0};
    while (!*source->stop) {
        enum ctl_source_event event = CTL_SOURCE_END;
        if (source->lines_name) {
            event = next_line(source, out, err);
            if (event == CTL_SOURCE_END)
                close_lines(source);
        } else if (source->tree) {
            event = next_entry(source, out, err);
        } else if (source->next_path < source->path_count) {
            event = open_path(source, source->paths[source->next_path++], out, err);
        } else {
            break;
        }
        if (event != CTL_SOURCE_END)
            return event;
        ctl_document_deinit(out);
    }
    return CTL_SOURCE_END;
}

/* ------------------------------------------------------------------ measuring */

static void measure_file(struct ctl_source_size *size, const char *path, off_t bytes)
{
    size->bytes += bytes;
    if (is_jsonl(path))
        size->documents = -1;
    else if (size->documents >= 0)
        size->documents++;
}

static void measure_tree(struct ctl_source_size *size, const char *path)
{
    FTS *tree = open_tree(path, false);
    FTSENT *entry;
    while (tree && (entry = fts_read(tree))) {
        if (is_hidden(entry)) {
            if (entry->fts_info == FTS_D)
                fts_set(tree, entry, FTS_SKIP);
        } else if (entry->fts_info == FTS_F) {
            measure_file(size, entry->fts_path, entry->fts_statp->st_size);
        }
    }
    if (tree)
        fts_close(tree);
}

struct ctl_source_size ctl_source_measure(char *const *paths, int count)
{
    struct ctl_source_size size = {0};
    for (int i = 0; i < count; i++) {
        struct stat st;
        if (!strcmp(paths[i], "-"))
            return (struct ctl_source_size){-1, -1};
        if (stat(paths[i], &st))
            continue;
        if (S_ISDIR(st.st_mode))
            measure_tree(&size, paths[i]);
        else
            measure_file(&size, paths[i], st.st_size);
    }
    return size;
}
