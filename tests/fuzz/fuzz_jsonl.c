/*
 * JSON Lines as `samkvctl ingest` reads them. The first byte says how long a line may be; lines come from a file, each
 * is counted once, and what is a document has an id and one of text and tokens.
 */
#include <sys/mman.h>
#include <unistd.h>

#include "client/ctl/ctl_source.h"
#include "tests/fuzz/fuzz.h"

static int file_of(const uint8_t *data, size_t size)
{
    int fd = memfd_create("lines", MFD_CLOEXEC);
    FUZZ_REQUIRE(fd >= 0 && write(fd, data, size) == (ssize_t)size && lseek(fd, 0, SEEK_SET) == 0, "no file");
    return fd;
}

static void parse(const char *line, size_t bytes)
{
    struct ctl_document document = {0};
    struct samkv_error err = {0};
    char *exact = (char *)fuzz_copy((const uint8_t *)line, bytes);
    enum samkv_status status = ctl_jsonl_parse(exact, bytes, &document, &err);
    free(exact);
    if (status) {
        fuzz_check_error(status, &err);
    } else {
        FUZZ_REQUIRE(document.id, "a document without id");
        FUZZ_REQUIRE(!document.text != !document.tokens, "text and tokens");
        FUZZ_REQUIRE(!document.text || strlen(document.text) == document.text_bytes, "%zu", document.text_bytes);
        if (document.text)
            (void)ctl_text_fault(document.text, document.text_bytes);
        fuzz_touch(document.tokens, document.token_count * sizeof *document.tokens);
    }
    ctl_document_deinit(&document);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const volatile sig_atomic_t go_on = 0;
    if (!size)
        return 0;
    size_t max_bytes = (size_t)4 << data[0] % 20;
    struct ctl_lines lines;
    heap_begin();
    ctl_lines_init(&lines, file_of(data + 1, size - 1), max_bytes);
    uint64_t total = 0, calls = 0;
    enum samkv_status status;
    do {
        char *line;
        size_t bytes;
        uint64_t used;
        struct samkv_error err = {0};
        status = ctl_lines_next(&lines, &go_on, &line, &bytes, &used, &err);
        total += used;
        if (status == SAMKV_OK) {
            FUZZ_REQUIRE(bytes <= max_bytes, "%zu bytes of at most %zu", bytes, max_bytes);
            parse(line, bytes);
        } else if (status != SAMKV_NOT_FOUND) {
            FUZZ_REQUIRE(status == SAMKV_TOO_LARGE, "%s", err.text);
            fuzz_check_error(status, &err);
        }
        FUZZ_REQUIRE(++calls <= size + 1, "it does not end");
    } while (status != SAMKV_NOT_FOUND);
    FUZZ_REQUIRE(total == size - 1, "%llu bytes of %zu", (unsigned long long)total, size - 1);
    ctl_lines_deinit(&lines);
    fuzz_check_heap(size, 150, 1 << 20);
    return 0;
}
