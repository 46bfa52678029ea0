#pragma once
/*
 * Private to the tokenizer: growable bytes, UTF-8, the character classes that tokenizers split by, and the alphabet
 * that byte-level vocabularies are written in (each byte as one printable character, GPT-2's table).
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

struct samkv_tok_buffer {
    char *data; /* heap */
    size_t count, capacity;
};

/* Room for `more` bytes behind count. */
enum samkv_status samkv_tok_reserve(struct samkv_tok_buffer *, size_t more) SAMKV_MUST_USE;
enum samkv_status samkv_tok_append(struct samkv_tok_buffer *, const void *bytes, size_t count) SAMKV_MUST_USE;
enum samkv_status samkv_tok_append_char(struct samkv_tok_buffer *, uint32_t codepoint) SAMKV_MUST_USE;
void samkv_tok_buffer_deinit(struct samkv_tok_buffer *);

/* Length of the longest valid prefix; equals bytes when all of it is valid UTF-8. */
size_t samkv_tok_utf8_valid(const char *text, size_t bytes);
/* Appends text with each maximal ill-formed subsequence replaced by one U+FFFD. */
enum samkv_status samkv_tok_utf8_repair(const char *text, size_t bytes, struct samkv_tok_buffer *out) SAMKV_MUST_USE;

/* The character at *at < bytes of valid UTF-8; moves *at behind it. */
uint32_t samkv_tok_utf8_next(const char *text, size_t bytes, size_t *at);
/* The start of the character that ends at `at` > 0 of valid UTF-8. */
size_t samkv_tok_utf8_previous(const char *text, size_t at);
/* Writes 1 to 4 bytes; returns how many. */
int samkv_tok_utf8_put(uint32_t codepoint, char out[4]);

bool samkv_tok_is_space(uint32_t codepoint);   /* Unicode's White_Space */
bool samkv_tok_is_word(uint32_t codepoint);    /* letters, marks, digits, connectors: a regex's \w */
bool samkv_tok_is_numeric(uint32_t codepoint); /* Nd, Nl, No */

uint32_t samkv_tok_alphabet_char(uint8_t byte);
int samkv_tok_alphabet_byte(uint32_t codepoint); /* -1: not a character of the alphabet */
