#include "daemon/base/log_journal.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define MAX_NAME   40 /* the journal takes 64 */
#define MAX_FIELDS 16

struct entry {
    char *out;
    size_t used;
    const char *names[MAX_FIELDS];
    size_t lengths[MAX_FIELDS];
    int fields;
};

static bool is_key(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
}

static bool is_new(struct entry *e, const char *name, size_t length)
{
    for (int i = 0; i < e->fields; i++)
        if (e->lengths[i] == length && memcmp(e->names[i], name, length) == 0)
            return false;
    if (e->fields == MAX_FIELDS)
        return false;
    e->names[e->fields] = name;
    e->lengths[e->fields++] = length;
    return true;
}

static void put_field(struct entry *e, const char *name, size_t name_bytes, const char *value, size_t value_bytes)
{
    static const char prefix[] = "SAMKV_";
    if (!name_bytes || name_bytes > MAX_NAME || !is_new(e, name, name_bytes) ||
        e->used + sizeof prefix + name_bytes + value_bytes + 2 > SAMKV_JOURNAL_BYTES)
        return;
    memcpy(e->out + e->used, prefix, sizeof prefix - 1);
    e->used += sizeof prefix - 1;
    for (size_t i = 0; i < name_bytes; i++)
        e->out[e->used++] = (char)toupper((unsigned char)name[i]);
    e->out[e->used++] = '=';
    memcpy(e->out + e->used, value, value_bytes);
    e->used += value_bytes;
    e->out[e->used++] = '\n';
}

/* The word at text[at], a field or not; returns where it ends. */
static size_t take_word(struct entry *e, const char *text, size_t at, size_t end)
{
    size_t name = at;
    while (at < end && is_key(text[at]))
        at++;
    size_t name_bytes = at - name;
    if (at < end && text[at] == '=' && name_bytes) {
        bool quoted = ++at < end && text[at] == '"';
        size_t value = at += quoted;
        while (at < end && text[at] != (quoted ? '"' : ' '))
            at++;
        put_field(e, text + name, name_bytes, text + value, at - value);
    }
    while (at < end && text[at] != ' ')
        at++;
    return at;
}

size_t samkv_journal_entry(int priority, const char *text, size_t count, char out[SAMKV_JOURNAL_BYTES])
{
    struct entry e = {.out = out};
    if (count > SAMKV_JOURNAL_BYTES / 2)
        count = SAMKV_JOURNAL_BYTES / 2;
    e.used = (size_t)snprintf(out, SAMKV_JOURNAL_BYTES, "PRIORITY=%d\nSYSLOG_IDENTIFIER=samkvd\nMESSAGE=%.*s\n",
                              priority, (int)count, text);
    const char *stop = memmem(text, count, ": ", 2);
    size_t end = stop ? (size_t)(stop - text) : count;
    for (size_t at = 0; at < end; at++)
        at = take_word(&e, text, at, end);
    return e.used;
}
