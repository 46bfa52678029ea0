#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl_text.h"

bool ctl_table_add(struct ctl_table *table, const char *const *cells)
{
    size_t needed = table->cell_count + (size_t)table->columns;
    if (needed > table->cell_capacity) {
        size_t capacity = table->cell_capacity ? 2 * table->cell_capacity : 64;
        char **grown = realloc(table->cells, capacity * sizeof *grown);
        if (!grown)
            return false;
        table->cells = grown;
        table->cell_capacity = capacity;
    }
    for (int i = 0; i < table->columns; i++) {
        char *copy = strdup(cells[i] ? cells[i] : "");
        if (!copy)
            return false;
        table->cells[table->cell_count++] = copy;
    }
    return true;
}

void ctl_table_free(struct ctl_table *table)
{
    while (table->cell_count)
        free(table->cells[--table->cell_count]);
    free(table->cells);
    table->cells = NULL;
    table->cell_capacity = 0;
}

static void print_plain(const struct ctl_table *table, FILE *out)
{
    for (size_t i = 0; i < table->cell_count; i++) {
        ctl_put(out, table->cells[i], strlen(table->cells[i]), -1, false);
        fputc((i + 1) % (size_t)table->columns ? '\t' : '\n', out);
    }
}

static void pad(FILE *out, int columns)
{
    while (columns-- > 0)
        fputc(' ', out);
}

/* The last column takes what the terminal leaves and is cut to it. */
static void print_row(const struct ctl_table *table, const char *const *cells, const int *widths, int room, FILE *out)
{
    int used = 0;
    for (int i = 0; i < table->columns; i++) {
        bool last = i + 1 == table->columns;
        int blank = widths[i] - ctl_width(cells[i]);
        if (table->right[i])
            pad(out, blank);
        ctl_put(out, cells[i], strlen(cells[i]), last && room - used > 8 ? room - used : -1, false);
        if (!table->right[i] && !last)
            pad(out, blank);
        if (!last)
            fputs("  ", out);
        used += widths[i] + 2;
    }
    fputc('\n', out);
}

void ctl_table_print(const struct ctl_table *table, FILE *out)
{
    if (!ctl_is_terminal(out)) {
        print_plain(table, out);
        return;
    }
    int widths[CTL_MAX_COLUMNS] = {0}, room = ctl_terminal_columns(out);
    for (int i = 0; i < table->columns; i++)
        widths[i] = ctl_width(table->names[i]);
    for (size_t i = 0; i < table->cell_count; i++) {
        int *width = &widths[i % (size_t)table->columns], own = ctl_width(table->cells[i]);
        *width = own > *width ? own : *width;
    }
    fputs("\033[1m", out);
    print_row(table, table->names, widths, room, out);
    fputs("\033[0m", out);
    for (size_t i = 0; i < table->cell_count; i += (size_t)table->columns)
        print_row(table, (const char *const *)table->cells + i, widths, room, out);
}
