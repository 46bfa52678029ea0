#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_text.h"

/* Amounts with units: limits are seldom typed to the byte. */

struct unit {
    const char *name;
    int64_t factor;
};

static enum samkv_status parse(const char *text, const struct unit *units, const char *example, int64_t *out,
                               struct samkv_error *err)
{
    size_t digits = strspn(text, "0123456789");
    char number[24];
    if (!strcmp(text, "none")) {
        *out = 0;
        return SAMKV_OK;
    }
    while (units->name && strcmp(units->name, text + digits))
        units++;
    if (!digits || digits >= sizeof number || !units->name)
        return samkv_fail(err, SAMKV_INVALID, "must be an amount like %s, or none", example);
    memcpy(number, text, digits);
    number[digits] = 0;
    enum samkv_status status = ctl_parse_integer(number, 0, INT64_MAX, out, err);
    if (status)
        return status;
    if (*out > INT64_MAX / units->factor)
        return samkv_fail(err, SAMKV_INVALID, "is too large");
    *out *= units->factor;
    return SAMKV_OK;
}

const char *ctl_span(struct ctl_buffer *out, uint64_t seconds)
{
    static const struct {
        uint64_t seconds;
        char name;
    } units[] = {{86400, 'd'}, {3600, 'h'}, {60, 'm'}, {1, 's'}};
    size_t i = 0;
    while (seconds % units[i].seconds)
        i++;
    snprintf(out->text, sizeof out->text, "%llu%c", (unsigned long long)(seconds / units[i].seconds), units[i].name);
    return out->text;
}

enum samkv_status ctl_parse_bytes(const char *text, int64_t *out, struct samkv_error *err)
{
    static const struct unit units[] = {{"", 1},
                                        {"K", 1 << 10},
                                        {"M", 1 << 20},
                                        {"G", 1 << 30},
                                        {"T", INT64_C(1) << 40},
                                        {"KiB", 1 << 10},
                                        {"MiB", 1 << 20},
                                        {"GiB", 1 << 30},
                                        {"TiB", INT64_C(1) << 40},
                                        {0}};
    return parse(text, units, "500M or 10G", out, err);
}

enum samkv_status ctl_parse_duration(const char *text, int64_t *out, struct samkv_error *err)
{
    static const struct unit units[] = {{"", 1}, {"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}, {"w", 604800}, {0}};
    return parse(text, units, "12h or 7d", out, err);
}

enum samkv_status ctl_parse_mode(const char *value, int64_t *out, struct samkv_error *err)
{
    char *end;
    errno = 0;
    unsigned long mode = strtoul(value, &end, 8);
    if (*value < '0' || *value > '7' || *end || errno || mode > 07777)
        return samkv_fail(err, SAMKV_INVALID, "is no mode; write one like 0640");
    *out = (int64_t)mode;
    return SAMKV_OK;
}
