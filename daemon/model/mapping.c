#include "daemon/model/mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static enum samkv_status map_fd(int fd, const char *path, size_t max_bytes, struct samkv_mapping *out,
                                struct samkv_error *err)
{
    struct stat st;
    if (fstat(fd, &st))
        return samkv_fail_errno(err, errno, "cannot read %s", path);
    if (!S_ISREG(st.st_mode))
        return samkv_fail(err, SAMKV_INVALID, "%s is not a regular file", path);
    if (st.st_size <= 0)
        return samkv_fail(err, SAMKV_CORRUPT, "%s is empty", path);
    if ((uintmax_t)st.st_size > max_bytes)
        return samkv_fail(err, SAMKV_TOO_LARGE, "%s has %jd bytes, more than the %zu that are read", path,
                          (intmax_t)st.st_size, max_bytes);
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        return samkv_fail_errno(err, errno, "cannot map %s", path);
    *out = (struct samkv_mapping){.data = data, .bytes = (size_t)st.st_size};
    return SAMKV_OK;
}

enum samkv_status samkv_mapping_open(const char *path, size_t max_bytes, struct samkv_mapping *out,
                                     struct samkv_error *err)
{
    *out = (struct samkv_mapping){0};
    /* O_NONBLOCK: a pipe put in a model's place must not hang the open. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return samkv_fail_errno(err, errno, "cannot open %s", path);
    enum samkv_status status = map_fd(fd, path, max_bytes, out, err);
    close(fd);
    return status;
}

void samkv_mapping_close(struct samkv_mapping *m)
{
    if (m->data)
        munmap((void *)m->data, m->bytes);
    *m = (struct samkv_mapping){0};
}
